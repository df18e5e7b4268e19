"""Timing whole models on one device: a clock, a workload, and pruned models as their checkpoints would load."""

from __future__ import annotations

import inspect
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache

from unicuco.checkpoint.layout import hetero_config, hetero_tensors, regroup
from unicuco.latency import LatencyConfig, LatencyError, LatencyTable
from unicuco.models.hetero import FAMILIES, model_class
from unicuco.models.load import BaseModel
from unicuco.pruners.base import Pruner, pruned_blocks
from unicuco.space import Shape

ROUNDS = 7
"""In which whole models are measured in turns; the least counts."""


class Stopwatch:
    """Marks, and the milliseconds between them. On a GPU marks are events in its queue: nothing waits for them."""

    def __init__(self, config: LatencyConfig) -> None:
        self._gpu = config.device.startswith("cuda")
        self._clock = time.thread_time if config.clock == "processor" else time.perf_counter

    def mark(self) -> Any:
        if not self._gpu:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, marks: Sequence[Any]) -> list[float]:
        """Milliseconds from each mark to the next."""
        pairs = list(itertools.pairwise(marks))
        if not self._gpu:
            return [1000 * (after - before) for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) for before, after in pairs]


@contextmanager
def torch_threads(config: LatencyConfig) -> Iterator[None]:
    """As many torch threads as ``config`` says, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(config: LatencyConfig) -> str:
    """The processor, or the GPU, that ``config`` measures on."""
    if config.device.startswith("cuda"):
        return torch.cuda.get_device_name(config.device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Workload:
    """What a model has to do, again and again; the same tokens for every model."""

    def __init__(self, config: LatencyConfig, vocab_size: int) -> None:
        self.config, self.watch = config, Stopwatch(config)
        length = config.tokens if config.mode == "prefill" else config.context
        drawn = torch.randint(vocab_size, (config.batch, length), generator=torch.Generator().manual_seed(0))
        self.tokens = drawn.to(config.device)
        self.next = self.tokens[:, :1].contiguous()

    def on(self, model: Any) -> Callable[[], float]:
        """A call that puts ``model`` through the workload once and returns the milliseconds."""
        # What is generated needs the last token's logits only.
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        state: dict[str, Any] = {"cache": None, "grown": 0}
        most = max(1, self.config.context // 64)  # tokens by which the cache may grow before it is read anew

        def read(cache: Any) -> None:
            model(input_ids=self.tokens, past_key_values=cache, use_cache=True, **last)

        def run() -> float:
            with torch.inference_mode():
                if self.config.mode == "prefill":
                    tokens, cache = self.tokens, DynamicCache(config=model.config)
                else:
                    if state["cache"] is None or state["grown"] >= most:
                        state.update(cache=DynamicCache(config=model.config), grown=0)
                        read(state["cache"])
                    tokens, cache = self.next, state["cache"]
                    state["grown"] += 1
                begin = self.watch.mark()
                model(input_ids=tokens, past_key_values=cache, use_cache=True, **last)
                return self.watch.between([begin, self.watch.mark()])[0]

        return run


def interleaved(runs: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """The least of ``rounds`` milliseconds of each, taken in turns and in alternating order, after one round apart."""
    times: list[list[float]] = [[] for _ in runs]
    for n in range(rounds + 1):
        order = range(len(runs)) if n % 2 else range(len(runs) - 1, -1, -1)
        for i in order:
            taken = runs[i]()
            if n:
                times[i].append(taken)
    return [min(own) for own in times]


def measure_latency(base: BaseModel, pruner: Pruner, shape: Shape, table: LatencyTable) -> float | None:
    """Milliseconds of the real pruned model, by the workload of ``table``; the least of ``ROUNDS``.

    Returns:
        ``None`` where this is not the table's device, dtype or base model, or the model cannot be put together: other
        milliseconds would say nothing of the table.
    """
    config, parameter = table.config, next(base.model.parameters())
    here = parameter.device.type == torch.device(config.device).type
    if not here or str(parameter.dtype) != f"torch.{config.dtype}" or not any(shape.groups):
        return None
    if table.surroundings.get("device") != device_name(config) or base.geometry.family not in FAMILIES:
        return None
    with torch_threads(config):
        run = Workload(config, base.geometry.vocab_size).on(pruned_model(base, pruner, shape))
        return interleaved([run], ROUNDS)[0]


def pruned_model(base: BaseModel, pruner: Pruner, shape: Shape) -> Any:
    """The model at ``shape`` as its ``hetero`` checkpoint would load, sharing the base model's weights.

    Raises:
        LatencyError: a family without such checkpoints. CheckpointError: every attention is dropped.
    """
    check_family(base)
    layers = regroup(shape)
    with torch.device("meta"):
        model = model_class(base.geometry.family)(hetero_config(base, shape, layers))
    tensors = hetero_tensors(base, pruned_blocks(pruner, shape), layers)
    parameters = {name: torch.nn.Parameter(tensor.detach(), requires_grad=False) for name, tensor in tensors.items()}
    model.load_state_dict(parameters, assign=True)
    model.tie_weights()
    for name, module in list(model.named_modules()):  # what no file holds, such as the rotary frequencies
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, base.model.get_submodule(name))
    return model.eval().requires_grad_(False)


def check_family(base: BaseModel) -> None:
    """Refuses families whose pruned models cannot be put together.

    Raises:
        LatencyError: naming those that can.
    """
    if base.geometry.family not in FAMILIES:
        raise LatencyError(
            f"Latency is measured on models of the families {', '.join(sorted(FAMILIES))}, "
            f"not '{base.geometry.family}'."
        )
