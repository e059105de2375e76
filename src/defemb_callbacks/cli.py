"""Command line `defemb`: inspect, build, apply, define, calibrate and senses, without a Trainer."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import transformers
import typer
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cli_settings import APPLY_SETTINGS, BUILD_SETTINGS, DEFINE_SETTINGS, with_settings
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.constructor_config import PAPER_SETTINGS
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.build import build_definition_embeddings
from defemb_callbacks.new_tokens import define_new_tokens
from defemb_callbacks.reporting.inspection import as_text, inspect_embeddings, save_inspections
from defemb_callbacks.reporting.model_card import update_model_card
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.reporting.tables import text_table
from defemb_callbacks.senses import SenseConfig, build_sense_dictionary
from defemb_callbacks.senses.analysis import name_senses, sense_table, tokens_of_words
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.distributed import this_process
from defemb_callbacks.weights.rows import table_shape

app = typer.Typer(
    help="Rebuild a model's token embeddings from dictionary definitions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables truncate option names
)

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
Report = Annotated[Path | None, typer.Option(help="Write the full report to this JSON file.")]
Output = Annotated[Path, typer.Option(help="Output folder.", show_default=False)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. User errors are printed as one line on stderr, with exit code 1."""
    try:
        app(arguments, prog_name="defemb")
    except (ValueError, TypeError, OSError, ImportError) as error:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise SystemExit(1) from None


