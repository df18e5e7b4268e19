"""Pretended devices: ``cpu:0`` and ``cpu:1`` as strict about each other as two GPUs are.

A tensor here says which device it is on, and torch believes it: ``tensor.device``, ``tensor.to(...)``, modules,
autograd and factories all see two devices that are neither each other nor the CPU. What it holds is an ordinary CPU
tensor, and every operation runs on that, so results are those of one device bit for bit. An operation on tensors of
different devices is refused, as CUDA refuses it; what moves a tensor is ``.to``, ``.cpu`` and ``copy_``. A number (a
CPU tensor without dimensions) goes with every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HOST = torch.device("cpu")
TRANSFERS = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class MixedDevicesError(RuntimeError):
    """Tensors of different devices met in one operation."""


class PretendTensor(Tensor):
    """``held`` as a tensor on ``device``."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> PretendTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, PretendTensor) or (value.device, value.shape) != (self.device, self.shape):
            raise MixedDevicesError(f"data of a tensor {tuple(self.shape)} on {self.device} set to another kind")
        self.held = value.held

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendTensor:
        return memo.setdefault(id(self), nn.Parameter(self.detach().clone(), requires_grad=False))

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"PretendTensor({self.held!r}, device={self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sees what has no pretended tensor among its inputs: ``torch.zeros(3, device="cpu:1")``, ``x.to("cpu:0")``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """``torch.tensor([1], device="cpu:1")`` fills a tensor before any operation can be seen, so it is moved after."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or HOST).index is not None:
            return torch.tensor(*args, **{**kwargs, "device": HOST}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def pretended_devices() -> Iterator[None]:
    """While it lasts, ``cpu:0``, ``cpu:1``, ... are devices of their own."""
    with _FromNumbers(), _Factories():
        yield


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with _Factories():  # in inference mode torch hands over compound operations whole: see each of their steps
            return func.decompose(*args, **kwargs)
    device = _device_of(func, args, kwargs)
    held_args, held_kwargs = tree_map(_held, (args, kwargs))
    moves = func is torch.ops.aten._to_copy.default and type(args[0]) is PretendTensor
    if device.type == HOST.type and (moves or held_kwargs.get("device") is not None):
        held_kwargs["device"] = HOST
    found = func(*held_args, **held_kwargs)
    given: dict[int, Any] = {id(_held(leaf)): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}

    def wrapped(result: Any) -> Any:
        if not isinstance(result, Tensor):
            return result
        if id(result) in given:  # in place: the same tensor comes back
            return given[id(result)]
        return result if device.index is None else PretendTensor(result, device)

    # A view of a tensor that autograd tracks is tracked, in inference mode too.
    inference = torch.is_inference_mode_enabled() and not (func.is_view and not args[0].is_inference())
    with torch.inference_mode(inference):
        return tree_map(wrapped, found)


def _device_of(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.device:
    """Where the result is: where it is asked for, or where the inputs are.

    Raises:
        MixedDevicesError: in two places.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if func is torch.ops.aten.copy_.default:
        return tensors[0].device
    if func not in TRANSFERS:
        places = {t.device for t in tensors if t.dim() or t.device != HOST}
        if len(places) > 1:
            raise MixedDevicesError(f"{func} on tensors of {' and '.join(sorted(map(str, places)))}")
        if kwargs.get("device") is None:
            return places.pop() if places else HOST
    asked = kwargs.get("device")
    return torch.device(asked) if asked is not None else tensors[0].device


def _held(value: Any) -> Any:
    return value.held if isinstance(value, PretendTensor) else value
