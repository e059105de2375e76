"""A stand-in for a GPU without float64, such as Apple's and some of Intel's, on machines that have none.

Its tensors hold a tensor of the CPU and compute with it. As on a GPU, an operation on tensors of two devices raises an
error, as does a float64 tensor. `use_stand_in()` registers the device for the rest of the process; then models and
tensors are moved to it and created on it as usual: `model.to("standin")`, `torch.zeros(3, device=model.device)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "standin"
CPU = torch.device("cpu")
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
# These accept indices of the CPU for a table on any device.
_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class _Backend(_DummyBackendModule):
    def __init__(self) -> None:
        self.generator = torch.Generator()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        self.generator.set_state(state)


class OnDevice(Tensor):
    """A tensor on the stand-in device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        if held.layout != torch.strided:
            raise NotImplementedError(f"Sparse tensors are not implemented for {NAME}.")
        if held.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                f"Cannot convert a tensor to float64 dtype, because {NAME} doesn't support float64. Please use float32."
            )
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: OnDevice) -> None:  # may have another shape, as in `resize_token_embeddings`
        new = OnDevice(value.held).requires_grad_(self.requires_grad)
        new.__dict__ |= {name: kept for name, kept in self.__dict__.items() if name != "held"}
        torch.utils.swap_tensors(self, new)

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def __contains__(self, value: Any) -> bool:
        return value in self.held

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                "can't convert a tensor of this device to numpy. Use Tensor.cpu() to copy it to the CPU first."
            )
        return self.held.numpy(force=True)


class _Factories(TorchDispatchMode):
    """Creates tensors on the stand-in device, and copies them to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _FromData(TorchFunctionMode):
    """Makes tensors of lists on the CPU first, because `torch.tensor` and indices bypass dispatch modes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == NAME:
            return func(*args, **kwargs | {"device": CPU}).to(device)
        if func is Tensor.__getitem__:
            table, index = args
            parts = index if isinstance(index, tuple) else (index,)
            args = (table, tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts))
        return func(*args, **kwargs)


def _run(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    # Scalars of the CPU can be combined with tensors of any device.
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim > 0]
    allowed = func in _COPIES or (func in _INDEXING and isinstance(args[0], OnDevice))
    if here and elsewhere and not allowed:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME}:0 and cpu, in {func}.")
    wanted = kwargs.get("device")
    to_device = bool(here) if wanted is None else torch.device(wanted).type == NAME
    if wanted is not None:
        kwargs = kwargs | {"device": CPU}
    plain_args, plain_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.held, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    if func is torch.ops.aten.copy_.default:
        return args[0]
    if not to_device:
        return result
    result = tree_map_only(Tensor, OnDevice, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if here and wanted is None else result


def use_stand_in() -> torch.device:
    """Register the device in this process, and return it."""
    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Backend())
    _Factories().__enter__()
    _FromData().__enter__()
    return torch.device(NAME, 0)
