"""Read and write weights that are sharded over processes by FSDP2, tensor parallelism or DeepSpeed ZeRO."""

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
    """Whether each process holds only a shard: FSDP2 and tensor parallelism (both `DTensor`), or ZeRO-3.

    Example:
        >>> is_sharded(torch.zeros(2, 3))
        False
    """
    return isinstance(weight, DTensor) or _is_partitioned(weight)


def whole_shape(weight: Tensor) -> torch.Size:
    """The shape of the unsharded weight.

    Example:
        >>> whole_shape(torch.zeros(2, 3))
        torch.Size([2, 3])
    """
    return torch.Size(weight.ds_shape) if _is_partitioned(weight) else weight.shape  # type: ignore[attr-defined]


def same_weight(one: Tensor, other: Tensor) -> bool:
    """Whether two weights are tied: the same parameter or, inside some wrappers, the same memory.

    Example:
        >>> weight = torch.zeros(2, 3)
        >>> same_weight(weight, weight.detach()), same_weight(weight, weight.clone())
        (True, False)
    """
    if one is other:
        return True
    # Addresses are uninformative for sharded and meta weights: a process may hold no row of either.
    if is_sharded(one) or is_sharded(other) or one.is_meta or other.is_meta:
        return False
    return one.data_ptr() == other.data_ptr()


def whole(weight: Tensor) -> Tensor:
    """The unsharded weight, detached, in its own dtype; not a copy if this process holds all of it.

    For a sharded weight this is a collective operation: all processes must call it.
    """
    if isinstance(weight, DTensor):
        # Shards offloaded to the CPU must be gathered on the devices of the mesh.
        return weight.detach().to(weight.device_mesh.device_type).full_tensor()  # type: ignore[attr-defined]
    if _is_partitioned(weight):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return weight.detach()


def shares_memory(table: Tensor, weight: Tensor) -> bool:
    """Whether a table from `whole` is the memory of the weight, not a gathered copy.

    Example:
        >>> weight = torch.zeros(2, 3)
        >>> shares_memory(whole(weight), weight), shares_memory(weight.clone(), weight)
        (True, False)
    """
    held = weight.to_local() if isinstance(weight, DTensor) else weight
    return table.untyped_storage().data_ptr() == held.untyped_storage().data_ptr()


@torch.no_grad()
def write_into(weight: Tensor, ids: Tensor, rows: Tensor) -> None:
    """Overwrite rows of a weight on every process, and in the float32 master copy of DeepSpeed's optimizer.

    A collective operation: all processes must call it with the same rows.

    Args:
        weight: (vocabulary, d), whole or sharded. Left alone on the meta device, see `awaits_main_process`.
        ids: (n,) int64.
        rows: (n, d), in the weight's dtype.
    """
    if weight.is_meta:  # the main process holds it and broadcasts it when the model is prepared
        return
    if isinstance(weight, DTensor):
        # torch redistributes the new table: this works for all placements and for uneven shards.
        table = whole(weight)
        if shares_memory(table, weight):  # replicated, not sharded
            table = table.clone()
        table.index_copy_(0, ids.to(table.device), rows.to(table.device))
        sharded = distribute_tensor(table, weight.device_mesh, weight.placements)
        weight.copy_(sharded.to(weight.device))
    elif _is_partitioned(weight):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            if this_process().is_main_process:
                weight.index_copy_(0, ids.to(weight.device), rows.to(weight.device))
    else:
        weight.index_copy_(0, ids.to(weight.device), rows.to(weight.device))
    _write_into_master_copy(weight, ids, rows)


def _write_into_master_copy(weight: Tensor, ids: Tensor, rows: Tensor) -> None:
    """Update ZeRO's float32 master copy: the optimizer overwrites the weight with it at every step."""
    # The attributes that DeepSpeed's own accessors check.
    if not (hasattr(weight, "_hp_mapping") or hasattr(weight, "_z3_optimizer")) or not weight.requires_grad:
        return
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    master = safe_get_full_fp32_param(weight)
    master.index_copy_(0, ids.to(master.device), rows.to(master.device, master.dtype))
    safe_set_full_fp32_param(weight, master)


def awaits_main_process(weight: Tensor) -> bool:
    """Whether only the main process holds a weight so far and will broadcast it when the model is prepared.

    This is FSDP's `cpu_ram_efficient_loading`, accelerate's default: on the other processes `from_pretrained` leaves
    the weights on the meta device until then.

    Example:
        >>> awaits_main_process(torch.zeros(2, 3))
        False
    """
    return is_fsdp_enabled() and not isinstance(weight, DTensor) and this_process().num_processes > 1


def from_main_process(weight: Tensor) -> Tensor:
    """Broadcast the main process's weight to the CPU of all processes, which must all call this."""
    process = this_process()
    sent = weight.detach() if process.is_main_process else torch.empty(weight.shape, dtype=weight.dtype)
    return broadcast(sent.to(process.device, copy=True)).cpu()


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather all weights of a model that ZeRO-3 has partitioned, for reading; other weights are unaffected."""
    partitioned = [weight for weight in model.parameters() if _is_partitioned(weight)]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned):
        yield


def reshard(model: nn.Module) -> None:
    """Free the unsharded weights that FSDP2 keeps after an evaluation; only the shards are trained."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _is_partitioned(weight: Tensor) -> bool:
    # ZeRO-3 empties the weights that it partitions; inside a gather they are whole.
    return hasattr(weight, "ds_id") and not weight.numel()
