"""Command line `defemb`: inspect, build, apply, define, calibrate and senses without a Trainer; run with one."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from defemb_callbacks.cli.embeddings import apply, build, define, inspect_models
from defemb_callbacks.cli.models import Session
from defemb_callbacks.cli.run import run
from defemb_callbacks.cli.texts import calibrate, senses
from defemb_callbacks.progress import Display, shown_on

app = typer.Typer(
    help="Rebuild a model's token embeddings from dictionary definitions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables truncate option names
)

NO_TRAINER = (
    "defemb run: the script has created no Trainer in this process, so nothing was changed here. Processes that it "
    "started report for themselves. For a script with its own training loop, use `defemb build` and `defemb apply`."
)


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    context.obj.debug = debug


app.command("inspect")(inspect_models)
for command in (build, apply, define, calibrate, senses):
    app.command()(command)
# The options of the script are not those of `defemb`.
app.command(context_settings={"allow_interspersed_args": False})(run)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    User errors are printed as one line on stderr, with exit code 1; `--debug` shows their traceback. Bugs keep theirs.
    The errors and the exit code of a script that `defemb run` starts are its own.

    Args:
        arguments: The arguments; those of the process if `None`.
    """
    session = Session()
    try:
        with shown_on(Display(lambda text: typer.echo(text, err=True))):
            app(arguments, prog_name="defemb", obj=session)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if session.debug or not _is_user_error(error):
            raise
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise SystemExit(1) from None
    except SystemExit as end:
        if end.code or session.script is None:
            raise
    # Outside of typer, which has its own way of handling interruptions and errors.
    if session.script is not None and not session.script.run():
        typer.echo(NO_TRAINER, err=True)
    raise SystemExit(0)


def _is_user_error(error: Exception) -> bool:
    """Whether the user can correct an error. A `TypeError` is a bug unless this package raises it on purpose."""
    if not isinstance(error, TypeError):
        return True
    origin = traceback.extract_tb(error.__traceback__)[-1]
    return Path(origin.filename).is_relative_to(Path(__file__).parents[1]) and (origin.line or "").startswith("raise ")
