"""The senses of each token as vectors, and the choice among them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub import ModelHubMixin
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.embeddings.fingerprints import fingerprint_weights
from defemb_callbacks.senses.build import discover_senses, most_senses
from defemb_callbacks.senses.checks import check_model, check_tensors, check_tokenizer
from defemb_callbacks.senses.clustering import silhouette_score
from defemb_callbacks.senses.config import SenseConfig, Similarity
from defemb_callbacks.senses.layer import require_own_states
from defemb_callbacks.senses.sampling import plan_samples, tokenize_texts
from defemb_callbacks.senses.states import sampled_states, state_width
from defemb_callbacks.senses.storage import (
    MODEL_CARD,
    Storage,
    compress,
    pack,
    read_senses,
    sampled_products,
    write_senses,
)
from defemb_callbacks.vocabulary.tokens import Vocabulary, read_vocabulary
from defemb_callbacks.weights.distributed import this_process
from defemb_callbacks.weights.rows import embedding_weight

logger = logging.getLogger(__name__)


class SenseDictionary(
    nn.Module,
    ModelHubMixin,
    library_name="defemb_callbacks",
    tags=["word-senses", "knowledge-distillation"],
    model_card_template=MODEL_CARD,
):
    """Sense vectors of the tokens of one model.

    Token t has the senses from `offsets[t]` to `offsets[t + 1]`, perhaps none. The dictionary is a module without
    parameters and buffers: it moves with a model, but stays in float32, is no part of a model's checkpoints, and is not
    broadcast by DDP in each step.

    Source: Wang, Zaki, Kollias, Kalantzis, arXiv 2504.06036.

    Args:
        offsets: (vocabulary + 1,) int64.
        vectors: (senses, d) float32.
        counts: (senses,) int64, how many samples each sense is the mean of.
        vocabulary: the tokens.
        similarity: what chooses a sense of a state: "dot" (the paper), "cosine", or "euclidean" (the nearest).
        storage: how vectors are written, see `compressed`.
        info: how it was made; plain JSON.

    Raises:
        ValueError: tensors that do not fit each other, NaN or infinity.

    Example:
        >>> vocabulary = Vocabulary(("the", "bank"), ("the", "bank"), (None, None), uncased=True)
        >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> dictionary = SenseDictionary(torch.tensor([0, 0, 2]), vectors, torch.ones(2, dtype=torch.int64), vocabulary)
        >>> dictionary
        SenseDictionary(2 senses of 1 of 2 tokens, width 2)
        >>> dictionary.lookup(torch.tensor([[0.2, 0.9], [0.3, 0.3]]), torch.tensor([1, 0])).tolist()
        [[0.0, 1.0], [0.30000001192092896, 0.30000001192092896]]
    """

    offsets: Tensor
    vectors: Tensor
    counts: Tensor
    lengths: Tensor

    def __init__(
        self,
        offsets: Tensor,
        vectors: Tensor,
        counts: Tensor,
        vocabulary: Vocabulary,
        *,
        similarity: Similarity = "dot",
        storage: Storage = "float32",
        info: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_tensors(offsets, vectors, counts, vocabulary)
        self.offsets, self.vectors, self.counts, self.lengths = offsets, vectors, counts, vectors.norm(dim=1)
        self.vocabulary, self.similarity, self.storage, self.info = vocabulary, similarity, storage, info or {}
        self.most_senses = int(offsets.diff().max())

    @classmethod
    def build(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        config: SenseConfig | None = None,
        **overrides: Any,
    ) -> SenseDictionary:
        """Read texts with a model, and cluster the states of each token into its senses.

        Texts are read once. Memory is 4 bytes for each number of the states that are kept, at most `samples` of each
        token, and of the senses, and 12 bytes for each token of the texts (about 40 while it is drawn what is kept).
        The sum is logged, at level INFO, before the first text is read; clustering works on some hundred MB besides.
        The processes of a launch share the texts, and each gets the same dictionary, which a single one would give.

        Args:
            model: the (fine-tuned) teacher, with any head; it is not changed.
            tokenizer: the model's.
            texts: like those that the senses will be used on; a list, or a column of a `Dataset`.
            config: settings; default `SenseConfig()`.
            **overrides: single settings.

        Raises:
            TypeError: a single string, or a stream.
            ValueError: a setting outside its range, no text, a tokenizer that does not fit, a model that gives senses.
            ImportError: `rule="silhouette"` without scikit-learn.

        Example:
            >>> SenseDictionary.build(model, tokenizer, texts, senses=10)  # doctest: +SKIP
            SenseDictionary(19,214 senses of 5,310 of 30,522 tokens, width 384)
        """
        config = SenseConfig.resolve(config, overrides)
        if config.rule == "silhouette":
            silhouette_score()  # what is missing is told before texts are read
        require_own_states(model)
        vocabulary = read_vocabulary(tokenizer, len(embedding_weight(model)))
        tokenized = tokenize_texts(tokenizer, texts, config.max_length)
        plan = plan_samples(tokenized.ids, len(vocabulary), config.samples, config.seed)
        rows = int(plan.offsets[-1])
        senses = int(most_senses(plan.offsets.diff(), config).sum())
        logger.info(
            "Reading %s tokens of %s texts; %s states of %s different tokens are kept, for up to %s senses (%.2f GB).",
            *(f"{number:,}" for number in (len(tokenized.ids), len(texts), rows, int((plan.seen > 0).sum()), senses)),
            ((rows + senses) * state_width(model) * 4 + 12 * len(tokenized.ids)) / 1e9,
        )
        states = sampled_states(model, tokenized, plan, layer=config.layer, batch_size=config.batch_size)
        info = {
            "model": model.name_or_path,
            "weights": fingerprint_weights(model),
            "texts": len(texts),
            "tokens_read": len(tokenized.ids),
            "states_kept": rows,
        }
        return cls.of_states(states, plan.offsets, vocabulary, config, device=model.device, info=info)

    @classmethod
    def of_states(
        cls,
        states: Tensor,
        offsets: Tensor,
        vocabulary: Vocabulary,
        config: SenseConfig,
        *,
        device: torch.device | str = "cpu",
        info: dict[str, Any] | None = None,
    ) -> SenseDictionary:
        """Cluster ready states, as `discover_senses` takes them, on a device; every process of a launch gets the same.

        Args:
            states: (rows, d) float32, token by token, each token's in random order.
            offsets: (vocabulary + 1,) int64: token t has the rows from offsets[t] to offsets[t + 1].
            vocabulary: the tokens.
            config: settings of the clustering.
            device: where to compute.
            info: of the model and its texts.
        """
        senses = discover_senses(states, offsets, config, device)
        if this_process().num_processes > 1:  # devices may round differently
            senses = tuple(broadcast_object_list(list(senses)))
        info = {**(info or {}), "config": asdict(config)}
        return cls(*senses, vocabulary, similarity=config.similarity, info=info)

    def extra_repr(self) -> str:
        """Numbers of senses and tokens, and the width."""
        tokens = int((self.offsets.diff() > 0).sum())
        return f"{len(self.vectors):,} senses of {tokens:,} of {len(self.vocabulary):,} tokens, width {self.width}"

    @property
    def width(self) -> int:
        """Of the vectors."""
        return self.vectors.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """Hex string of the senses, the tokens, and what chooses among them."""
        tensors = (tensor.cpu().numpy().tobytes() for tensor in (self.offsets, self.vectors))
        return fingerprint(*tensors, self.vocabulary.fingerprint, self.similarity)

    def numbers(self, token_ids: Tensor) -> Tensor:
        """How many senses each of these tokens has, int64, in their shape."""
        return self.offsets[token_ids + 1] - self.offsets[token_ids]

    def scores(self, states: Tensor, token_ids: Tensor) -> Tensor:
        """How well each sense of its token fits each state; gradients reach the states.

        Args:
            states: (n, d) floating.
            token_ids: (n,) int64.

        Returns:
            (n, most senses of a token) float32: dot products; with `similarity="cosine"` these divided by the length of
            the sense, which orders senses as cosines do; with "euclidean" these less half of the length's square, which
            orders them as distances do. Minus infinity beyond the senses of the token.
        """
        number = self.numbers(token_ids)
        row = torch.repeat_interleave(number)
        ends = number.cumsum(0)
        column = torch.arange(len(row), device=row.device) - (ends - number)[row]
        sense = self.offsets[token_ids][row] + column
        values = sampled_products(states.float(), self.vectors, torch.nn.functional.pad(ends, (1, 0)), sense)
        if self.similarity == "cosine":
            values = values / self.lengths[sense].clamp(min=torch.finfo(torch.float32).tiny)
        elif self.similarity == "euclidean":
            values = values - self.lengths[sense].square() / 2
        scores = values.new_full((len(states), self.most_senses), -torch.inf)
        return scores.index_put((row, column), values)

    @torch.no_grad()
    def choose(self, states: Tensor, token_ids: Tensor) -> Tensor:
        """The best sense of each state, (n,) int64, counted within its token; -1 for a token without senses."""
        if not len(self.vectors):
            return torch.full_like(token_ids, -1)
        best = self.scores(states, token_ids).argmax(dim=1)
        return torch.where(self.numbers(token_ids) > 0, best, -1)

    def lookup(self, states: Tensor, token_ids: Tensor) -> Tensor:
        """Replace states by the best sense of their tokens; those of tokens without senses stay.

        Args:
            states: (…, d), floating.
            token_ids: (…) int64.

        Returns:
            (…, d) in the dtype of the states. The gradient is that of the states, as though nothing had been replaced
            (straight through).

        Raises:
            ValueError: states of another width, or shapes that do not fit.
        """
        if states.shape[-1] != self.width or states.shape[:-1] != token_ids.shape:
            raise ValueError(
                f"states of shape {tuple(states.shape)} and token ids of shape {tuple(token_ids.shape)} do not fit a "
                f"dictionary of width {self.width}"
            )
        if not len(self.vectors):
            return states
        flat, ids = states.detach().reshape(-1, self.width), token_ids.reshape(-1)
        chosen = self.choose(flat, ids)
        senses = self.vectors[(self.offsets[ids] + chosen).clamp(min=0, max=len(self.vectors) - 1)].to(states.dtype)
        senses = torch.where((chosen >= 0)[:, None], senses, flat).view(states.shape)
        return senses + (states - states.detach()) if states.requires_grad else senses

    def check_model(self, model: PreTrainedModel, *, force: bool = False) -> None:
        """Refuse a model whose states are not those that the senses were made of: `ValueError`.

        Accepted are the model itself, with any head, and a student that has learned from this dictionary; with `force`
        every model with as many tokens and states of the same width.
        """
        check_model(self, model, force=force)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer with other tokens than the dictionary was built with: `ValueError`."""
        check_tokenizer(self.vocabulary, tokenizer)

    def compressed(self, storage: Storage, seed: int = 0) -> SenseDictionary:
        """The dictionary as it will be read back when stored in less space; `save_pretrained` then writes it so.

        Args:
            storage: "float16", or "product", see `compress`.
            seed: of the codewords.

        Raises:
            ValueError: another storage, or a width that cannot be cut into parts of 8.
        """
        vectors = compress(self.vectors.cpu(), storage, seed).to(self.vectors.device)
        settings: dict[str, Any] = {"similarity": self.similarity, "storage": storage, "info": self.info}
        return SenseDictionary(self.offsets, vectors, self.counts, self.vocabulary, **settings)

    @property
    def stored_bytes(self) -> dict[str, int]:
        """Bytes of each tensor that `save_pretrained` writes."""
        return {name: tensor.numel() * tensor.element_size() for name, tensor in self._stored().items()}

    def _stored(self) -> dict[str, Tensor]:
        # 4 bytes count more senses and samples than memory holds.
        small = {name: getattr(self, name).to("cpu", torch.int32) for name in ("offsets", "counts")}
        return small | pack(self.vectors.cpu(), self.storage)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_senses(save_directory, self._stored(), self.vocabulary, self.similarity, self.storage, self.info)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | None = None, **download: Any
    ) -> SenseDictionary:
        if config is None or "files" not in config:
            raise FileNotFoundError(f"{model_id} holds no sense dictionary")
        # What the mixin has read from the config for the constructor is no business of the hub.
        download = {name: value for name, value in download.items() if name not in config}
        try:
            return cls(**read_senses(model_id, config, download))
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"The sense dictionary in {model_id} cannot be used: {error}.") from error

    def _apply(self, fn: Any, recurse: bool = True) -> SenseDictionary:
        # Of a model's .half() or .to("cuda") the senses follow the move only: counts of bytes are `storage`'s affair.
        device = fn(self.vectors[:0]).device
        for name in ("offsets", "vectors", "counts", "lengths"):
            setattr(self, name, getattr(self, name).to(device))
        return self
