"""One base model over several devices: ranges of blocks on each, through the model's own forward.

Embeddings lie on the first device, final norm and head on the last, and blocks in contiguous ranges in between, so that
the fullest device is as little full as can be. Every part takes its inputs to its own device before it runs (forward
pre-hooks), whatever its family calls it with: hidden states, masks, rotary embeddings. Where the hidden states are
already there, that moves nothing.

A head that shares its matrix with the embeddings stays with them on the first device, and the last hidden states travel
back: they are a few hundred MB in an evaluation, the matrix would be in memory twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unicuco.errors import ModelError
from unicuco.models.sites import decoder, decoder_layers

GIB = 1 << 30


def devices_for(device: str, gpus: float) -> str:
    """What an evaluator is told that Ray gave ``gpus`` GPUs: ``cuda:0,cuda:1`` for two, ``device`` itself up to one.

    Ray shows a process its own GPUs only, numbered from 0.
    """
    return ",".join(f"cuda:{i}" for i in range(int(gpus))) if device.startswith("cuda") and gpus > 1 else device


def parse_devices(device: str) -> list[torch.device]:
    """``device`` as torch knows it: one, or several of one type with commas between.

    Raises:
        ModelError: no such device on this machine.
    """
    try:
        found = [torch.device(name.strip()) for name in device.split(",")]
    except RuntimeError as error:
        raise ModelError(f"'{device}' is no device; use 'cpu', 'cuda', 'cuda:N' or 'cuda:0,cuda:1'.") from error
    if len({place.type for place in found}) > 1:
        raise ModelError(f"A model cannot be spread over devices of different types ({device}).")
    if found[0].type == "cuda":
        if not torch.cuda.is_available():
            raise ModelError("No CUDA device here; use --device cpu.")
        count = torch.cuda.device_count()
        if missing := [str(place) for place in found if (place.index or 0) >= count]:
            raise ModelError(f"No {', '.join(missing)} here; this process sees {count} CUDA device(s).")
    return found


def place(model: Any, devices: Sequence[torch.device], name: str = "The model") -> None:
    """Moves a transformers causal language model from the CPU to ``devices``; hooks it where there are several.

    Raises:
        ModelError: fewer blocks than devices, or a CUDA device without room for its share.
    """
    parts, tied = _parts(model, devices), _tied_head(model)
    homes = list(_homes(model, devices[0], parts))
    shares = dict.fromkeys(devices, 0)
    for module, device in homes:
        shares[device] += _own_bytes(module, tied)
    check_room(shares, _free_bytes, name)
    if len(devices) == 1:
        nn.Module.to(model, devices[0])
        return
    for module, device in homes:
        for key, parameter in module.named_parameters(recurse=False):
            if module is not tied:
                module._parameters[key] = nn.Parameter(parameter.to(device), requires_grad=False)
        for key, buffer in module.named_buffers(recurse=False):
            module._buffers[key] = buffer.to(device)
    if tied is not None:
        tied.weight = model.get_input_embeddings().weight
    for module, device in parts.items():
        _take_inputs_to(module, device)


def spread_blocks(blocks: Sequence[int], first: int, last: int, devices: int) -> list[int]:
    """Which device each block goes to, in contiguous ranges, so that the largest load is as small as possible.

    Args:
        blocks: bytes of each.
        first, last: bytes that lie on the first and on the last device besides.

    Returns:
        ``len(blocks)`` device indices, each of ``devices`` at least once.

    Raises:
        ModelError: fewer blocks than devices.
    """
    count = len(blocks)
    if devices > count:
        raise ModelError(f"{count} blocks cannot be spread over {devices} devices; use fewer GPUs per evaluator.")
    before = [0]
    for size in blocks:
        before.append(before[-1] + size)
    # least[n]: the smallest possible largest load with blocks 0..n-1 on the devices so far, and how many on the others.
    least: list[tuple[float, list[int]]] = [(first, [])] + [(float("inf"), [])] * count
    for d in range(devices):
        extra = (first if d == 0 else 0) + (last if d == devices - 1 else 0)
        found: list[tuple[float, list[int]]] = [(float("inf"), [])] * (count + 1)
        for end in range(d + 1, count + 1):
            starts = range(d, end) if d else range(1)
            loads = [(max(least[s][0], extra + before[end] - before[s]), s) for s in starts]
            load, start = min(loads)
            found[end] = (load, [*least[start][1], end - start])
        least = found
    return [d for d, size in enumerate(least[count][1]) for _ in range(size)]


def check_room(shares: dict[torch.device, int], free: Callable[[torch.device], int | None], name: str) -> None:
    """Refuses a model whose weights alone are known not to fit.

    Args:
        shares: bytes for each device.
        free: bytes that a device has left; None: not known.

    Raises:
        ModelError: naming the device, and what would help.
    """
    for device, needed in shares.items():
        room = free(device)
        if room is not None and needed > room:
            raise ModelError(
                f"{name} does not fit: {needed / GIB:.1f} GiB of weights for {device}, which has {room / GIB:.1f} GiB "
                f"left of its memory; spread it over more than {len(shares)} GPU(s) (--evaluator-gpus)."
            )


def device_names(model: nn.Module) -> str:
    """The devices of a model's parameters, in their order, with commas between."""
    return ",".join(dict.fromkeys(str(parameter.device) for parameter in model.parameters()))


