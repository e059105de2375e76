"""What several commands share: arguments, models on disk and output."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import transformers
import typer
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cli.script import Script
from defemb_callbacks.reporting.model_card import update_model_card
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.weights.distributed import this_process


@dataclass
class Session:
    """State of one call of the command line.

    Attributes:
        debug: Whether to show tracebacks of user errors.
        script: The script to run after the arguments have been read; `None` for the other commands.
    """

    debug: bool = False
    script: Script | None = None


Model = Annotated[str, typer.Argument(help="Checkpoint folder or Hub id.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of MODEL on the Hub.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run custom code that comes with MODEL.")]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SRC",
        help="Dictionary: 'wordnet' (default), a glossary (.tsv, .csv, .json) or a Wiktionary extract (.jsonl, "
        ".jsonl.gz). Repeat the option to merge dictionaries.",
    ),
]
ReportFile = Annotated[Path | None, typer.Option(help="Write the full report to this JSON file.")]
OutputFolder = Annotated[Path, typer.Option(help="Output folder.", show_default=False)]


def load_model(
    name: str, revision: str | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the tokenizer, and the model in the class of its checkpoint, so that its task head is kept.

    Args:
        name: Folder or Hub id.
        revision: Branch, tag or commit.
        trust_remote_code: Whether to run custom code of the checkpoint.

    Raises:
        ValueError: If transformers does not have the class of the checkpoint.
    """
    settings = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name, **settings)
    architecture = (config.architectures or ["AutoModel"])[0]
    # Custom code is loaded through the auto class that it is registered for.
    registered = getattr(config, "auto_map", {}).items() if trust_remote_code else ()
    wanted = next((auto for auto, target in registered if str(target).endswith(f".{architecture}")), architecture)
    if not hasattr(transformers, wanted):
        raise ValueError(
            f"transformers has no class {architecture!r}. Pass --trust-remote-code to run the model's own."
        )
    model = getattr(transformers, wanted).from_pretrained(name, **settings)
    return model.eval(), AutoTokenizer.from_pretrained(name, **settings)


def check_output(model: str, output: Path) -> None:
    """Check that a model is not saved over the one it was loaded from.

    Args:
        model: Folder or Hub id of the model.
        output: Folder to save to.

    Raises:
        ValueError: If it is the folder of the model.
    """
    if output.exists() and Path(model).exists() and output.samefile(model):
        raise ValueError(f"--output {output} is the folder of MODEL. Choose another folder.")


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path, done: RebuildReport, report: Path | None
) -> None:
    """Save a model with its tokenizer and model card, on the main process.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        output: Folder to save to.
        done: Report of what was changed.
        report: File for the full report.
    """
    if this_process().is_main_process:
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
        update_model_card(output, done)
        if report is not None:
            report.write_text(done.to_json(), encoding="utf-8")


def echo(text: str) -> None:
    """Print a text on the main process. Characters that the console cannot show are replaced.

    Args:
        text: The text.
    """
    if this_process().is_main_process:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        typer.echo(text.encode(encoding, errors="replace").decode(encoding))


def read_lines(path: Path) -> list[str]:
    """Read a file with one text per line.

    Only line feeds and carriage returns end a line: texts may contain other Unicode line breaks, such as U+2028.

    Args:
        path: UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: If the file is not UTF-8 text.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            return [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from None
