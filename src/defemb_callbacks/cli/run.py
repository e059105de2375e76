"""The command that runs an unchanged training script with the callback."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from defemb_callbacks.cli.models import Sources
from defemb_callbacks.cli.script import Script
from defemb_callbacks.cli.settings import with_settings
from defemb_callbacks.config import DefinitionEMBConfig

SETTINGS = tuple(field.name for field in fields(DefinitionEMBConfig))


@with_settings(*SETTINGS)
def run(
    script: Annotated[str, typer.Argument(help="Training script, or a module with -m.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments of the script.")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is the name of a module, as in `python -m`.")] = False,
    definitions: Sources = None,
    embeddings: Annotated[str | None, typer.Option(help="Folder saved by `defemb build`, or Hub id.")] = None,
    *,
    context: typer.Context,
    config: DefinitionEMBConfig,
) -> None:
    """Run a training script unchanged, with the callback added to every Trainer that it creates.

    The options must precede SCRIPT; everything after it belongs to the script. Processes that it starts have the
    callback too. To use several processes: accelerate launch -m defemb_callbacks run SCRIPT.
    """
    if not module and not Path(script).is_file():
        raise FileNotFoundError(f"There is no script {script}. Check its path, or pass -m for a module.")
    defaults = DefinitionEMBConfig().to_dict()
    settings = {name: value for name, value in config.to_dict().items() if value != defaults[name]}
    settings |= {"definitions": definitions} if definitions else {}
    settings |= {"embeddings": embeddings} if embeddings else {}
    context.obj.script = Script(script, list(arguments or []), module, settings)
