"""The command line `defemb`: the same functions, without a Trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import transformers
import typer
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cli_settings import with_settings
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.constructor_config import PAPER_SETTINGS
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.build import build_definition_embeddings
from defemb_callbacks.new_tokens import define_new_tokens
from defemb_callbacks.reporting.inspection import as_text, inspect_embeddings, save_inspections
from defemb_callbacks.reporting.model_card import update_model_card
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.distributed import this_process
from defemb_callbacks.weights.rows import table_shape

app = typer.Typer(
    help="Rebuild a model's token embeddings from dictionary definitions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose tables cut the names of options
)

BUILD_SETTINGS = (
    "method",
    "constructor",
    "table",
    "features",
    "definitions_per_token",
    "max_length",
    "precision",
    "batch_size",
    "cache_dir",
)
# How new tokens, and terms that are tokens already, get their rows.
DEFINE_SETTINGS = ("strategy", "blend", "blend_floor", "rescale", "frequency", "group_edges", "new_token_group")
APPLY_SETTINGS = ("table", "strategy", "blend", "blend_floor", "rescale", "alpha", "frequency", "group_edges")

Model = Annotated[str, typer.Argument(help="Folder of a checkpoint, or its id on the hub.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of MODEL on the hub.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code that MODEL comes with.")]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SRC",
        help="'wordnet' (the default), a glossary (.tsv, .csv, .json) or an extract of Wiktionary (.jsonl, .jsonl.gz). "
        "Give it several times to join dictionaries.",
    ),
]
Report = Annotated[Path | None, typer.Option(help="Write the full report here, as JSON.")]
Output = Annotated[Path, typer.Option(help="Folder to write into.", show_default=False)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can mend is one line on stderr and exit code 1."""
    try:
        app(arguments, prog_name="defemb")
    except (ValueError, TypeError, OSError, ImportError) as error:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise SystemExit(1) from None


