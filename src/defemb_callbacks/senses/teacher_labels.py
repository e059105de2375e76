"""The senses that a teacher selects for each token, as labels in a data set and in padded batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cache import cache_root, cached, fingerprint
from defemb_callbacks.embeddings.fingerprints import fingerprint_weights
from defemb_callbacks.progress import ProgressBar
from defemb_callbacks.reconstruction.backbone import backbone_of, evaluating
from defemb_callbacks.senses.dictionary import SenseDictionary
from defemb_callbacks.senses.layer import require_no_senses
from defemb_callbacks.senses.model import check_model

COLUMN, IGNORED = "sense_labels", -100
Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class WithSenseLabels:
    """Data collator that pads sense labels to the length of the other inputs."""

    collator: Collator
    left: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        labels = [row[COLUMN] for row in rows if COLUMN in row]  # evaluation rows have none
        batch = self.collator([{name: value for name, value in row.items() if name != COLUMN} for row in rows])
        if labels:
            length = batch["input_ids"].shape[1]
            padded = torch.full((len(labels), length), IGNORED)
            for position, label in enumerate(labels):
                padded[position, _span(len(label), length, self.left)] = torch.as_tensor(label)
            batch[COLUMN] = padded
        return batch


def _span(length: int, padded: int, left: bool) -> slice:
    return slice(padded - length, padded) if left else slice(0, length)


def teacher_senses(
    teacher: PreTrainedModel,
    dictionary: SenseDictionary,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 64,
) -> list[np.ndarray[Any, Any]]:
    """Senses that the teacher selects for each token of each row; the result is cached on disk.

    Args:
        teacher: The model that the dictionary was built from.
        dictionary: The teacher's sense dictionary.
        rows: Tokenized rows.
        tokenizer: The teacher's tokenizer, used for padding; the student's data collator is ignored, as it may change
            tokens.
        batch_size: Number of rows per forward pass.

    Returns:
        For each row, int64 labels as long as its `input_ids`: the index of the sense within its token, or -100 for
        padding and for tokens with fewer than two senses.

    Raises:
        ValueError: If the dictionary belongs to another model, or the states of the teacher are replaced with senses.
    """
    require_no_senses(teacher)
    check_model(dictionary, teacher)
    dictionary.to(teacher.device)
    rows = rows.select_columns([name for name in rows.column_names if name in _read_by(teacher)])
    content = _content(rows.with_format("numpy"))
    side = tokenizer.padding_side  # changes absolute positions
    key = fingerprint(dictionary.fingerprint, fingerprint_weights(teacher), side, *rows.column_names, content)

    def build() -> tuple[Tensor, Tensor]:
        return _choose(teacher, dictionary, rows, tokenizer, batch_size)

    def save(value: tuple[Tensor, Tensor], folder: Path) -> None:
        save_file(dict(zip(("labels", "lengths"), value, strict=True)), folder / "labels.safetensors")

    def load(folder: Path) -> tuple[Tensor, Tensor]:
        tensors = load_file(folder / "labels.safetensors")
        return tensors["labels"], tensors["lengths"]

    labels, lengths = cached(cache_root() / "sense_labels" / key, build, save, load)
    return [part.long().numpy() for part in labels.split(lengths.tolist())]


def _read_by(teacher: PreTrainedModel) -> Container[str]:
    return inspect.signature(backbone_of(teacher).forward).parameters


def _content(rows: Dataset) -> str:
    parts = []
    for batch in rows.iter(1024):
        for column in batch.values():
            parts += [np.asarray(value).tobytes() for value in column]
    return fingerprint(*parts)


def _choose(
    teacher: PreTrainedModel,
    dictionary: SenseDictionary,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Labels of all rows, concatenated, int32, and the length of each row."""
    collator = DataCollatorWithPadding(tokenizer)
    left = tokenizer.padding_side == "left"
    lengths = [len(ids) for ids in rows["input_ids"]]
    by_length: Sequence[int] = np.argsort(lengths, kind="stable")[::-1].tolist()  # to reduce padding
    labels: list[Tensor] = [torch.zeros(0, dtype=torch.int32)] * len(rows)
    with ProgressBar(len(rows), "Selecting the teacher's senses", "row") as progress:
        for start in range(0, len(rows), batch_size):
            batch = by_length[start : start + batch_size]
            inputs = collator([rows[row] for row in batch])
            ids, states = teacher_states(teacher, inputs)
            several = dictionary.numbers(ids) > 1
            if "attention_mask" in inputs:
                several &= inputs["attention_mask"].to(ids.device, torch.bool)
            chosen = torch.full_like(ids, IGNORED)
            chosen[several] = dictionary.choose(states[several], ids[several])
            for row, found in zip(batch, chosen.int().cpu(), strict=True):
                labels[row] = found[_span(lengths[row], len(found), left)]
            progress.update(len(batch))
    return torch.cat(labels), torch.tensor(lengths)


def teacher_states(teacher: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Token ids, (batch, length), and the teacher's last hidden states, (batch, length, d), of a padded batch."""
    inputs = {name: tensor.to(teacher.device) for name, tensor in inputs.items() if name in _read_by(teacher)}
    with evaluating(teacher), torch.no_grad():
        states: Tensor = backbone_of(teacher)(**inputs, return_dict=True).last_hidden_state
    return inputs["input_ids"], states
