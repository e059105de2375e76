"""Commands that inspect, build and write token embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from transformers import AutoTokenizer

from defemb_callbacks.cli.models import (
    Model,
    OutputFolder,
    ReportFile,
    Revision,
    Sources,
    TrustRemoteCode,
    check_output,
    echo,
    load_model,
    read_lines,
    save_model,
)
from defemb_callbacks.cli.settings import APPLY_SETTINGS, BUILD_SETTINGS, DEFINE_SETTINGS, with_settings
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.constructor_config import PAPER_SETTINGS
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.embeddings.artifact import DefinitionEmbeddings
from defemb_callbacks.embeddings.build import build_definition_embeddings
from defemb_callbacks.new_tokens import define_new_tokens
from defemb_callbacks.new_tokens.proposals import propose_terms
from defemb_callbacks.reporting.inspection import as_text, inspect_embeddings, save_inspections
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.distributed import this_process
from defemb_callbacks.weights.rows import table_shape


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
        network, tokenizer = load_model(name, revision if name == model else None, trust_remote_code)
        inspections.append(inspect_embeddings(name, network, tokenizer, lexicon, config))
    if output is not None and this_process().is_main_process:
        save_inspections(output, inspections, projector=projector)
    if as_json:
        found = [inspection.to_dict() for inspection in inspections]
        echo(json.dumps(found if other else found[0], ensure_ascii=False, indent=1))
    else:
        saved = "" if output is None else f"\n\nSaved in {output}. Open {output / 'index.html'} in a browser."
        echo(as_text(inspections) + saved)


@with_settings(*BUILD_SETTINGS)
def build(
    model: Model,
    output: OutputFolder,
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
    network, tokenizer = load_model(model, revision, trust_remote_code)
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
    echo(
        f"{len(embeddings.ids):,} of {len(embeddings.vocabulary):,} tokens rebuilt from "
        f"{info['definitions_read']:,} definitions ({info['definitions']}){explained}.\n"
        f"Saved in {output}. Next: defemb apply {model} {output} --output DIR{table}{strategy}"
    )


@with_settings(*APPLY_SETTINGS)
def apply(
    model: Model,
    embeddings: Annotated[str, typer.Argument(help="Folder saved by `defemb build`, or Hub id.")],
    output: OutputFolder,
    force: Annotated[bool, typer.Option("--force", help="Rebuild a model even if it was rebuilt before.")] = False,
    report: ReportFile = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    *,
    config: DefinitionEMBConfig,
) -> None:
    """Write reconstructed embeddings into a model and save it, with its task head, as an ordinary checkpoint."""
    check_output(model, output)
    network, tokenizer = load_model(model, revision, trust_remote_code)
    ready = DefinitionEmbeddings.from_pretrained(embeddings)
    ready.check_tokenizer(read_vocabulary(tokenizer, table_shape(network, config.table)[0]))
    done = ready.apply(network, config, force=force)
    save_model(network, tokenizer, output, done, report)
    echo(f"{done}\n\nSaved in {output}.")


@with_settings(*BUILD_SETTINGS, *DEFINE_SETTINGS)
def define(
    model: Model,
    terms: Annotated[
        Path | None, typer.Argument(help="Glossary of the new terms (.tsv, .csv, .json, .jsonl).", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Output folder.", show_default=False)] = None,
    definitions: Sources = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="File with one text per line. Rows are trained on the texts that use their terms."),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Instead of TERMS: a file with one text per line. Propose words of it to add.")
    ] = None,
    proposals: Annotated[
        Path | None,
        typer.Option(help="With --corpus: write the proposed words to this .csv, or with their texts to this .jsonl."),
    ] = None,
    most: Annotated[int, typer.Option(help="With --corpus: maximum number of words.")] = 50,
    min_count: Annotated[int, typer.Option(help="With --corpus: minimum number of occurrences.")] = 5,
    report: ReportFile = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    *,
    config: DefinitionEMBConfig,
) -> None:
    """Add new terms to a model and its tokenizer, with embeddings built from their definitions, and save both.

    Terms that are already tokens are rebuilt. With --corpus, words that are worth adding are shown instead: frequent
    ones that are cut into several tokens and defined in the dictionary.
    """
    if corpus is not None:
        if terms is not None or output is not None:
            raise ValueError("--corpus proposes words without adding them. Leave out TERMS and --output.")
        if texts is not None:
            raise ValueError("--texts requires terms. Leave it out: --proposals FILE.jsonl contains texts of --corpus.")
        settings = {"revision": revision, "trust_remote_code": trust_remote_code}
        dictionary, lines = load_definitions(definitions or "wordnet"), read_lines(corpus)
        known = AutoTokenizer.from_pretrained(model, **settings)
        found = propose_terms(known, lines, dictionary, most=most, min_count=min_count)
        echo(str(found))
        if proposals is not None and this_process().is_main_process:
            found.save(proposals, lines, texts_per_term=config.texts_per_term)
            echo(f"\nSaved in {proposals}. Next: defemb define {model} {proposals} --output DIR")
        return
    if proposals is not None:
        raise ValueError("--proposals requires a corpus. Add --corpus FILE.")
    if terms is None or output is None:
        raise ValueError("Pass a glossary of terms and --output DIR; or --corpus FILE, to see which words to add.")
    check_output(model, output)
    lines = [] if texts is None else read_lines(texts)
    network, tokenizer = load_model(model, revision, trust_remote_code)
    network.to(this_process().device)
    done = define_new_tokens(network, tokenizer, terms, definitions or "wordnet", config, texts=lines)
    save_model(network, tokenizer, output, done, report)
    echo(f"{done}\n\nSaved in {output}.")