@app.command("inspect")
def inspect_models(
    model: Model,
    other: Annotated[list[str] | None, typer.Argument(help="Checkpoints to compare with MODEL.")] = None,
    definitions: Sources = None,
    output: Annotated[Path | None, typer.Option(help="Write a page and pictures into this folder.")] = None,
    projector: Annotated[
        bool, typer.Option("--projector", help="With --output: also files for TensorBoard's embedding projector.")
    ] = False,
    ratings: Annotated[
        Path | None, typer.Option(help="File of human similarity ratings (word, word, score) to compare with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show a model's vocabulary, how much of it a dictionary defines, and the metrics of its token embeddings.

    Several models are shown side by side.
    """
    if projector and output is None:
        raise ValueError("--projector needs a folder to write into: --output DIR.")
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
        _say(json.dumps(found if other else found[0], ensure_ascii=False, indent=1))
    else:
        saved = "" if output is None else f"\n\nSaved in {output}. Open {output / 'index.html'} in a browser."
        _say(as_text(inspections) + saved)


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
    """Reconstruct a model's token embeddings from definitions, and save them for `defemb apply`."""
    network, tokenizer = _load(model, revision, trust_remote_code)
    state = this_process()
    network.to(state.device)
    embeddings = build_definition_embeddings(network, tokenizer, definitions or "wordnet", config)
    if state.is_main_process:
        embeddings.save_pretrained(output)
    info = embeddings.info
    # A learned constructor without held-out words cannot be judged.
    explained = f", which explain {info['r_squared']:.3f} of the old rows' variation" if info["r_squared"] else ""
    table = "" if config.table == "input" else f" --table {config.table}"
    strategy = "" if paper is None else " --strategy replace --no-rescale"
    _say(
        f"{len(embeddings.ids):,} of {len(embeddings.vocabulary):,} tokens rebuilt from "
        f"{info['definitions_read']:,} definitions ({info['definitions']}){explained}.\n"
        f"Saved in {output}. Next: defemb apply {model} {output} --output DIR{table}{strategy}"
    )


@app.command()
@with_settings(*APPLY_SETTINGS)
def apply(
    model: Model,
    embeddings: Annotated[str, typer.Argument(help="Folder that `defemb build` wrote, or hub id.")],
    output: Output,
    force: Annotated[bool, typer.Option("--force", help="Rebuild a model that was rebuilt before.")] = False,
    report: Report = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    *,
    config: DefinitionEMBConfig,
) -> None:
    """Write reconstructed embeddings into a model, task head included, and save it as an ordinary checkpoint."""
    _refuse_same_folder(model, output)
    network, tokenizer = _load(model, revision, trust_remote_code)
    ready = DefinitionEmbeddings.from_pretrained(embeddings)
    ready.check_tokenizer(read_vocabulary(tokenizer, table_shape(network, config.table)[0]))
    done = ready.apply(network, config, force=force)
    _save(network, tokenizer, output, done, report)
    _say(f"{done}\n\nSaved in {output}.")


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
    """Add new terms to a model and its tokenizer, with rows made from their definitions, and save both.

    Terms that are tokens already are rebuilt.
    """
    _refuse_same_folder(model, output)
    network, tokenizer = _load(model, revision, trust_remote_code)
    network.to(this_process().device)
    done = define_new_tokens(network, tokenizer, terms, definitions or "wordnet", config)
    _save(network, tokenizer, output, done, report)
    _say(f"{done}\n\nSaved in {output}.")


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a sentence-transformers or transformers model.")],
    texts: Annotated[Path, typer.Argument(help="One text a line, like those that will be compared.")],
    output: Output,
    method: Annotated[str, typer.Option(metavar="whitening|flow|standardization|top_removal")] = "whitening",
    pooling: Annotated[
        str | None, typer.Option(help="last, first_last, last_two, layer:N or static; default: the model's own.")
    ] = None,
    components: Annotated[
        int | None, typer.Option(help="With whitening: keep so many principal directions; default all.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on where calibration is expected to harm.")] = False,
) -> None:
    """Make sentence embeddings isotropic: fit a whitening or a flow to texts, and save a SentenceTransformer with it.

    What calibration is likely to do is told first, from the texts; contrastively trained models are better left alone.
    """
    from defemb_callbacks.sentence.calibrate import calibrate as fit  # needs an extra

    if components is not None and method != "whitening":
        raise ValueError(f"--components is for whitening, not for {method}.")
    lines = texts.read_text(encoding="utf-8").splitlines()
    settings = {} if components is None else {"components": components}
    done = fit(model, lines, method, pooling=pooling, force=force, **settings)  # type: ignore[arg-type]
    done.model.save_pretrained(str(output))
    changes = [
        f"  {name.replace('_', ' '):<16}{done.before[name]:>9.3f} → {done.after[name]:.3f}" for name in done.after
    ]
    _say("\n".join([done.advice.reason, "", *changes, "", f"Saved in {output}."]))


@app.command()
def senses(
    model: Model,
    texts: Annotated[Path, typer.Argument(help="One text a line, like those that the senses will be used on.")],
    output: Annotated[Path | None, typer.Option(help="Save the dictionary into this folder.")] = None,
    word: Annotated[list[str] | None, typer.Option(help="Show the senses of this token; may be given again.")] = None,
    definitions: Sources = None,
    number: Annotated[int, typer.Option("--senses", help="Senses of a token, at most.")] = 20,
    rule: Annotated[str, typer.Option(metavar="fixed|markov|silhouette", help="How many senses.")] = "fixed",
    similarity: Annotated[str, typer.Option(metavar="dot|cosine|euclidean", help="What chooses a sense.")] = "dot",
    storage: Annotated[
        str, typer.Option(metavar="float32|float16|product", help="How --output is written.")
    ] = "float32",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Find the senses of tokens in texts: save them as a dictionary, and name those of single words by definitions."""
    from defemb_callbacks.senses import SenseConfig, SenseDictionary
    from defemb_callbacks.senses.analysis import name_senses, sense_table, tokens_of_words

    if output is None and not word:
        raise ValueError("Nothing to do: say --word WORD to see its senses, --output DIR to save all of them, or both.")
    config = SenseConfig(senses=number, rule=rule, similarity=similarity)  # type: ignore[arg-type]
    network, tokenizer = _load(model, revision, trust_remote_code)
    tokens = tokens_of_words(read_vocabulary(tokenizer, table_shape(network)[0]), word or [])
    lexicon = load_definitions(definitions or "wordnet") if tokens else None
    state = this_process()
    network.to(state.device)
    found = SenseDictionary.build(network, tokenizer, texts.read_text(encoding="utf-8").splitlines(), config)
    lines = [str(found)]
    if lexicon is not None:
        lines.append(sense_table(found, name_senses(found, network, tokenizer, lexicon, tokens)))
    if output is not None and state.is_main_process:
        found.compressed(storage).save_pretrained(output)  # type: ignore[arg-type]
        lines.append(f"Saved in {output}.")
    _say("\n".join(lines))


def _load(name: str, revision: str | None, trust_remote_code: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of the class that its checkpoint was saved from, so that its task head is kept, and its tokenizer."""
    settings = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name, **settings)
    architecture = (config.architectures or ["AutoModel"])[0]
    # Code that comes with the model is reached through the automatic class it is registered for.
    registered = getattr(config, "auto_map", {}).items() if trust_remote_code else ()
    wanted = next((auto for auto, target in registered if str(target).endswith(f".{architecture}")), architecture)
    if not hasattr(transformers, wanted):
        raise ValueError(f"transformers has no model class {architecture!r}; --trust-remote-code runs the model's own.")
    model = getattr(transformers, wanted).from_pretrained(name, **settings)
    return model.eval(), AutoTokenizer.from_pretrained(name, **settings)


def _refuse_same_folder(model: str, output: Path) -> None:
    if output.exists() and Path(model).exists() and output.samefile(model):
        raise ValueError(f"--output {output} is MODEL itself; name another folder.")


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path, done: RebuildReport, report: Path | None
) -> None:
    if this_process().is_main_process:
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
        update_model_card(output, done)
        if report is not None:
            report.write_text(done.to_json(), encoding="utf-8")


def _say(text: str) -> None:
    if this_process().is_main_process:
        typer.echo(text)
