"""Measure the token embeddings of one model, or compare those of several models."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.definitions import Lexicon
from defemb_callbacks.metrics.blocks import unit_rows
from defemb_callbacks.metrics.catalog import OUTPUT, metric_of, metrics_in
from defemb_callbacks.metrics.model_metrics import measure_embeddings
from defemb_callbacks.metrics.snapshot import TableSnapshot, watched_tokens
from defemb_callbacks.reporting.page import write_pictures
from defemb_callbacks.reporting.run_record import RunRecord
from defemb_callbacks.reporting.tables import text_table
from defemb_callbacks.reporting.tensorboard_projector import save_projector
from defemb_callbacks.vocabulary.frequency import GROUPS, configured_rank, frequency_groups
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.config_record import read_record
from defemb_callbacks.weights.rows import whole_table

# Smallest 1 − cosine to the row of the other model at which a token counts as rebuilt: larger than the rounding error
# of a 16-bit checkpoint, smaller than what the smallest weight of a default rebuild causes.
REBUILT_DISTANCE = 1e-4

# Settings that the measurements depend on.
SETTINGS = ("frequency", "group_edges", "ratings")


@dataclass(frozen=True)
class Inspection:
    """The token embeddings of one model and their metrics.

    Attributes:
        name: Name or path of the model, as the user wrote it.
        table: Input embeddings, (n, d), not copied.
        vocabulary: The tokens of its rows.
        groups: Token ids by frequency group, from `frequency_groups`.
        metrics: Metrics from `measure_embeddings`.
        dictionary: Name of the dictionary.
        dictionary_words: Number of words in the dictionary.
        glosses: First definition of each token that has one, by token id.
        applied: The record of a rebuild in `model.config.definition_emb`, or `None`.
        config: Settings of the measurement.
    """

    name: str
    table: Tensor
    vocabulary: Vocabulary
    groups: dict[str, Tensor]
    metrics: dict[str, float]
    dictionary: str
    dictionary_words: int
    glosses: dict[int, str]
    applied: dict[str, Any] | None
    config: DefinitionEMBConfig

    @property
    def kinds(self) -> dict[str, int]:
        """Number of words, word pieces, numbers and other kinds of tokens, most frequent first."""
        return dict(Counter(reason or "word" for reason in self.vocabulary.reasons).most_common())

    @property
    def defined_words(self) -> int:
        """Number of words that the dictionary defines."""
        return sum(self.vocabulary.words[index] is not None for index in self.glosses)

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as plain JSON, without the table."""
        return {
            "model": self.name,
            "rebuilt": self.applied,
            "vocabulary": self.kinds,
            "dictionary": {
                "name": self.dictionary,
                "words": self.dictionary_words,
                "defined_words": self.defined_words,
                "defined_tokens": len(self.glosses),
            },
            "metrics": self.metrics,
        }

    def facts(self) -> dict[str, str]:
        """Facts for a comparison of models, by label; the metrics are not among them."""
        words = self.kinds.get("word", 0)
        rebuilt = f"{self.applied['rebuilt']:,} rows ({self.applied['strategy']})" if self.applied else "no"
        return {
            "tokens": f"{len(self.vocabulary):,}",
            "embedding width": f"{self.table.shape[1]:,}",
            "words": f"{words:,}",
            f"words in {self.dictionary}": f"{self.defined_words:,} ({self.defined_words / max(words, 1):.1%})",
            "rebuilt from definitions": rebuilt,
        }


def inspect_embeddings(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lexicon: Lexicon,
    config: DefinitionEMBConfig | None = None,
) -> Inspection:
    """Measure a model's token embeddings and look up its tokens in a dictionary.

    Args:
        name: What to call the model.
        model: Any model with token embeddings. It is not changed.
        tokenizer: The tokenizer of the model.
        lexicon: Dictionary from `load_definitions`.
        config: Settings; `frequency`, `group_edges` and `ratings` are used.

    Raises:
        FileNotFoundError: If the file of ratings does not exist.
        TypeError: If the table is not a floating-point tensor.
        ValueError: If the ratings cannot be read, or the table contains NaN or infinite values.
    """
    config = config or DefinitionEMBConfig()
    table = whole_table(model)
    vocabulary = read_vocabulary(tokenizer, len(table))
    found = definitions_of_tokens(vocabulary, lexicon, max_definitions=1)
    return Inspection(
        name=name,
        table=table,
        vocabulary=vocabulary,
        groups=frequency_groups(configured_rank(vocabulary, config), config.group_edges),
        metrics=measure_embeddings(model, tokenizer, lexicon, config),
        dictionary=lexicon.name,
        dictionary_words=len(lexicon),
        glosses={index: definitions[0].gloss for index, definitions in found.items()},
        applied=read_record(model),
        config=config,
    )


