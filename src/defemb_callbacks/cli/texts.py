"""Commands that read texts: calibrate sentence embeddings, find the senses of tokens."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from defemb_callbacks.cli.models import (
    Model,
    OutputFolder,
    Revision,
    Sources,
    TrustRemoteCode,
    echo,
    load_model,
    read_lines,
)
from defemb_callbacks.definitions import load_definitions
from defemb_callbacks.reporting.tables import text_table
from defemb_callbacks.senses import SenseConfig, build_sense_dictionary
from defemb_callbacks.senses.analysis import name_senses, sense_table, tokens_of_words
from defemb_callbacks.vocabulary.tokens import read_vocabulary
from defemb_callbacks.weights.distributed import this_process
from defemb_callbacks.weights.rows import table_shape


def calibrate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a sentence-transformers or transformers model.")],
    texts: Annotated[Path, typer.Argument(help="File with one text per line, like those to be compared.")],
    output: OutputFolder,
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
    lines = read_lines(texts)
    settings = {} if components is None else {"components": components}
    done = fit(model, lines, method, pooling=pooling, force=force, **settings)  # type: ignore[arg-type]
    done.model.save_pretrained(str(output))
    changes = [[name.replace("_", " "), f"{done.before[name]:.3f} → {done.after[name]:.3f}"] for name in done.after]
    echo("\n".join([done.advice.reason, "", textwrap.indent(text_table(changes), "  "), "", f"Saved in {output}."]))


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
    network, tokenizer = load_model(model, revision, trust_remote_code)
    tokens = tokens_of_words(read_vocabulary(tokenizer, table_shape(network)[0]), word or [])
    lexicon = load_definitions(definitions or "wordnet") if tokens else None
    state = this_process()
    network.to(state.device)
    found = build_sense_dictionary(network, tokenizer, read_lines(texts), config)
    lines = [str(found)]
    if lexicon is not None:
        lines.append(sense_table(found, name_senses(found, network, tokenizer, lexicon, tokens)))
    if output is not None and state.is_main_process:
        found.compressed(storage).save_pretrained(output)  # type: ignore[arg-type]
        lines.append(f"Saved in {output}.")
    echo("\n".join(lines))