def _parts(model: Any, devices: Sequence[torch.device]) -> dict[nn.Module, torch.device]:
    """The modules that take their inputs with them, and where they go; all that is inside none goes to the first."""
    if len(devices) == 1:
        return {}
    inner, head, tied = decoder(model), model.get_output_embeddings(), _tied_head(model)
    norms = (getattr(inner, name, None) for name in ("norm", "ln_f", "final_layer_norm"))
    norm, held = next((found for found in norms if found is not None), None), decoder_layers(model)
    layers = list(held)
    sizes = [_bytes(layer) for layer in layers]
    last = (_bytes(norm) if norm is not None else 0) + (_bytes(head) if tied is None else 0)
    everything = sum(_own_bytes(module, tied) for module in model.modules())
    chosen = spread_blocks(sizes, everything - sum(sizes) - last, last, len(devices))
    parts: dict[nn.Module, torch.device] = {m: devices[0] for m in inner.children() if m is not held}
    parts |= {layer: devices[d] for layer, d in zip(layers, chosen, strict=True)}
    if norm is not None:
        parts[norm] = devices[-1]
    parts[head] = devices[0] if tied is not None else devices[-1]
    return parts


def _tied_head(model: Any) -> nn.Module | None:
    """The head, where its matrix is that of the embeddings."""
    head = model.get_output_embeddings()
    return head if head is not None and head.weight is model.get_input_embeddings().weight else None


def _homes(
    module: nn.Module, device: torch.device, parts: dict[nn.Module, torch.device]
) -> Iterator[tuple[nn.Module, torch.device]]:
    """Every module with its device: its own, or that of what it is in."""
    device = parts.get(module, device)
    yield module, device
    for child in module.children():
        yield from _homes(child, device, parts)


def _bytes(module: nn.Module) -> int:
    return sum(_own_bytes(inside, None) for inside in module.modules())


def _own_bytes(module: nn.Module, tied: nn.Module | None) -> int:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return 0 if module is tied else sum(tensor.nbytes for tensor in tensors)


def _take_inputs_to(module: nn.Module, device: torch.device) -> None:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return moved(args, device), moved(kwargs, device)

    module.register_forward_pre_hook(hook, with_kwargs=True)


def moved(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor in it on ``device``; tuples, lists and dictionaries are looked into."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(inside, device) for key, inside in value.items()}
    if type(value) in (tuple, list):
        return type(value)(moved(inside, device) for inside in value)
    return value


def _free_bytes(device: torch.device) -> int | None:
    """What a CUDA device has left for this process, torch's own unused cache included."""
    # A GPU that shares the processor's memory counts the page cache as taken, which gives way.
    if device.type != "cuda" or torch.cuda.get_device_properties(device).is_integrated:
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + cached)