def rebuilt_tokens(inspections: Sequence[Inspection]) -> Tensor | None:
    """Find the tokens whose rows differ between the first model and the others because of a rebuild.

    Two models are compared only if their configs record different rebuilds, or one a rebuild and the other none, and
    if they have the same vocabulary and width.

    Returns:
        Ids of the tokens whose rows have different directions, (m,) int64, or `None` if no models can be compared.
    """
    first, *others = inspections
    changed = [
        _has_turned(first.table, other.table)
        for other in others
        if first.applied != other.applied
        and first.vocabulary.fingerprint == other.vocabulary.fingerprint
        and first.table.shape == other.table.shape
    ]
    return torch.stack(changed).any(dim=0).nonzero()[:, 0] if changed else None


def _has_turned(table: Tensor, other: Tensor) -> Tensor:
    rows = 1 << 14
    pairs = zip(table.split(rows), other.split(rows), strict=True)
    # Half the squared distance of unit vectors is 1 − cosine, and 0 for two zero rows.
    return torch.cat([(unit_rows(a) - unit_rows(b)).square().sum(dim=1) / 2 > REBUILT_DISTANCE for a, b in pairs])


def record_of(inspections: Sequence[Inspection]) -> RunRecord:
    """Collect what the page and the pictures of one model, or of a comparison of models, show.

    The models may have different tokenizers: neighbours are shown for words that all of them have as tokens.
    """
    first = inspections[0]
    names = short_names([inspection.name for inspection in inspections])
    rebuilt = rebuilt_tokens(inspections)
    token_of_word = [
        {word: index for index, word in enumerate(inspection.vocabulary.words) if word is not None}
        for inspection in inspections
    ]
    common = set.intersection(*(set(tokens) for tokens in token_of_word))
    # Words that all models have: preferably rebuilt ones, otherwise defined ones, otherwise any.
    known = [index for index in first.vocabulary.word_ids.tolist() if first.vocabulary.words[index] in common]
    preferred = set(first.glosses) if rebuilt is None or not len(rebuilt) else set(rebuilt.tolist())
    candidates = torch.tensor([index for index in known if index in preferred] or known, dtype=torch.int64)
    watched = watched_tokens(candidates, first.groups, first.vocabulary)
    words = [first.vocabulary.words[index] for index in watched.tolist()]
    snapshots = {}
    for name, inspection, tokens in zip(names, inspections, token_of_word, strict=True):
        snapshots[name] = TableSnapshot.take(
            inspection.table,
            inspection.groups,
            metrics=inspection.metrics,
            watched=torch.tensor([tokens[word] for word in words if word is not None], dtype=torch.int64),
            among=inspection.vocabulary.word_ids,
        )
    *others, last = names
    return RunRecord(
        title=f"Token embeddings of {', '.join(others)} and {last}" if others else f"Token embeddings of {last}",
        snapshots=snapshots,
        vocabulary=first.vocabulary,
        rebuilt=rebuilt,
        glosses={index: first.glosses[index] for index in watched.tolist() if index in first.glosses},
        vocabularies={name: inspection.vocabulary for name, inspection in zip(names, inspections, strict=True)},
        settings={name: getattr(first.config, name) for name in SETTINGS if getattr(first.config, name) is not None},
        facts={name: inspection.facts() for name, inspection in zip(names, inspections, strict=True)},
    )


