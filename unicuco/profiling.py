"""Measuring what every width of every block costs on this device, and how well the costs add up.

Layers run alone, one after another as in the model, on the inputs that the model itself gives them. In one pass every
block has another width of its attention or of its MLP, so a pass costs less than a forward, and what is measured finds
its weights in memory and not in the cache, as in the model. That says what widths cost relative to each other. What
short runs are spared and whole models are not (calls between layers, caches that others use) comes as one factor from a
few whole pruned models; others, measured in turns with them, judge the table, and their error is part of it.
"""

from __future__ import annotations

import math
import os
import platform
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from unicuco.latency import BlockTimes, Check, LatencyConfig, LatencyError, LatencyTable, SublayerTimes
from unicuco.models.hetero.attention_unicuco import use_fast_attention
from unicuco.models.load import BaseModel
from unicuco.models.sites import decoder, find_blocks
from unicuco.models.swap import SwitchableModel
from unicuco.preparation import Progress
from unicuco.pruners.unordered import Slices
from unicuco.space import SearchSpace, SpaceConfig, budgets_of
from unicuco.timing import (
    ROUNDS,
    Workload,
    check_family,
    device_name,
    interleaved,
    pruned_model,
    torch_threads,
)

SAMPLES = 14
"""Of every width, at least."""
ANCHORED, CHECKED = (1.0, 0.7, 0.45), (0.95, 0.8, 0.65, 0.5)
"""Kept shares of the whole strategies that set the table's level, and of those that judge it."""
MOST_WIDTHS = 32
"""MLP widths measured of a block; those between are interpolated."""

FLUSH_BYTES = 64 << 20
"""Touched before a decode, so that no cache holds the weights which the reading of the text has just used."""

Kind = Literal["attention", "mlp", "none"]
Job = tuple[Kind, int]
"""What is left of a block while it is measured."""


