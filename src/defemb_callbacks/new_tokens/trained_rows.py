"""Train some rows of the token tables: no other row moves, whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from defemb_callbacks.weights.adapters import adapter_kind, base_layer
from defemb_callbacks.weights.rows import embedding_weight, table_layers, table_shape
from defemb_callbacks.weights.sharding import reshard, whole_shape
from defemb_callbacks.weights.unwrapping import transformers_model

IN_DEEPSPEED = (
    "DeepSpeed trains copies of the weights, so that rows cannot be kept. Use DDP or FSDP2, or a LoRA adapter with "
    "trainable_token_indices."
)


class TrainedRows:
    """Keep all rows of a model's tables except some as they are, while the model is trained.

    Gradients of the other rows are set to zero when they are accumulated, so that neither the norm of the gradients nor
    the moments of the optimizer depend on them. Weight decay also moves rows without a gradient: `restore` writes them
    back after each step of the optimizer. The rows are bitwise those of the start. This holds for tied tables, separate
    output and decoder tables and the bias of the output layer, also inside DDP and FSDP2. It needs a copy of them.

    Args:
        model: The model, when its weights are where training keeps them: after it was wrapped or sharded.
        ids: The tokens whose rows are trained.

    Attributes:
        trained: Number of rows that are trained.
        kept: Number of rows that are not.

    Raises:
        ValueError: If there is no id, an id is not in the table, all tables are frozen, DeepSpeed trains copies of the
            weights, or the embeddings have adapters other than `modules_to_save`.
        TypeError: See `embedding_weight`.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=4, n_layer=1, n_head=1))
        >>> rows, before = TrainedRows(model, [8, 9]), model.lm_head.weight.detach().clone()
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        >>> ids = torch.tensor([[1, 2, 8]])
        >>> model(input_ids=ids, labels=ids).loss.backward()
        >>> optimizer.step()
        >>> rows.restore()
        >>> (model.lm_head.weight != before).any(dim=1).nonzero().flatten().tolist()
        [8, 9]
        >>> rows.release()
    """

    def __init__(self, model: nn.Module, ids: Iterable[int]) -> None:
        wanted = torch.tensor(sorted(set(ids)), dtype=torch.int64)
        size = table_shape(model)[0]
        if not len(wanted):
            raise ValueError("There are no rows to train. Pass the ids of the new tokens.")
        if int(wanted[0]) < 0 or int(wanted[-1]) >= size:
            raise ValueError(
                f"Token ids from {int(wanted[0])} to {int(wanted[-1])} do not fit a table of {size} rows. Pass the ids "
                "of the model's own tokenizer."
            )
        reshard(transformers_model(model))
        weights = _weights(model)
        self.trained, self.kept = len(wanted), size - len(wanted)
        self._tables = [_Table.of(weight, wanted) for weight in weights]
        self._hooks = [table.weight.register_post_accumulate_grad_hook(table.mask) for table in self._tables]

    def restore(self) -> None:
        """Write back the rows that are not trained. Call it after each step of the optimizer."""
        for table in self._tables:
            table.restore()

    def release(self) -> None:
        """Let all rows be trained again, and free the copies."""
        for hook in self._hooks:
            hook.remove()
        self._tables, self._hooks = [], []


@dataclass(frozen=True)
class _Table:
    """A table, or the bias of the output layer, with one entry a token.

    Attributes:
        weight: The parameter, maybe sharded.
        rows: (k,) int64, positions of the trained rows among those that this process holds.
        kept: Copy of the rows that this process holds.
    """

    weight: Tensor
    rows: Tensor
    kept: Tensor

    @classmethod
    def of(cls, weight: Tensor, ids: Tensor) -> _Table:
        first, number = 0, len(weight)
        if isinstance(weight, DTensor):
            shape, offsets = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
            first, number = offsets[0], shape[0]
        own = ids[(ids >= first) & (ids < first + number)] - first
        held = _held(weight)
        return cls(weight, own.to(held.device), held.clone())

    def mask(self, weight: Tensor) -> None:
        """Set the gradient of the other rows to zero."""
        assert weight.grad is not None
        _keep_only(_held(weight.grad), self.rows)

    @torch.no_grad()
    def restore(self) -> None:
        """Write back the other rows."""
        held = _held(self.weight)
        trained = held[self.rows]
        held.copy_(self.kept)
        held[self.rows] = trained


def _keep_only(tensor: Tensor, rows: Tensor) -> None:
    kept = tensor[rows]
    tensor.zero_()
    tensor[rows] = kept


def _held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, detached."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


def _weights(model: nn.Module) -> list[Tensor]:
    """The tables that are trained, and the bias of the output layer."""
    found: list[Tensor] = []
    for table, layer in table_layers(model).items():
        if adapter_kind(layer) in ("tokens", "low-rank"):
            raise ValueError(
                f"The {table} embeddings have an adapter, which trains rows of its own. Use trainable_token_indices, "
                "or remove the embeddings from target_modules."
            )
        found.append(embedding_weight(model, table))
    if any(hasattr(weight, "ds_id") or hasattr(weight, "_hp_mapping") for weight in found):
        raise ValueError(IN_DEEPSPEED)
    found = [weight for weight in found if weight.requires_grad]
    if not found:
        raise ValueError(
            "The embeddings are frozen, so that no row of them is trained. Call requires_grad_(True) of their weights "
            "before the optimizer is created."
        )
    inner = transformers_model(model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    bias = getattr(base_layer(head), "bias", None)
    if isinstance(bias, Tensor) and bias.requires_grad and whole_shape(bias)[0] == table_shape(model)[0]:
        found.append(bias)
    return list({id(weight): weight for weight in found}.values())