def save_inspections(folder: Path, inspections: Sequence[Inspection], *, projector: bool = False) -> list[Path]:
    """Write the page and the pictures of one model, or of a comparison of models, and return their paths.

    Args:
        folder: Folder to write into; created if it does not exist.
        inspections: Inspections; the others are compared with the first one.
        projector: Also write files for TensorBoard's embedding projector, one folder for each model in `projector/`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    record = record_of(inspections)
    written = write_pictures(folder, record)
    if projector:
        for name, inspection in zip(record.snapshots, inspections, strict=True):
            into = folder / "projector" / name.replace("/", "--")
            rebuilt = record.rebuilt_by_snapshot.get(name)
            written += save_projector(into, inspection.table, inspection.vocabulary, inspection.groups, rebuilt)
    return written


def short_names(names: Sequence[str]) -> list[str]:
    """Shorten paths and hub ids to their last parts, as many as needed to distinguish them.

    Example:
        >>> short_names(["org/bert", "runs/3/bert", "org/bert"])
        ['org/bert', '3/bert', 'org/bert (2)']
    """
    # A path such as "." gets the name of its folder; hub ids are not paths.
    all_parts = [PurePath(os.path.abspath(name) if os.path.exists(name) else name).parts for name in names]
    short: list[str] = []
    for parts in all_parts:
        length = 1
        while length < len(parts) and any(other[-length:] == parts[-length:] for other in all_parts if other != parts):
            length += 1
        name = "/".join(parts[-length:])
        repeated = sum(earlier == parts for earlier in all_parts[: len(short)])
        short.append(f"{name} ({repeated + 1})" if repeated else name)
    return short


def as_text(inspections: Sequence[Inspection]) -> str:
    """Format one model's vocabulary, dictionary and metrics, or a comparison of several models, as text."""
    return _describe(inspections[0]) if len(inspections) == 1 else _compare(inspections)


def _describe(inspection: Inspection) -> str:
    size, words, defined = len(inspection.vocabulary), inspection.kinds.get("word", 0), inspection.defined_words
    kinds = [[kind, f"{number:,}", f"{number / size:.1%}"] for kind, number in inspection.kinds.items()]
    names = list(dict.fromkeys(key.split("/")[1] for key in inspection.metrics))
    rows = []
    for group in dict.fromkeys(key.split("/")[2] for key in inspection.metrics):
        values = (inspection.metrics.get(f"defemb/{name}/{group}") for name in names)
        rows.append([group, *("" if value is None else f"{value:.4g}" for value in values)])
    blocks = [
        f"{inspection.name}: {size:,} tokens\n{textwrap.indent(text_table(kinds), '  ')}",
        f"{inspection.dictionary} ({inspection.dictionary_words:,} words) defines {defined:,} of {words:,} words "
        f"({defined / max(words, 1):.1%}), and {len(inspection.glosses):,} tokens in all.",
        text_table(rows, ["group", *(name.replace("_", " ") for name in names)]),
    ]
    if inspection.applied:
        blocks.append(f"Rebuilt: {inspection.applied['rebuilt']:,} rows ({inspection.applied['strategy']}).")
    return "\n\n".join(blocks)


def _compare(inspections: Sequence[Inspection]) -> str:
    names = short_names([inspection.name for inspection in inspections])
    metrics = [inspection.metrics for inspection in inspections]
    facts = [inspection.facts() for inspection in inspections]
    rows = [[label, *(of_model[label] for of_model in facts)] for label in facts[0]]
    for name in metrics_in(metrics) + metrics_in(metrics, OUTPUT):
        metric = metric_of(name)
        title = f"{metric.title} of the output embeddings" if name.startswith(OUTPUT) else metric.title
        rows += [[""], [f"{title} ({metric.direction})"]]
        for group in ("all", *GROUPS):
            first, *others = (of_model.get(f"defemb/{name}/{group}") for of_model in metrics)
            if first is None and all(value is None for value in others):
                continue
            cells = ["" if value is None else metric.format_value(value) for value in (first, *others)]
            for number, value in enumerate(others, 1):
                if first is not None and value is not None:
                    cells[number] += f"  {metric.compare(first, value):<6}"
            rows.append([f"  {group}", *cells])
    table, rebuilt = text_table(rows, ["", *names]), rebuilt_tokens(inspections)
    if rebuilt is None:
        return table
    return f"{table}\n\n{len(rebuilt):,} tokens have different embeddings than in {names[0]}."
