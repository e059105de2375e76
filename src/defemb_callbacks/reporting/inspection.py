"""What can be said of the token embeddings of one model, and of several side by side."""

from __future__ import annotations

import os
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
from defemb_callbacks.metrics.catalog import OUTPUT, meaning_of, metrics_in
from defemb_callbacks.metrics.model_metrics import measure_embeddings
from defemb_callbacks.metrics.snapshot import TableSnapshot, watched_tokens
from defemb_callbacks.reporting.run_files import write_pictures
from defemb_callbacks.reporting.run_record import RunRecord
from defemb_callbacks.reporting.tensorboard_projector import save_projector
from defemb_callbacks.vocabulary.frequency import GROUPS, configured_rank, frequency_groups
from defemb_callbacks.vocabulary.lookup import definitions_of_tokens
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.config_record import read_record
from defemb_callbacks.weights.rows import whole_table

# 1 - cosine to the row of the other model, above which a token counts as rebuilt: more than the rounding of a 16-bit
# checkpoint, less than the smallest weight of a default rebuild.
REBUILT = 1e-4

# Of the config, what the measurements depend on.
SETTINGS = ("frequency", "group_edges", "ratings")


@dataclass(frozen=True)
class Inspection:
    """The token embeddings of one model, and what was found out about them.

    Attributes:
        name: of the model, as the user wrote it.
        table: (n, d) input embeddings, not copied.
        vocabulary: what the rows stand for.
        groups: token ids from `frequency_groups`.
        metrics: from `measure_embeddings`.
        dictionary: name of the dictionary.
        dictionary_words: how many words it has.
        glosses: the first definition of each token that has one, by id.
        applied: what `model.config.definition_emb` tells of a rebuild, if there was one.
        config: the settings that it was measured with.
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
        """Number of words, word pieces, numbers, …; the most numerous first."""
        return dict(Counter(reason or "word" for reason in self.vocabulary.reasons).most_common())

    @property
    def defined_words(self) -> int:
        """Number of words that the dictionary defines."""
        return sum(self.vocabulary.words[index] is not None for index in self.glosses)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, without the table."""
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
        """What a comparison says of the model besides its metrics."""
        words = self.kinds.get("word", 0)
        rebuilt = f"{self.applied['rebuilt']:,} rows ({self.applied['strategy']})" if self.applied else "no"
        return {
            "tokens": f"{len(self.vocabulary):,}",
            "numbers in an embedding": f"{self.table.shape[1]:,}",
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
    """Measure a model's token embeddings, and look its tokens up in a dictionary.

    Args:
        name: what to call the model.
        model: any model with token embeddings; it is not changed.
        tokenizer: its own.
        lexicon: from `load_definitions`.
        config: `frequency`, `group_edges` and `ratings`.

    Raises:
        FileNotFoundError, ValueError, TypeError: see `measure_embeddings`.
    """
    config = config or DefinitionEMBConfig()
    table = whole_table(model)
    vocabulary = read_vocabulary(tokenizer, len(table))
    found = definitions_of_tokens(vocabulary, lexicon, most=1)
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
    """The tokens that a rebuild has changed between the first model and another one.

    Only a model that says of itself that it was rebuilt is compared with one that says no such thing, or something
    else; they must have the same tokenizer and width.

    Returns:
        (m,) int64 ids whose rows point in another direction; `None` where there is nothing to compare.
    """
    first, *others = inspections
    changed = [
        _turned(first.table, other.table)
        for other in others
        if first.applied != other.applied
        and first.vocabulary.fingerprint == other.vocabulary.fingerprint
        and first.table.shape == other.table.shape
    ]
    return torch.stack(changed).any(dim=0).nonzero()[:, 0] if changed else None


def _turned(table: Tensor, other: Tensor) -> Tensor:
    rows = 1 << 14
    pairs = zip(table.split(rows), other.split(rows), strict=True)
    # Half the squared distance of unit vectors is 1 - cosine, and 0 where both are zero rows.
    return torch.cat([(unit_rows(a) - unit_rows(b)).square().sum(dim=1) / 2 > REBUILT for a, b in pairs])


def record_of(inspections: Sequence[Inspection]) -> RunRecord:
    """What the page and the pictures of one model, or of several side by side, show.

    Models may have different tokenizers: the words whose neighbours are shown are words of all of them.
    """
    first = inspections[0]
    names = short_names([inspection.name for inspection in inspections])
    rebuilt = rebuilt_tokens(inspections)
    token_of_word = [
        {word: index for index, word in enumerate(inspection.vocabulary.words) if word is not None}
        for inspection in inspections
    ]
    common = set.intersection(*(set(tokens) for tokens in token_of_word))
    # Of the words that all models know, those that were rebuilt, else those that the dictionary defines, else any.
    known = [index for index in first.vocabulary.word_ids.tolist() if first.vocabulary.words[index] in common]
    wanted = set(first.glosses) if rebuilt is None or not len(rebuilt) else set(rebuilt.tolist())
    candidates = torch.tensor([index for index in known if index in wanted] or known, dtype=torch.int64)
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
    """Write the page and the pictures of one model, or of several side by side, into a folder.

    Args:
        folder: made if need be.
        inspections: the first one is what the others are compared with.
        projector: also write files for TensorBoard's embedding projector, into `projector/`, a folder for each model.

    Returns:
        The paths written.

    Raises:
        ImportError: matplotlib is missing; names the pip line.
    """
    record = record_of(inspections)
    written = write_pictures(folder, record)
    if projector:
        for name, inspection in zip(record.snapshots, inspections, strict=True):
            into = folder / "projector" / name.replace("/", "--")
            marked = record.rebuilt_by_snapshot.get(name)
            written += save_projector(into, inspection.table, inspection.vocabulary, inspection.groups, marked)
    return written


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of paths and hub ids, as many as tell them apart.

    Example:
        >>> short_names(["org/bert", "runs/3/bert", "org/bert"])
        ['org/bert', '3/bert', 'org/bert (2)']
    """
    # A folder such as "." has a name, too; a hub id is none.
    parts = [PurePath(os.path.abspath(name) if os.path.exists(name) else name).parts for name in names]
    short: list[str] = []
    for own in parts:
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in parts if other != own):
            length += 1
        name = "/".join(own[-length:])
        again = sum(earlier == own for earlier in parts[: len(short)])
        short.append(f"{name} ({again + 1})" if again else name)
    return short


def as_text(inspections: Sequence[Inspection]) -> str:
    """One model's vocabulary, dictionary and metrics as text; of several, a table side by side."""
    return _one_as_text(inspections[0]) if len(inspections) == 1 else _several_as_text(inspections)


def _one_as_text(inspection: Inspection) -> str:
    size, words, defined = len(inspection.vocabulary), inspection.kinds.get("word", 0), inspection.defined_words
    lines = [f"{inspection.name}: {size:,} tokens"]
    lines += [f"  {kind:<20}{number:>9,}{number / size:>8.1%}" for kind, number in inspection.kinds.items()]
    lines += [
        "",
        f"{inspection.dictionary} ({inspection.dictionary_words:,} words) defines {defined:,} of {words:,} words "
        f"({defined / max(words, 1):.1%}), and {len(inspection.glosses):,} tokens in all.",
        "",
    ]
    metrics = list(dict.fromkeys(key.split("/")[1] for key in inspection.metrics))
    width = max([16, *(len(metric) + 2 for metric in metrics)])
    lines.append("group     " + "".join(f"{metric.replace('_', ' '):>{width}}" for metric in metrics))
    for group in dict.fromkeys(key.split("/")[2] for key in inspection.metrics):
        values = (inspection.metrics.get(f"defemb/{metric}/{group}") for metric in metrics)
        cells = ("" if value is None else f"{value:.4g}" for value in values)
        lines.append(f"{group:<10}" + "".join(f"{cell:>{width}}" for cell in cells))
    if inspection.applied:
        lines += ["", f"Rebuilt before: {inspection.applied['rebuilt']:,} rows ({inspection.applied['strategy']})."]
    return "\n".join(lines)


def _several_as_text(inspections: Sequence[Inspection]) -> str:
    names = short_names([inspection.name for inspection in inspections])
    every = [inspection.metrics for inspection in inspections]
    facts = [inspection.facts() for inspection in inspections]
    rows = [["", *names]]
    rows += [[label, *(about[label] for about in facts)] for label in facts[0]]
    for metric in metrics_in(every) + metrics_in(every, OUTPUT):
        meaning = meaning_of(metric)
        title = f"{meaning.title} of the output embeddings" if metric.startswith(OUTPUT) else meaning.title
        rows += [[""], [f"{title} ({meaning.direction})"]]
        for group in ("all", *GROUPS):
            values = [figures.get(f"defemb/{metric}/{group}") for figures in every]
            if any(value is not None for value in values):
                cells = ["" if value is None else meaning.write(value) for value in values]
                for number, value in enumerate(values[1:], 1):
                    if values[0] is not None and value is not None:
                        cells[number] += f"  {meaning.verdict(values[0], value):<6}"
                rows.append([f"  {group}", *cells])
    widths = [max(len(row[column]) for row in rows if len(row) > 1) for column in range(len(names) + 1)]
    lines = []
    for heading, *cells in rows:
        aligned = (f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=False))
        lines.append(f"{heading:<{widths[0]}}{''.join(aligned)}".rstrip() if cells else heading)
    rebuilt = rebuilt_tokens(inspections)
    if rebuilt is not None:
        lines += ["", f"{len(rebuilt):,} tokens have other embeddings than in {names[0]}."]
    return "\n".join(lines)