@app.command("inspect")
def inspect_models(
    model: Model,
    other: Annotated[list[str] | None, typer.Argument(help="More checkpoints to compare with MODEL.")] = None,
    definitions: Sources = None,
    output: Annotated[Path | None, typer.Option(help="Save an HTML page and pictures in this folder.")] = None,
    projector: Annotated[
        bool,
        typer.Option("--projector", help="With --output: also save files for TensorBoard's projector."),
    ] = False,
    ratings: Annotated[
        Path | None, typer.Option(help="File of human similarity ratings (word, word, score) to correlate with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show vocabulary, dictionary coverage and embedding metrics of a model, or compare several models."""
    if projector and output is None:
        raise ValueError("--projector requires an output folder. Add --output DIR.")
    config = DefinitionEMBConfig(ratings=None if ratings is None else str(ratings))
    lexicon = load_definitions(definitions or "wordnet")
    inspections = []
    for name in [model, *(other or [])]:
        network, tokenizer = _load(name, revision if name == model else None, trust_remote_code)
        inspections.append(inspect_embeddings(name, network, tokenizer, lexicon, config))
    if output is not None and this_process().is_main_process:
        save_inspections(output, inspections, projector=projector)
    if as_json:
        found = [inspection.to_dict() for inspection in inspections]
        _echo(json.dumps(found if other else found[0], ensure_ascii=False, indent=1))
    else:
        saved = "" if output is None else f"\n\nSaved in {output}. Open {output / 'index.html'} in a browser."
        _echo(as_text(inspections) + saved)


@app.command()
@with_settings(*BUILD_SETTINGS)
def build(
    model: Model,
    output: Output,
    definitions: Sources = None,
    paper: Annotated[
        str | None,
        typer.Option(metavar="|".join(PAPER_SETTINGS), help="Start from the paper's settings for one of its models."),
    ] = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    *,
    config: DefinitionEMBConfig,
) -> None:
    """Reconstruct token embeddings from definitions and save them for `defemb apply`."""
    network, tokenizer = _load(model, revision, trust_remote_code)
    state = this_process()
    network.to(state.device)
    embeddings = build_definition_embeddings(network, tokenizer, definitions or "wordnet", config)
    if state.is_main_process:
        embeddings.save_pretrained(output)
    info = embeddings.info
    # A learned constructor without held-out words has no R².
    explained = f"; held-out R²: {info['r_squared']:.3f}" if info["r_squared"] else ""
    table = "" if config.table == "input" else f" --table {config.table}"
    strategy = "" if paper is None else " --strategy replace --no-rescale"
    _echo(
        f"{len(embeddings.ids):,} of {len(embeddings.vocabulary):,} tokens rebuilt from "
        f"{info['definitions_read']:,} definitions ({info['definitions']}){explained}.\n"
        f"Saved in {output}. Next: defemb apply {model} {output} --output DIR{table}{strategy}"
    )


@app.command()
@with_settings(*APPLY_SETTINGS)
def apply(
    model: Model,
    embeddings: Annotated[str, typer.Argument(help="Folder saved by `defemb build`, or Hub id.")],
    output: Output,
    force: Annotated[bool, typer.Option("--force", help="Rebuild a model even if it was rebuilt before.")] = False,
    report: Report = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    *,
    config: DefinitionEMBConfig,
) -> None:
    """Write reconstructed embeddings into a model and save it, with its task head, as an ordinary checkpoint."""
    _check_output(model, output)
    network, tokenizer = _load(model, revision, trust_remote_code)
    ready = DefinitionEmbeddings.from_pretrained(embeddings)
    ready.check_tokenizer(read_vocabulary(tokenizer, table_shape(network, config.table)[0]))
    done = ready.apply(network, config, force=force)
    _save(network, tokenizer, output, done, report)
    _echo(f"{done}\n\nSaved in {output}.")


@app.command()
@with_settings(*BUILD_SETTINGS, *DEFINE_SETTINGS)
def define(
    model: Model,
    terms: Annotated[Path, typer.Argument(help="Glossary of the new terms (.tsv, .csv, .json).")],
    output: Output,
    definitions: Sources = None,
    report: Report = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    *,
    config: DefinitionEMBConfig,
) -> None:
    """Add new terms to a model and its tokenizer, with embeddings built from their definitions, and save both.

    Terms that are already tokens are rebuilt.
    """
    _check_output(model, output)
    network, tokenizer = _load(model, revision, trust_remote_code)
    network.to(this_process().device)
    done = define_new_tokens(network, tokenizer, terms, definitions or "wordnet", config)
    _save(network, tokenizer, output, done, report)
    _echo(f"{done}\n\nSaved in {output}.")


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a sentence-transformers or transformers model.")],
    texts: Annotated[Path, typer.Argument(help="File with one text per line, like those to be compared.")],
    output: Output,
    method: Annotated[
        str, typer.Option(metavar="whitening|flow|standardization|top_removal", help="Calibration method.")
    ] = "whitening",
    pooling: Annotated[
        str | None,
        typer.Option(help="last, first_last, last_two, layer:N or static. Default: the model's own."),
    ] = None,
    components: Annotated[
        int | None, typer.Option(help="With whitening: number of principal directions to keep. Default: all.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Calibrate even if it is likely to harm.")] = False,
) -> None:
    """Make sentence embeddings isotropic: fit a whitening or a flow to texts and save a SentenceTransformer.

    The likely effect is estimated from the texts first. Contrastively trained models usually do not benefit.
    """
    from defemb_callbacks.sentence.calibrate import calibrate as fit  # needs the extra `sentence`

    if components is not None and method != "whitening":
        raise ValueError(f"--components cannot be used with --method {method}. Use --method whitening.")
    lines = texts.read_text(encoding="utf-8").splitlines()
    settings = {} if components is None else {"components": components}
    done = fit(model, lines, method, pooling=pooling, force=force, **settings)  # type: ignore[arg-type]
    done.model.save_pretrained(str(output))
    changes = [[name.replace("_", " "), f"{done.before[name]:.3f} → {done.after[name]:.3f}"] for name in done.after]
    _echo("\n".join([done.advice.reason, "", textwrap.indent(text_table(changes), "  "), "", f"Saved in {output}."]))


@app.command()
def senses(
    model: Model,
    texts: Annotated[Path, typer.Argument(help="File with one text per line, like the model's input.")],
    output: Annotated[Path | None, typer.Option(help="Save the sense dictionary in this folder.")] = None,
    word: Annotated[list[str] | None, typer.Option(help="Show the senses of this word. Can be repeated.")] = None,
    definitions: Sources = None,
    number: Annotated[int, typer.Option("--senses", help="Maximum number of senses per token.")] = 20,
    rule: Annotated[
        str, typer.Option(metavar="fixed|markov|silhouette", help="Choice of the number of senses.")
    ] = "fixed",
    similarity: Annotated[
        str, typer.Option(metavar="dot|cosine|euclidean", help="Similarity to choose a sense by.")
    ] = "dot",
    storage: Annotated[
        str, typer.Option(metavar="float32|float16|product", help="Format of the saved vectors.")
    ] = "float32",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Find the senses of tokens in texts, save them as a sense dictionary, and label the senses of words."""
    if output is None and not word:
        raise ValueError("Nothing to do. Pass --word WORD to show its senses, or --output DIR to save all senses.")
    config = SenseConfig(senses=number, rule=rule, similarity=similarity)  # type: ignore[arg-type]
    network, tokenizer = _load(model, revision, trust_remote_code)
    tokens = tokens_of_words(read_vocabulary(tokenizer, table_shape(network)[0]), word or [])
    lexicon = load_definitions(definitions or "wordnet") if tokens else None
    state = this_process()
    network.to(state.device)
    found = build_sense_dictionary(network, tokenizer, texts.read_text(encoding="utf-8").splitlines(), config)
    lines = [str(found)]
    if lexicon is not None:
        lines.append(sense_table(found, name_senses(found, network, tokenizer, lexicon, tokens)))
    if output is not None and state.is_main_process:
        found.compressed(storage).save_pretrained(output)  # type: ignore[arg-type]
        lines.append(f"Saved in {output}.")
    _echo("\n".join(lines))


def _load(name: str, revision: str | None, trust_remote_code: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the tokenizer, and the model in the class of its checkpoint, so that its task head is kept."""
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


def _check_output(model: str, output: Path) -> None:
    if output.exists() and Path(model).exists() and output.samefile(model):
        raise ValueError(f"--output {output} is the folder of MODEL. Choose another folder.")


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path, done: RebuildReport, report: Path | None
) -> None:
    if this_process().is_main_process:
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
        update_model_card(output, done)
        if report is not None:
            report.write_text(done.to_json(), encoding="utf-8")


def _echo(text: str) -> None:
    if this_process().is_main_process:
        typer.echo(text)