def profile(
    base: BaseModel,
    config: LatencyConfig,
    neuron_multiple: int = 64,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measures ``base``, which lies on ``config.device`` in ``config.dtype``.

    Args:
        neuron_multiple: MLP widths are measured at multiples of it, or of several of it where those are too many.

    Raises:
        LatencyError: a family whose pruned models cannot be put together, or more tokens than the model reads.
    """
    check_family(base)
    _check_length(base, config)
    report = progress or (lambda stage, done, total: None)
    use_fast_attention(base.model)
    with torch_threads(config), torch.inference_mode():
        layers = _Layers(base, config, neuron_multiple)
        samples = layers.measure(report)
        table = LatencyTable(
            config=config.model_copy(update={"threads": config.threads or _threads(config)}),
            model={"spec": base.source.spec, "digest": base.source.digest},
            geometry=base.geometry,
            fixed_ms=layers.fixed(),
            blocks=tuple(_block_times(own) for own in samples),
            times_of=layers.times_of,
            surroundings=_surroundings(config),
        )
        return _settled(base, table, neuron_multiple, report)


def _threads(config: LatencyConfig) -> int | None:
    return torch.get_num_threads() if config.device == "cpu" else None


def _check_length(base: BaseModel, config: LatencyConfig) -> None:
    most = getattr(base.model.config, "max_position_embeddings", None)
    wanted = config.tokens if config.mode == "prefill" else config.context + 1
    if most and wanted > most:
        raise LatencyError(f"{base.source.spec} reads at most {most} tokens, not {wanted}.")


@dataclass
class _Call:
    """What the model gives one of its layers, and the same while it reads the text that a decode goes on from."""

    hidden: Tensor
    options: dict[str, Any]


class _Layers:
    """A base model's layers, one at a time."""

    def __init__(self, base: BaseModel, config: LatencyConfig, neuron_multiple: int) -> None:
        self._base, self._config = base, config
        self._workload = Workload(config, base.geometry.vocab_size)
        self._slices, self._switch = Slices(base), SwitchableModel(base.model)
        self._layers = [block.layer for block in find_blocks(base.model)]
        kinds: dict[Any, int] = {}  # layers of one shape may see windows of different length
        windows = [getattr(layer.self_attn, "sliding_window", None) for layer in self._layers]
        keys = list(zip(base.geometry.blocks, windows, strict=True))
        self.times_of = tuple(kinds.setdefault(key, len(kinds)) for key in keys)
        self._jobs = [_jobs(shape.groups, shape.neurons, neuron_multiple) for shape, _ in kinds]
        self._flush = torch.zeros(FLUSH_BYTES, dtype=torch.int8, device=config.device)
        self._calls: dict[str, list[_Call]] = {}
        cache = DynamicCache(config=base.model.config)
        self._calls["read"] = self._listen(self._workload.tokens, cache)
        if config.mode == "decode":
            self._calls["next"] = self._listen(self._workload.next, cache)

    def _listen(self, tokens: Tensor, cache: Any) -> list[_Call]:
        """Runs the dense model and keeps what its layers are called with."""
        heard: list[_Call] = []

        def hear(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            options = dict(options)
            hidden = args[0] if args else options.pop("hidden_states")
            heard.append(_Call(hidden, options))

        hooks = [layer.register_forward_pre_hook(hear, with_kwargs=True) for layer in self._layers]
        try:
            self._base.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        finally:
            for hook in hooks:
                hook.remove()
        return heard

    def measure(self, report: Progress) -> list[dict[Job, list[float]]]:
        """Milliseconds of every job, for each kind of block."""
        found: list[dict[Job, list[float]]] = [defaultdict(list) for _ in self._jobs]
        count = [self.times_of.count(kind) for kind in range(len(self._jobs))]
        passes = [math.ceil(SAMPLES * len(jobs) / n) for jobs, n in zip(self._jobs, count, strict=True)]
        at = [0] * len(self._jobs)
        try:
            for n in range(max(passes) + 1):  # the first is not counted
                chosen: list[tuple[int, int, Job]] = []
                for block, kind in enumerate(self.times_of):
                    if n <= passes[kind]:
                        jobs = self._jobs[kind]
                        chosen.append((block, kind, jobs[at[kind] % len(jobs)]))
                        at[kind] += 1
                for (_, kind, job), milliseconds in zip(chosen, self._pass(chosen), strict=True):
                    if n:
                        found[kind][job].append(milliseconds)
                report("measuring layers", n, max(passes))
        finally:
            self._switch.restore()
        return found

    def _pass(self, chosen: list[tuple[int, int, Job]]) -> list[float]:
        """One layer after another, each with what its job leaves of it."""
        left = {block: job for block, _, job in chosen}
        pruned = []
        for block in range(len(self._layers)):
            kind, width = left.get(block, ("none", 0))
            pruned.append(
                self._slices.pruned_block(block, width if kind == "attention" else 0, width if kind == "mlp" else 0)
            )
        self._switch.apply(pruned)
        cache = DynamicCache(config=self._base.model.config)
        if self._config.mode == "prefill":
            return self._workload.watch.between(self._run("read", left, cache))
        self._run("read", {b: job for b, job in left.items() if job[0] == "attention"}, cache)
        self._flush.add_(1)
        return self._workload.watch.between(self._run("next", left, cache))

    def _run(self, name: str, blocks: Any, cache: Any) -> list[Any]:
        marks = [self._workload.watch.mark()]
        for block in blocks:
            call = self._calls[name][block]
            self._layers[block](call.hidden, **{**call.options, "past_key_values": cache})
            marks.append(self._workload.watch.mark())
        return marks

    def fixed(self) -> float:
        """Milliseconds of the model without its layers."""
        with _without_layers(self._base.model):
            return interleaved([self._workload.on(self._base.model)], 3 * ROUNDS)[0]


@contextmanager
def _without_layers(model: Any) -> Iterator[None]:
    inner = decoder(model)
    layers = inner.layers
    inner.layers = nn.ModuleList()
    try:
        yield
    finally:
        inner.layers = layers


def _jobs(groups: int, neurons: int, multiple: int) -> list[Job]:
    """Everything that is measured of a block, mixed so that neighbours in time are none in width."""
    step = multiple * math.ceil(neurons / multiple / MOST_WIDTHS)
    widths = sorted({*range(step, neurons, step), neurons})
    attention = sorted({int(g) for g in np.unique(np.linspace(1, groups, min(groups, MOST_WIDTHS)).round())})
    jobs: list[Job] = [("none", 0), *(("attention", g) for g in attention), *(("mlp", n) for n in widths)]
    return [jobs[i] for i in np.random.default_rng(0).permutation(len(jobs))]


def _block_times(samples: dict[Job, list[float]]) -> BlockTimes:
    """A layer without both sublayers still costs something; each sublayer bears half of it."""
    # The lower quartile: neither what was disturbed, nor what by luck found its weights in a cache.
    least = {job: float(np.quantile(times, 0.25)) for job, times in samples.items()}
    shell = least[("none", 0)] / 2

    def times(kind: Kind) -> SublayerTimes:
        widths = sorted(width for own, width in least if own == kind)
        ms = monotone(np.array([least[(kind, width)] - shell for width in widths]))
        return SublayerTimes(widths=tuple(widths), ms=tuple(np.maximum(ms, 1e-6).tolist()))

    return BlockTimes(attention=times("attention"), mlp=times("mlp"))


def monotone(values: np.ndarray) -> np.ndarray:
    """The nearest values that never fall, in least squares (pool adjacent violators)."""
    pools: list[list[float]] = []
    for value in values.tolist():
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, count = pools.pop()
            before = pools[-1]
            before[0] = (before[0] * before[1] + mean * count) / (before[1] + count)
            before[1] += count
    return np.concatenate([np.full(int(count), mean) for mean, count in pools])


def spread_strategies(space: SearchSpace, kept: np.ndarray, seed: int = 0) -> np.ndarray:
    """Random strategies of sizes ``kept``, unlike each other in every site (``n x num_sites`` level indices)."""
    rng = np.random.default_rng(seed)
    budgets = np.maximum(budgets_of(space, kept), space.total(space.smallest))
    return space.project(rng.uniform(0, 1, (len(kept), space.num_sites)), {"params": budgets})


def _settled(base: BaseModel, table: LatencyTable, neuron_multiple: int, report: Progress) -> LatencyTable:
    """``table`` at the level of whole models, with its checks."""
    space = SearchSpace(base.geometry, SpaceConfig(neuron_multiple=neuron_multiple))
    levels = spread_strategies(space, np.array(ANCHORED + CHECKED))
    levels[0] = 0
    shapes = [space.shape(row) for row in levels]
    usable = [i for i, shape in enumerate(shapes) if any(shape.groups)]
    workload, slices = Workload(table.config, base.geometry.vocab_size), Slices(base)
    report("measuring whole models", 0, 1)
    runs = [workload.on(pruned_model(base, slices, shapes[i])) for i in usable]
    measured = dict(zip(usable, interleaved(runs, ROUNDS), strict=True))
    anchors = [i for i in usable if i < len(ANCHORED)]
    layers = np.array([table.predict(shapes[i]) for i in anchors]) - table.fixed_ms
    factor = float(layers @ (np.array([measured[i] for i in anchors]) - table.fixed_ms) / (layers @ layers))
    factor = min(max(factor, 0.5), 2.0)  # beyond that the machine was disturbed, and the checks will say so
    table = table.model_copy(
        update={
            "blocks": tuple(_scaled(own, factor) for own in table.blocks),
            "surroundings": {**table.surroundings, "factor": factor},
        }
    )
    checks = [
        Check(kept=float(space.kept(levels[i])), predicted_ms=table.predict(shapes[i]), measured_ms=measured[i])
        for i in usable
        if i >= len(ANCHORED)
    ]
    report("measuring whole models", 1, 1)
    return table.model_copy(update={"checks": tuple(checks)})


def _scaled(times: BlockTimes, factor: float) -> BlockTimes:
    def scaled(own: SublayerTimes) -> SublayerTimes:
        return own.model_copy(update={"ms": tuple(factor * ms for ms in own.ms)})

    return BlockTimes(attention=scaled(times.attention), mlp=scaled(times.mlp))


def _surroundings(config: LatencyConfig) -> dict[str, Any]:
    import transformers

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": device_name(config),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if config.device == "cpu":
        found["threads"] = torch.get_num_threads()
    return found
