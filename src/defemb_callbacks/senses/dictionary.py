"""Sense vectors per token, and the selection among them."""

from __future__ import annotations

import warnings
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from safetensors import SafetensorError
from torch import Tensor, nn

from defemb_callbacks.cache import fingerprint
from defemb_callbacks.senses.config import Similarity
from defemb_callbacks.senses.storage import Storage, compress, pack, read_senses, write_senses
from defemb_callbacks.vocabulary.tokens import Vocabulary

_MODEL_CARD = Path(__file__).with_name("model_card.md")

_GATHERED = 1 << 22  # numbers of gathered vectors in memory at once, on devices without sparse products


class SenseDictionary(
    nn.Module, ModelHubMixin, library_name="defemb_callbacks", tags=["word-senses", "knowledge-distillation"]
):
    """Sense vectors of the tokens of one model.

    The senses of token `t` are the rows `offsets[t]` to `offsets[t + 1]` of `vectors`; a token may have none. The
    dictionary is a module without parameters or buffers: it moves with a model but stays in float32, is not part of the
    model's checkpoints, and is not broadcast by DDP. `build_sense_dictionary` builds one from a model and texts.

    Source: Wang, Zaki, Kollias, Kalantzis, arXiv 2504.06036.

    Args:
        offsets: Shape (vocabulary + 1,), int64.
        vectors: Shape (senses, d), float32.
        counts: Shape (senses,), int64; number of samples that each sense is the mean of.
        vocabulary: The tokens.
        similarity: How a sense is selected for a state: `"dot"` (the paper), `"cosine"`, or `"euclidean"` (nearest).
        storage: How the vectors are stored, see `compressed`.
        info: How the dictionary was built; plain JSON.

    Raises:
        ValueError: If the tensors have the wrong shape or dtype, or contain NaN or infinity.

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
        _check_tensors(offsets, vectors, counts, vocabulary)
        self.offsets, self.vectors, self.counts, self.lengths = offsets, vectors, counts, vectors.norm(dim=1)
        self.vocabulary, self.similarity, self.storage, self.info = vocabulary, similarity, storage, info or {}
        self.most_senses = int(offsets.diff().max())

    def extra_repr(self) -> str:
        """Number of senses and tokens, and the width."""
        tokens = int((self.offsets.diff() > 0).sum())
        return f"{len(self.vectors):,} senses of {tokens:,} of {len(self.vocabulary):,} tokens, width {self.width}"

    @property
    def width(self) -> int:
        """Width d of the vectors."""
        return self.vectors.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the senses, the tokens and the similarity."""
        tensors = (tensor.cpu().numpy().tobytes() for tensor in (self.offsets, self.vectors))
        return fingerprint(*tensors, self.vocabulary.fingerprint, self.similarity)

    def numbers(self, token_ids: Tensor) -> Tensor:
        """Number of senses of each token, int64, in the shape of `token_ids`."""
        return self.offsets[token_ids + 1] - self.offsets[token_ids]

    def scores(self, states: Tensor, token_ids: Tensor) -> Tensor:
        """Score each sense of a state's token; differentiable with respect to the states.

        Args:
            states: Shape (n, d), floating point.
            token_ids: Shape (n,), int64.

        Returns:
            Shape (n, `most_senses`), float32. With `similarity="dot"` these are dot products; with `"cosine"`, dot
            products divided by the norm of the sense, which rank senses like cosines; with `"euclidean"`, dot products
            minus half the squared norm, which rank senses by distance. Entries beyond the senses of a token are -inf.
        """
        number = self.numbers(token_ids)
        row = torch.repeat_interleave(number)
        ends = number.cumsum(0)
        column = torch.arange(len(row), device=row.device) - (ends - number)[row]
        sense = self.offsets[token_ids][row] + column
        values = _sampled_products(states.float(), self.vectors, torch.nn.functional.pad(ends, (1, 0)), sense)
        if self.similarity == "cosine":
            values = values / self.lengths[sense].clamp(min=torch.finfo(torch.float32).tiny)
        elif self.similarity == "euclidean":
            values = values - self.lengths[sense].square() / 2
        scores = values.new_full((len(states), self.most_senses), -torch.inf)
        return scores.index_put((row, column), values)

    @torch.no_grad()
    def choose(self, states: Tensor, token_ids: Tensor) -> Tensor:
        """Index of the best sense of each state within its token, (n,) int64; -1 for a token without senses."""
        if not len(self.vectors):
            return torch.full_like(token_ids, -1)
        best = self.scores(states, token_ids).argmax(dim=1)
        return torch.where(self.numbers(token_ids) > 0, best, -1)

    def lookup(self, states: Tensor, token_ids: Tensor) -> Tensor:
        """Replace each state with the best sense of its token; states of tokens without senses are unchanged.

        Args:
            states: Shape (…, d), floating point.
            token_ids: Shape (…), int64.

        Returns:
            Shape (…, d), in the dtype of `states`. The gradient with respect to `states` is the identity
            (straight-through estimator).

        Raises:
            ValueError: If the shapes do not match each other or the width of the dictionary.
        """
        if states.shape[-1] != self.width or states.shape[:-1] != token_ids.shape:
            raise ValueError(
                f"`states` must be (…, {self.width}) and `token_ids` (…), got {tuple(states.shape)} and "
                f"{tuple(token_ids.shape)}."
            )
        if not len(self.vectors):
            return states
        flat, ids = states.detach().reshape(-1, self.width), token_ids.reshape(-1)
        chosen = self.choose(flat, ids)
        senses = self.vectors[(self.offsets[ids] + chosen).clamp(min=0, max=len(self.vectors) - 1)].to(states.dtype)
        senses = torch.where((chosen >= 0)[:, None], senses, flat).view(states.shape)
        return senses + (states - states.detach()) if states.requires_grad else senses

    def compressed(self, storage: Storage, seed: int = 0) -> SenseDictionary:
        """Return the dictionary rounded to a smaller storage format, in which `save_pretrained` then writes it.

        Args:
            storage: `"float16"` or `"product"`, see `compress`.
            seed: Seed of the codebook.

        Raises:
            ValueError: If `storage` is unknown, or if product quantization is given a width that is not a multiple
                of 8.
        """
        vectors = compress(self.vectors.cpu(), storage, seed).to(self.vectors.device)
        settings: dict[str, Any] = {"similarity": self.similarity, "storage": storage, "info": self.info}
        return SenseDictionary(self.offsets, vectors, self.counts, self.vocabulary, **settings)

    @property
    def stored_bytes(self) -> dict[str, int]:
        """Size in bytes of each tensor that `save_pretrained` writes."""
        return {name: tensor.numel() * tensor.element_size() for name, tensor in self._stored().items()}

    def _stored(self) -> dict[str, Tensor]:
        # int32 suffices: there are far fewer than 2³¹ senses and samples.
        small = {name: getattr(self, name).to("cpu", torch.int32) for name in ("offsets", "counts")}
        return small | pack(self.vectors.cpu(), self.storage)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Model card of a saved dictionary; `kwargs` are passed to the template."""
        return ModelCard.from_template(self._hub_mixin_info.model_card_data, template_path=str(_MODEL_CARD), **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_senses(save_directory, self._stored(), self.vocabulary, self.similarity, self.storage, self.info)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | None = None, **download: Any
    ) -> SenseDictionary:
        if config is None or "files" not in config:
            raise FileNotFoundError(
                f"{model_id} contains no sense dictionary. Pass a folder or repository written by `save_pretrained`."
            )
        # The mixin adds constructor arguments that it read from the config; they must not be passed to the hub.
        download = {name: value for name, value in download.items() if name not in config}
        try:
            return cls(**read_senses(model_id, config, download))
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"The sense dictionary in {model_id} is invalid: {error}") from error

    def _apply(self, fn: Any, recurse: bool = True) -> SenseDictionary:
        # Follow a model's device, but not its dtype: `storage` determines the precision.
        device = fn(self.vectors[:0]).device
        for name in ("offsets", "vectors", "counts", "lengths"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def _check_tensors(offsets: Tensor, vectors: Tensor, counts: Tensor, vocabulary: Vocabulary) -> None:
    if vectors.ndim != 2 or vectors.dtype != torch.float32:
        raise ValueError(f"`vectors` must be (senses, d) float32, got {tuple(vectors.shape)} {vectors.dtype}.")
    if offsets.shape != (len(vocabulary) + 1,) or offsets.dtype != torch.int64:
        raise ValueError(
            f"`offsets` must be ({len(vocabulary) + 1},) int64, got {tuple(offsets.shape)} {offsets.dtype}."
        )
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(vectors) or bool((offsets.diff() < 0).any()):
        raise ValueError(f"`offsets` must increase from 0 to the number of senses, {len(vectors)}.")
    if counts.shape != (len(vectors),) or counts.dtype != torch.int64:
        raise ValueError(f"`counts` must be ({len(vectors)},) int64, got {tuple(counts.shape)} {counts.dtype}.")
    if not bool(vectors.isfinite().all()):
        raise ValueError("`vectors` contains NaN or infinity. Check the hidden states of the model.")


@torch.compiler.disable
def _sampled_products(states: Tensor, vectors: Tensor, starts: Tensor, sense: Tensor) -> Tensor:
    """Dot products of state i with the vectors `sense[starts[i] : starts[i + 1]]`, concatenated."""
    if _has_sampled_products(states.device.type):
        return _products(states, vectors, starts, sense)
    # Twenty times slower on a CPU: the vectors of each state are written to memory first.
    rows = torch.repeat_interleave(starts.diff())
    size = max(1, _GATHERED // vectors.shape[1])
    parts = zip(rows.split(size), sense.split(size), strict=True)
    return torch.cat([(states[row] * vectors[column]).sum(dim=1) for row, column in parts])


def _products(states: Tensor, vectors: Tensor, starts: Tensor, sense: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        size = (len(states), len(vectors))
        pattern = torch.sparse_csr_tensor(starts, sense, states.new_zeros(len(sense)), size, check_invariants=False)
    products: Tensor = torch.sparse.sampled_addmm(pattern, states, vectors.T, beta=0.0).values()
    return products.clone()  # torch.compile cannot continue with a view of a sparse tensor


@cache
def _has_sampled_products(device: str) -> bool:
    """Whether PyTorch implements `sampled_addmm` for a type of device; not for Apple's GPUs, for example."""
    one = torch.ones(1, 1, device=device)
    try:
        _products(one, one, torch.tensor([0, 1], device=device), torch.tensor([0], device=device))
    except RuntimeError:
        return False
    return True
