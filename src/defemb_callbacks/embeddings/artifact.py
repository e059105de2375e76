"""The rebuilt rows as a value: saved, loaded, shared, applied."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.config import APPLY_FIELDS, DefinitionEMBConfig
from defemb_callbacks.embeddings.blending import choose_tokens, written_rows
from defemb_callbacks.hub import artifact_folder
from defemb_callbacks.metrics import TableMeasure
from defemb_callbacks.reporting.summary import GroupSummary, RebuildReport
from defemb_callbacks.vocabulary.frequency import GROUPS, configured_rank, frequency_groups, rarity
from defemb_callbacks.vocabulary.tokens import Vocabulary
from defemb_callbacks.weights.adapters import advice_on_saving
from defemb_callbacks.weights.config_record import read_record, write_record
from defemb_callbacks.weights.rows import (
    INPUT,
    TableName,
    check_rows,
    embedding_layer,
    read_table,
    table_shape,
    transformers_model,
    whole_table,
    write_rows,
)

logger = logging.getLogger(__name__)
NOT_DEFINED, NOT_CHOSEN, NOT_IN_DATA = "not in the dictionary", "too frequent (alpha)", "not in the training data"


@dataclass(frozen=True)
class DefinitionEmbeddings:
    """Vectors reconstructed from definitions, for the tokens of one vocabulary.

    They are kept as the map gave them. How much of them enters a model is decided when they are applied.

    Attributes:
        ids: (n,) int64, the tokens that have a definition, in growing order.
        rows: (n, d) float32, their vectors, in the space of the table that the map was fitted on.
        vocabulary: the tokens that the ids count.
        pairs: (m, 2) int64, ids of words that the dictionary relates, for `relation_auc`.
        info: how they were made; plain JSON.
        feature_map: (F + 1, d) float32, the map of the closed form from features of a definition to a row, with which
            words that are no tokens yet get theirs; `None` for rows of a learned constructor.

    Raises:
        ValueError: ids, rows, pairs or map that do not fit each other, NaN or infinity.

    Example:
        >>> vocabulary = Vocabulary(("the", "cat"), ("the", "cat"), (None, None), uncased=True)
        >>> DefinitionEmbeddings(torch.tensor([1]), torch.ones(1, 4), vocabulary)
        DefinitionEmbeddings(1 of 2 tokens, width 4)
    """

    ids: Tensor
    rows: Tensor
    vocabulary: Vocabulary
    pairs: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.int64))
    info: dict[str, Any] = field(default_factory=dict)
    feature_map: Tensor | None = None

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.dtype != torch.float32:
            raise ValueError(f"rows must be (n, d) float32, got {tuple(self.rows.shape)} {self.rows.dtype}.")
        size = len(self.vocabulary)
        check_rows(self.ids, self.rows, size=size, width=self.rows.shape[1])
        pairs = self.pairs
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64:
            raise ValueError(f"pairs must be (m, 2) int64, got {tuple(pairs.shape)} {pairs.dtype}.")
        if len(pairs) and (int(pairs.min()) < 0 or int(pairs.max()) >= size):
            raise ValueError(f"pairs name tokens from {int(pairs.min())} to {int(pairs.max())}; there are {size}.")
        mapping = self.feature_map
        if mapping is not None and (mapping.ndim != 2 or mapping.shape[1] != self.rows.shape[1]):
            raise ValueError(f"feature_map must be (F + 1, {self.rows.shape[1]}), got {tuple(mapping.shape)}.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.ids)} of {len(self.vocabulary)} tokens, width {self.rows.shape[1]})"

    @cached_property
    def fingerprint(self) -> str:
        """Hex string of ids, rows and vocabulary."""
        return fingerprint(self.ids.numpy().tobytes(), self.rows.numpy().tobytes(), self.vocabulary.fingerprint)

    def apply(
        self,
        model: nn.Module,
        config: DefinitionEMBConfig | None = None,
        *,
        counts: Tensor | None = None,
        force: bool = False,
    ) -> RebuildReport:
        """Write the rows into a model's table, by default the input table and an output table that is tied to it.

        What was written is noted in `model.config.definition_emb`, which the checkpoint keeps, so that no model is
        rebuilt twice. Nothing is written if anything does not fit.

        Args:
            model: the model, or one with the same table, e.g. another task head.
            config: strategy and weights; default settings if None.
            counts: (vocabulary,) int64, token counts of the training data, for `frequency="training_data"` and
                `only_training_tokens=True`.
            force: rebuild although the model was rebuilt before.

        Returns:
            What was rebuilt and what was not and why, with the metrics before and after.

        Raises:
            ValueError: a model of another vocabulary or width, one that was rebuilt before, rows that were built for
                another table, or missing counts.
            TypeError: a model without a floating-point embedding table.
        """
        config = config or DefinitionEMBConfig()
        table = config.table
        built_for = self.info.get("table", INPUT)
        if built_for != table:
            raise ValueError(f"These embeddings were built for the {built_for} table; set table={built_for!r}.")
        self._check_shape(table_shape(model, table))
        if (earlier := read_record(model, table)) and not force:
            raise ValueError(
                f"This model's embeddings were rebuilt before (model.config.definition_emb: {earlier}). "
                "Load the original checkpoint, or pass force=True to rebuild what was rebuilt."
            )
        ids = self.chosen(config, counts)
        rank = configured_rank(self.vocabulary, config, counts)
        groups = frequency_groups(rank, config.group_edges)

        before = read_table(model, table)
        group_of_token = torch.zeros(len(rank), dtype=torch.int64)
        for number, name in enumerate(GROUPS):
            group_of_token[groups[name]] = number
        rows, weights = written_rows(
            config,
            old=before[ids.to(before.device)].cpu(),
            new=self.rows[torch.isin(self.ids, ids)],
            rarity=rarity(rank)[ids],
            groups=group_of_token[ids],
            centre=before[groups["all"].to(before.device)].double().mean(dim=0).cpu(),
        )
        measure = TableMeasure(groups, pairs=self.pairs)
        figures_before = measure.measure(before)
        write_rows(model, ids, rows, table)
        figures_after = measure.measure(whole_table(model, table))
        _warn_of_adapters(model, ids, table)

        settings = {name: getattr(config, name) for name in APPLY_FIELDS}
        applied = {
            "fingerprint": fingerprint(self.fingerprint, json.dumps(settings)),
            "strategy": config.strategy,
            "rebuilt": len(ids),
        }
        write_record(model, applied, table)
        weight_of_token = torch.zeros(len(rank), dtype=torch.float64)
        weight_of_token[ids] = weights
        return RebuildReport(
            groups={
                name: GroupSummary(
                    tokens=len(members),
                    defined=int(torch.isin(members, self.ids).sum()),
                    rebuilt=(rebuilt := int(torch.isin(members, ids).sum())),
                    weight=float(weight_of_token[members].sum()) / max(rebuilt, 1),
                )
                for name, members in groups.items()
            },
            skipped=self._skipped(ids, counts if config.only_training_tokens else None),
            before=figures_before,
            after=figures_after,
            info=self.info | {"settings": settings} | applied,
        )

    def _check_shape(self, shape: torch.Size) -> None:
        expected = (len(self.vocabulary), self.rows.shape[1])
        if tuple(shape) != expected:
            raise ValueError(
                f"These embeddings were built for a table of shape {expected}, the model's is {tuple(shape)}: "
                "another tokenizer, size or resized vocabulary. Build them for this model."
            )

    def chosen(self, config: DefinitionEMBConfig, counts: Tensor | None = None) -> Tensor:
        """The tokens whose rows `apply` writes with this config: (m,) int64, in the order of `ids`.

        Raises:
            ValueError: counts that are missing or do not fit the vocabulary.
        """
        rank = configured_rank(self.vocabulary, config, counts)
        allowed = None
        if config.only_training_tokens:
            if counts is None:
                raise ValueError("only_training_tokens=True needs the token counts of the training data: counts=...")
            if len(counts) != len(rank):
                raise ValueError(f"counts has shape {tuple(counts.shape)}; the vocabulary needs ({len(rank)},).")
            allowed = counts > 0
        return self.ids[choose_tokens(self.ids, rank, config.alpha, allowed)]

    def _skipped(self, ids: Tensor, counts: Tensor | None) -> dict[str, tuple[str, ...]]:
        defined, rebuilt = set(self.ids.tolist()), set(ids.tolist())
        skipped: dict[str, list[str]] = {}
        for index, (token, reason) in enumerate(zip(self.vocabulary.tokens, self.vocabulary.reasons, strict=True)):
            if index in rebuilt:
                continue
            if index not in defined:
                reason = reason or NOT_DEFINED
            else:
                reason = NOT_IN_DATA if counts is not None and not counts[index] else NOT_CHOSEN
            skipped.setdefault(reason, []).append(token)
        return {reason: tuple(tokens) for reason, tokens in skipped.items()}

    def check_tokenizer(self, vocabulary: Vocabulary) -> None:
        """Refuse a tokenizer with other tokens than these were built for: `ValueError` with the first difference."""
        if vocabulary.fingerprint == self.vocabulary.fingerprint:
            return
        if len(vocabulary) != len(self.vocabulary):
            difference = f"{len(self.vocabulary)} entries there, {len(vocabulary)} here"
        else:
            pairs = zip(self.vocabulary.tokens, vocabulary.tokens, strict=True)
            index, (there, here) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            difference = f"token {index} is {there!r} there, {here!r} here"
        raise ValueError(
            f"These embeddings were built for another tokenizer ({difference}). Build them for this model."
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `definition_embeddings.safetensors` and `definition_embeddings.json` into a folder.

        Raises:
            OSError: they cannot be written, e.g. as the disk is full.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"ids": self.ids, "rows": self.rows, "pairs": self.pairs}
        if self.feature_map is not None:
            tensors["feature_map"] = self.feature_map
        write_embeddings(folder, tensors, self.vocabulary, self.info)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> DefinitionEmbeddings:
        """Read embeddings from a folder, or from a model repository on the hub.

        Args:
            name_or_path: folder, or repository such as `"user/name"`.
            revision: branch, tag or commit on the hub.
            token: of a private repository.

        Raises:
            FileNotFoundError: the folder holds no such embeddings.
            ValueError: the files are damaged, of a newer format, or do not fit each other.
        """
        files = (DESCRIPTION, TENSORS)
        folder = artifact_folder(name_or_path, files, "definition embeddings", revision=revision, token=token)
        try:
            return cls(**read_embeddings(folder))
        except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
            raise ValueError(f"The definition embeddings in {name_or_path} cannot be used: {error}.") from error

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload to a model repository on the hub, made if need be; returns the address of the commit."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Definition embeddings"))


def _warn_of_adapters(model: nn.Module, ids: Tensor, table: TableName) -> None:
    """Of a PEFT model the adapter alone is saved: say so where it does not contain the rows."""
    inner = transformers_model(model)
    if not hasattr(inner, "peft_config"):
        return
    layer = embedding_layer(model, table)
    name = next(name for name, module in inner.named_modules() if module is layer).rpartition(".")[2]
    if advice := advice_on_saving(layer, name, ids):
        logger.warning("This is a PEFT model: %s", advice)


FORMAT = 1
TENSORS, DESCRIPTION = "definition_embeddings.safetensors", "definition_embeddings.json"


def write_embeddings(folder: Path, tensors: dict[str, Tensor], vocabulary: Vocabulary, info: dict[str, Any]) -> None:
    """Write embeddings into an existing folder.

    Args:
        folder: to write into.
        tensors: ids, rows, pairs, and the map if there is one.
        vocabulary: the tokens that the ids count.
        info: how they were made; plain JSON.

    Raises:
        OSError: they cannot be written, e.g. as the disk is full.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    except SafetensorError as error:  # its word for a full disk too
        raise OSError(f"{folder / TENSORS} cannot be written: {error}") from error
    description = {
        "format": FORMAT,
        "tensors": fingerprint(folder / TENSORS),
        "info": info,
        "uncased": vocabulary.uncased,
        "tokens": vocabulary.tokens,
        "words": vocabulary.words,
        "reasons": vocabulary.reasons,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")


def read_embeddings(folder: Path) -> dict[str, Any]:
    """The arguments of the `DefinitionEmbeddings` that `write_embeddings` has written, by anybody.

    Raises:
        ValueError, TypeError, RecursionError, SafetensorError: damaged files, or of a newer format.
        KeyError: something that is missing.
    """
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    if description["format"] > FORMAT:
        raise ValueError(f"format {description['format']} is newer than {FORMAT}; update defemb-callbacks")
    if fingerprint(folder / TENSORS) != description["tensors"]:
        raise ValueError(f"the checksum of {TENSORS} is wrong")
    tensors = load_file(folder / TENSORS)
    vocabulary = _described_vocabulary(description)
    if not isinstance(description["info"], dict):
        raise ValueError(f"info is {description['info']!r}, no object")
    return {
        **{name: tensors[name] for name in ("ids", "rows", "pairs")},
        "vocabulary": vocabulary,
        "info": description["info"],
        "feature_map": tensors.get("feature_map"),
    }


def _described_vocabulary(description: dict[str, Any]) -> Vocabulary:
    """A vocabulary as JSON has it, which anybody may have written."""
    columns = [description[name] for name in ("tokens", "words", "reasons")]
    allowed = (str, type(None))
    if not all(isinstance(column, list) and all(isinstance(text, allowed) for text in column) for column in columns):
        raise ValueError("tokens, words and reasons must be lists of text")
    if None in columns[0] or len(set(map(len, columns))) > 1 or not isinstance(description["uncased"], bool):
        raise ValueError("tokens, words and reasons do not fit each other")
    tokens, words, reasons = map(tuple, columns)
    return Vocabulary(tokens, words, reasons, description["uncased"])
