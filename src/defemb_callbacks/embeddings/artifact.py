"""Definition embeddings as a value, and its files: saved, loaded, shared on the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.config import DefinitionEMBConfig
from defemb_callbacks.embeddings.apply import apply_embeddings, chosen_tokens
from defemb_callbacks.hub import HubArtifact
from defemb_callbacks.reporting.summary import RebuildReport
from defemb_callbacks.vocabulary.tokens import Vocabulary
from defemb_callbacks.weights.rows import check_rows

FORMAT = 1
TENSORS, DESCRIPTION = "definition_embeddings.safetensors", "definition_embeddings.json"
MODEL_CARD = Path(__file__).with_name("model_card.md")


@dataclass(frozen=True)
class DefinitionEmbeddings(HubArtifact, library_name="defemb_callbacks", tags=["definition-emb"]):
    """Embeddings reconstructed from definitions, for the tokens of one vocabulary.

    The rows are kept as they were predicted. `apply` decides how much of them enters a model.

    Attributes:
        ids: (n,) int64, the tokens with a definition, in ascending order.
        rows: (n, d) float32, their vectors, in the space of the table that they were fitted to.
        vocabulary: The tokens that the ids refer to.
        pairs: (m, 2) int64, ids of words that the dictionary relates, for `relation_auc`.
        info: How the embeddings were built; plain JSON.
        feature_map: (F + 1, d) float32, the ridge solution that maps features of a definition to a row, which gives
            rows to words outside the vocabulary; `None` for the rows of a learned constructor.
        texts: Token ids of some definitions as running text, on which a language model's predictions are measured.

    Raises:
        ValueError: If ids, rows, pairs or map do not fit each other, or rows contain NaN or infinity.

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
    texts: tuple[tuple[int, ...], ...] = ()

    kind: ClassVar[str] = "definition embeddings"
    files: ClassVar[tuple[str, ...]] = (DESCRIPTION, TENSORS)

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.dtype != torch.float32:
            raise ValueError(f"`rows` must be (n, d) float32, got {tuple(self.rows.shape)} {self.rows.dtype}.")
        size = len(self.vocabulary)
        check_rows(self.ids, self.rows, size=size, width=self.rows.shape[1])
        pairs = self.pairs
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64:
            raise ValueError(f"`pairs` must be (m, 2) int64, got {tuple(pairs.shape)} {pairs.dtype}.")
        if len(pairs) and (int(pairs.min()) < 0 or int(pairs.max()) >= size):
            raise ValueError(
                f"`pairs` must contain ids from 0 to {size - 1}, got ids from {int(pairs.min())} to {int(pairs.max())}."
            )
        mapping = self.feature_map
        if mapping is not None and (mapping.ndim != 2 or mapping.shape[1] != self.rows.shape[1]):
            raise ValueError(f"`feature_map` must be (F + 1, {self.rows.shape[1]}), got {tuple(mapping.shape)}.")
        used = [token for text in self.texts for token in text]
        if used and not 0 <= min(used) <= max(used) < size:
            raise ValueError(f"`texts` must contain ids from 0 to {size - 1}, got ids from {min(used)} to {max(used)}.")

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
        look: Callable[[Tensor, dict[str, float]], None] | None = None,
    ) -> RebuildReport:
        """Write the rows into a model's table: by default the input table and an output table that is tied to it.

        A record of the rebuild is kept in `model.config.definition_emb` and saved with the checkpoint, so that no model
        is rebuilt twice. If a check fails, the model is not changed.

        Args:
            model: The model, or one with the same table, e.g. with another task head.
            config: Strategy and weights; default settings if `None`.
            counts: (vocabulary,) int64, token counts of the training data, for `frequency="training_data"` and
                `only_training_tokens=True`.
            force: Whether to rebuild a model that was rebuilt before.
            look: Called with the table and its metrics before any row is written, for example to draw it. The table
                must not be kept: it is the model's own.

        Returns:
            The rebuilt and the skipped tokens, and the metrics before and after.

        Raises:
            ValueError: If the model has another vocabulary or width or was rebuilt before, the rows were built for
                another table, or counts are missing.
            TypeError: If the model has no floating-point embedding table.
        """
        return apply_embeddings(self, model, config or DefinitionEMBConfig(), counts=counts, force=force, look=look)

    def chosen(self, config: DefinitionEMBConfig, counts: Tensor | None = None) -> Tensor:
        """Return the tokens whose rows `apply` writes with this config: (m,) int64, in the order of `ids`.

        Args:
            config: Settings of the rebuild.
            counts: (vocabulary,) int64, token counts of the training data.

        Raises:
            ValueError: If the config needs counts and they are missing or do not fit the vocabulary.
        """
        return chosen_tokens(self, config, counts)

    def check_tokenizer(self, vocabulary: Vocabulary) -> None:
        """Check that a tokenizer has the tokens that the embeddings were built for.

        Args:
            vocabulary: The tokenizer's tokens.

        Raises:
            ValueError: If the tokens differ; the message names the first difference.
        """
        if vocabulary.fingerprint == self.vocabulary.fingerprint:
            return
        if len(vocabulary) != len(self.vocabulary):
            difference = f"it has {len(self.vocabulary)} entries, this one {len(vocabulary)}"
        else:
            pairs = zip(self.vocabulary.tokens, vocabulary.tokens, strict=True)
            index, (theirs, ours) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            difference = f"its token {index} is {theirs!r}, here it is {ours!r}"
        raise ValueError(
            f"These embeddings were built for another tokenizer: {difference}. Build the embeddings for this model."
        )

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the model card that `push_to_hub` uploads.

        Args:
            *args: Ignored.
            **kwargs: Further variables of the template.
        """
        # The path of a local model is of no use to others.
        info = {name: value for name, value in self.info.items() if name != "model" or not Path(value).exists()}
        return ModelCard.from_template(
            self._hub_mixin_info.model_card_data,
            template_path=str(MODEL_CARD),
            tokens=len(self.ids),
            vocabulary=len(self.vocabulary),
            width=self.rows.shape[1],
            info=info,
            **kwargs,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {"ids": self.ids, "rows": self.rows, "pairs": self.pairs}
        if self.feature_map is not None:
            tensors["feature_map"] = self.feature_map
        if self.texts:
            tensors["text_ids"] = torch.tensor([token for text in self.texts for token in text], dtype=torch.int64)
            tensors["text_lengths"] = torch.tensor([len(text) for text in self.texts], dtype=torch.int64)
        write_embeddings(save_directory, tensors, self.vocabulary, self.info)

    @classmethod
    def _read(cls, folder: Path) -> DefinitionEmbeddings:
        return cls(**read_embeddings(folder))


def write_embeddings(folder: Path, tensors: dict[str, Tensor], vocabulary: Vocabulary, info: dict[str, Any]) -> None:
    """Write embeddings into an existing folder.

    Args:
        folder: Folder to write to.
        tensors: `ids`, `rows`, `pairs`, and `feature_map` if there is one.
        vocabulary: The tokens that the ids refer to.
        info: How the embeddings were built; plain JSON.

    Raises:
        OSError: If the files cannot be written, e.g. because the disk is full.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    except SafetensorError as error:  # raised for a full disk as well
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
    """Read the arguments of `DefinitionEmbeddings` from a folder; its files are not trusted.

    Args:
        folder: Folder that contains both files.

    Raises:
        ValueError, TypeError, RecursionError, SafetensorError: If the files are damaged or have a newer format.
        KeyError: If a part is missing.
    """
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    if description["format"] > FORMAT:
        raise ValueError(f"format {description['format']} is newer than {FORMAT}. Update defemb-callbacks.")
    if fingerprint(folder / TENSORS) != description["tensors"]:
        raise ValueError(f"the checksum of {TENSORS} is wrong. Download or build the embeddings again.")
    tensors = load_file(folder / TENSORS)
    vocabulary = _read_vocabulary(description)
    if not isinstance(description["info"], dict):
        raise ValueError(f"`info` must be an object, got {description['info']!r}.")
    return {
        **{name: tensors[name] for name in ("ids", "rows", "pairs")},
        "vocabulary": vocabulary,
        "info": description["info"],
        "feature_map": tensors.get("feature_map"),
        "texts": _read_texts(tensors),
    }


def _read_texts(tensors: dict[str, Tensor]) -> tuple[tuple[int, ...], ...]:
    if "text_ids" not in tensors:
        return ()
    ids, lengths = tensors["text_ids"], tensors["text_lengths"]
    if ids.ndim != 1 or lengths.ndim != 1 or (lengths < 1).any() or int(lengths.sum()) != len(ids):
        raise ValueError("`text_ids` and `text_lengths` do not fit each other.")
    return tuple(tuple(text.tolist()) for text in ids.split(lengths.tolist()))


def _read_vocabulary(description: dict[str, Any]) -> Vocabulary:
    columns = [description[name] for name in ("tokens", "words", "reasons")]
    allowed = (str, type(None))
    if not all(isinstance(column, list) and all(isinstance(text, allowed) for text in column) for column in columns):
        raise ValueError("`tokens`, `words` and `reasons` must be lists of strings.")
    if None in columns[0] or len(set(map(len, columns))) > 1 or not isinstance(description["uncased"], bool):
        raise ValueError("`tokens`, `words` and `reasons` do not fit each other.")
    tokens, words, reasons = map(tuple, columns)
    return Vocabulary(tokens, words, reasons, description["uncased"])
