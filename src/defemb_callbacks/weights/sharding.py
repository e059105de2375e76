"""A weight that is spread over processes: its shape, its whole, and writing rows into it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_utils import is_fsdp_enabled

from defemb_callbacks.weights.distributed import this_process


def is_sharded(weight: Tensor) -> bool:
    """Whether a process holds a part of a weight only: FSDP2's or tensor parallelism's (DTensor), or ZeRO-3's.

    Example:
        >>> is_sharded(torch.zeros(2, 3))
        False
    """
    return isinstance(weight, DTensor) or _is_partitioned(weight)


def whole_shape(weight: Tensor) -> torch.Size:
    """The shape of all parts together.

    Example:
        >>> whole_shape(torch.zeros(2, 3))
        torch.Size([2, 3])
    """
    return torch.Size(weight.ds_shape) if _is_partitioned(weight) else weight.shape  # type: ignore[attr-defined]


def same_weight(one: Tensor, other: Tensor) -> bool:
    """Whether two weights are tied: one parameter, or, after some wrappers, one memory.

    Example:
        >>> weight = torch.zeros(2, 3)
        >>> same_weight(weight, weight.detach()), same_weight(weight, weight.clone())
        (True, False)
    """
    if one is other:
        return True
    # The memory of sharded and of missing weights says nothing: a process may hold no row of either.
    if is_sharded(one) or is_sharded(other) or one.is_meta or other.is_meta:
        return False
    return one.data_ptr() == other.data_ptr()


def whole(weight: Tensor) -> Tensor:
    """All of a weight, detached, in its own type; the weight itself, not a copy, where this process holds all of it.

    Of a sharded weight every process of the launch must ask at once, as the parts are exchanged.
    """
    if isinstance(weight, DTensor):
        # Shards that are offloaded to the CPU are exchanged on the devices of the mesh.
        return weight.detach().to(weight.device_mesh.device_type).full_tensor()  # type: ignore[attr-defined]
    if _is_partitioned(weight):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return weight.detach()


@torch.no_grad()
def write_into(weight: Tensor, ids: Tensor, rows: Tensor) -> None:
    """Overwrite rows of a weight on every process, and of the float32 copy that DeepSpeed's optimizer trains.

    Every process must call it at once with the same rows, in the weight's own type.

    Args:
        weight: (vocabulary, d), whole or sharded; on the meta device it is awaited, see `awaits_main_process`.
        ids: (n,) int64.
        rows: (n, d).
    """
    if weight.is_meta:  # the main process has them, and will send them with the rest of the model
        return
    if isinstance(weight, DTensor):
        # Whatever the placements and however uneven the shards: torch itself shares the new table out.
        table = whole(weight).clone()
        table.index_copy_(0, ids.to(table.device), rows.to(table.device))
        shared_out = distribute_tensor(table, weight.device_mesh, weight.placements)
        weight.copy_(shared_out.to(weight.device))
    elif _is_partitioned(weight):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            if this_process().is_main_process:
                weight.index_copy_(0, ids.to(weight.device), rows.to(weight.device))
    else:
        weight.index_copy_(0, ids.to(weight.device), rows.to(weight.device))
    _write_into_master_copy(weight, ids, rows)


def _write_into_master_copy(weight: Tensor, ids: Tensor, rows: Tensor) -> None:
    """ZeRO's optimizer steps on a float32 copy and overwrites the weight with it: rows that it lacks are lost."""
    # These marks are what DeepSpeed's own accessors look for.
    if not (hasattr(weight, "_hp_mapping") or hasattr(weight, "_z3_optimizer")) or not weight.requires_grad:
        return
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    master = safe_get_full_fp32_param(weight)
    master.index_copy_(0, ids.to(master.device), rows.to(master.device, master.dtype))
    safe_set_full_fp32_param(weight, master)


def awaits_main_process(weight: Tensor) -> bool:
    """Whether the main process alone has a weight yet, and will share it out when the model is prepared.

    That is what FSDP's `cpu_ram_efficient_loading` does, accelerate's default: elsewhere, the weights of
    `from_pretrained` are on the meta device until then.

    Example:
        >>> awaits_main_process(torch.zeros(2, 3))
        False
    """
    return is_fsdp_enabled() and not isinstance(weight, DTensor) and this_process().num_processes > 1


def from_main_process(weight: Tensor) -> Tensor:
    """What the main process holds of a weight, on all processes, on the CPU; each must ask at once."""
    process = this_process()
    sent = weight.detach() if process.is_main_process else torch.empty(weight.shape, dtype=weight.dtype)
    return broadcast(sent.to(process.device, copy=True)).cpu()


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All weights of a model that ZeRO-3 has shared out, on every process, to be read; others are as they are."""
    partitioned = [weight for weight in model.parameters() if _is_partitioned(weight)]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned):
        yield


def reshard(model: nn.Module) -> None:
    """Let FSDP2 give up the whole weights that it keeps after an evaluation: its shards are what is trained."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _is_partitioned(weight: Tensor) -> bool:
    # ZeRO-3 empties what it has shared out; inside a gather the weight is whole.
    return hasattr(weight, "ds_id") and not weight.numel()
