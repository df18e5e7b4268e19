"""From a request to a checkpoint: answer, prune, measure on fresh text, write, reload and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from unicuco.checkpoint import SHARD_SIZE, CheckpointCard, CheckpointReport, Layout, write_checkpoint
from unicuco.checkpoint.stream import StreamingPruner, open_base_model
from unicuco.errors import InfeasibleRequestError, PolicyError
from unicuco.evaluator import Evaluator, EvaluatorConfig, Measurement
from unicuco.heldout import WINDOWS, open_heldout
from unicuco.latency import LatencyTable
from unicuco.models.load import DTYPES, BaseModel, load_base_model, load_tokenizer
from unicuco.models.source import ModelSource, find_model
from unicuco.policy import Policy
from unicuco.preparation import Preparation, PreparationConfig, Progress, prepare
from unicuco.pruners.base import Pruner, pruned_blocks
from unicuco.pruners.depth import DepthPruner
from unicuco.pruners.sequential import count_zeros
from unicuco.request import Answer, Request
from unicuco.resparsify import choose_layout, prune_in_order
from unicuco.space import Shape
from unicuco.storage import cache_dir
from unicuco.timing import measure_latency
from unicuco.uniform import answer_uniform


@dataclass(frozen=True)
class Pruned:
    """A checkpoint with what was promised and what was measured (``None`` when it was not measured).

    Attributes:
        zeros: weights of the blocks' matrices that are zero, where a sparsity pruner made them so.
    """

    answer: Answer
    checkpoint: CheckpointReport
    measured: Measurement | None
    zeros: int | None = None
    latency_ms: float | None = None
    """Measured on the pruned model; ``None``: no latency table, or one of another device or dtype."""


@dataclass(frozen=True)
class Writing:
    """How a checkpoint is to be written."""

    layout: Layout | None = None
    """None: ``padded`` for zeros in dense shapes, else ``hetero``."""
    verify: bool = True
    replace: bool = False
    shard_size: str = SHARD_SIZE
    command: str | None = None


@dataclass(frozen=True)
class _Found:
    """What is known of a pruned model before it is written."""

    measured: Measurement | None = None
    zeros: int | None = None
    latency_ms: float | None = None
    table: LatencyTable | None = None


@dataclass(frozen=True)
class Pinned:
    """A base model pinned with its pruner: it writes any answer of policies with the same preparation."""

    evaluator: Evaluator
    tokenizer: Any

    def write(
        self,
        request: Request,
        answer: Answer,
        target: Path,
        how: Writing | None = None,
        measure: bool = True,
        stage: Callable[[str], None] = lambda name: None,
        table: LatencyTable | None = None,
    ) -> Pruned:
        """Writes ``answer`` as a checkpoint at ``target``; sparsities are pruned again, in order, and measured so.

        Args:
            measure: measure KL and perplexity on held-out windows, for the model card.
            stage: told what begins; what it raises ends the work, and nothing is left behind.
            table: by which ``answer`` promises its latency: measured too, where this is the table's device.

        Raises:
            StrategyError: levels that this space does not have; others: see ``write_checkpoint``.
        """
        evaluator = self.evaluator
        levels = evaluator.space.check_levels(np.array(answer.levels))
        how = how or Writing()
        pruner: Pruner = evaluator.pruner
        base, shape, zeros = evaluator.base, evaluator.space.shape(levels), None
        if evaluator.space.is_sparse:
            stage("pruning in order")
            base = prune_in_order(evaluator, shape)
            pruner, shape = DepthPruner(base, pruner.name), Shape(shape.groups, shape.neurons)
            zeros, _ = count_zeros(base.model)
        measured = None
        if measure:
            stage("measuring on fresh text")
            measured = self._heldout.measure_blocks(pruned_blocks(pruner, shape))
        latency_ms = None
        if measure and table is not None and zeros is None:  # zeros in dense shapes take as long as the dense model
            stage("measuring latency")
            latency_ms = measure_latency(base, pruner, shape, table)
        stage("writing and reloading")
        parts = (base, pruner, shape, evaluator.preparation, self.tokenizer)
        return _write(*parts, request, answer, target, how, _Found(measured, zeros, latency_ms, table))

    @cached_property
    def _heldout(self) -> Evaluator:
        return open_heldout(self.evaluator, WINDOWS)


def _write(
    base: BaseModel,
    pruner: Pruner,
    shape: Shape,
    preparation: Preparation,
    tokenizer: Any,
    request: Request,
    answer: Answer,
    target: Path,
    how: Writing,
    found: _Found,
) -> Pruned:
    calibration = preparation.config.calibration.model_dump(mode="json")
    dtype = str(base.model.dtype).removeprefix("torch.")
    figures = {} if found.measured is None else _figures(found.measured)
    times = {} if found.latency_ms is None else {"latency_ms": found.latency_ms}
    promised = {"kl": answer.kl, "kl_low": answer.kl_low, "kl_high": answer.kl_high}
    promised |= {f"kl_{name}": promise.kl for name, promise in answer.domains.items()}
    promised |= {} if answer.latency_ms is None else {"latency_ms": answer.latency_ms}
    table = found.table
    workload = {} if table is None else {"latency": table.config.describe(), "latency_table": table.digest}
    calibration |= {**workload, "dtype": dtype, "heldout_windows_per_domain": WINDOWS}
    card = CheckpointCard(
        request=request.model_dump(mode="json", exclude_none=True, exclude={"id"}),
        strategy=tuple(answer.strategy),
        measured=figures | times,
        predicted=promised,
        calibration=calibration,
        preparation=preparation.digest,
        command=how.command,
        zeros=found.zeros,
    )
    checkpoint = write_checkpoint(
        base,
        tokenizer,
        pruner,
        shape,
        Path(target),
        choose_layout(preparation.space, how.layout),
        card,
        verify=how.verify,
        replace=how.replace,
        max_shard_size=how.shard_size,
    )
    return Pruned(answer, checkpoint, found.measured, found.zeros, found.latency_ms)


def pin(
    policy: Policy, model: str | None = None, config: EvaluatorConfig | None = None, progress: Progress | None = None
) -> Pinned:
    """Loads and pins the base model of ``policy``.

    Args:
        model: where it lies, when not where it was trained; its content must be the same.

    Raises:
        PolicyError, ModelError, PreparationError: what is wrong with either.
    """
    config = config or EvaluatorConfig()
    source = _find_model(policy, model)
    preparation = find_preparation(policy, source, config, progress)
    base = load_base_model(source, config.dtype, config.device, config.trust_remote_code)
    evaluator = Evaluator(source.spec, preparation.folder, config, base=base)
    return Pinned(evaluator, load_tokenizer(source, config.trust_remote_code))


def prune(
    policy_folder: Path,
    request: Request,
    target: Path,
    how: Writing | None = None,
    model: str | None = None,
    config: EvaluatorConfig | None = None,
    measure: bool = True,
    progress: Progress | None = None,
    tables: Mapping[str, LatencyTable] | None = None,
) -> Pruned:
    """Answers ``request`` and writes the answer as a checkpoint at ``target``.

    The layout ``uniform`` holds few strategies: the best of those is the answer (``unicuco.uniform``).

    Measuring needs the whole base model in memory. Without it, on a CPU, no more than one of its blocks is there at a
    time; where its files do not allow that (``open_base_model``), it is loaded whole all the same.

    Args:
        model: where the base model lies, when not where it was trained; its content must be the same.
        config: dtype, device, and whether the base model's own code may run; the checkpoint is stored in this dtype.
        measure: measure KL and perplexity on held-out windows, for the model card.
        progress: told of every stage when it begins, as (stage, done, total).
        tables: latency tables beside those of the policy's folder, by name.

    Raises:
        InfeasibleRequestError: with what is feasible; nothing is written. Other ``UniCuCoError``: what is wrong.
    """
    config, how = config or EvaluatorConfig(), how or Writing()
    report = progress or (lambda stage, done, total: None)
    policy = Policy.load(policy_folder)
    for name, given in (tables or {}).items():
        policy = policy.with_table(name, given)
    itemsize = DTYPES[config.dtype].itemsize
    if choose_layout(policy.space, how.layout) == "uniform":
        answer = answer_uniform(policy, request, itemsize)
    else:
        answer = policy.answer([request], bytes_per_param=itemsize)[0]
    if not answer.feasible:
        raise InfeasibleRequestError(answer.note)
    chosen = policy.timed.choose(request)
    table = None if chosen is None else chosen.table
    if not measure and config.device == "cpu" and not policy.space.is_sparse:
        source = _find_model(policy, model)
        opened = open_base_model(source, config.dtype, config.trust_remote_code)
        if opened is not None:
            if config.threads:
                torch.set_num_threads(config.threads)
            preparation = find_preparation(policy, source, config, progress)
            pruner = StreamingPruner(opened, preparation)
            shape = preparation.space.shape(preparation.space.check_levels(np.array(answer.levels)))
            parts = (opened.base, pruner, shape, preparation, load_tokenizer(source, config.trust_remote_code))
            report("writing and reloading", 0, 1)
            return _write(*parts, request, answer, target, how, _Found(table=table))
    pinned = pin(policy, model, config, progress)
    return pinned.write(request, answer, target, how, measure, lambda stage: report(stage, 0, 1), table)


def _find_model(policy: Policy, model: str | None) -> ModelSource:
    source = find_model(model or str(policy.parts.provenance.get("model", {}).get("spec", "")))
    policy.check_model(source.digest, source.spec)
    return source


def find_preparation(
    policy: Policy, source: ModelSource, config: EvaluatorConfig, progress: Progress | None = None
) -> Preparation:
    """The preparation that ``policy`` was trained with; from the cache, or built again from its recipe.

    Raises:
        PolicyError: built again it came out differently, so the calibration text has changed.
    """
    recorded: dict[str, Any] = policy.parts.provenance.get("preparation", {})
    digest = str(recorded.get("digest", ""))
    for folder in (Path(str(recorded.get("folder", ""))), cache_dir() / "preparations" / digest[:24]):
        if digest and (folder / "preparation.json").is_file():
            found = Preparation.open(folder)
            if found.digest == digest:
                return found
    try:
        recipe = PreparationConfig.model_validate(recorded.get("config"))
    except ValidationError as error:
        raise PolicyError("The policy does not say how its preparation was made, and the cache has lost it.") from error
    trust = config.trust_remote_code
    base = load_base_model(source, recipe.dtype, config.device, trust)
    rebuilt = prepare(base, load_tokenizer(source, trust), recipe, progress)
    if rebuilt.digest != digest:
        raise PolicyError(
            f"The policy was trained with preparation {digest[:12]}; built again it is {rebuilt.digest[:12]}: the "
            "calibration text or a version has changed. Train a new policy."
        )
    return rebuilt


def _figures(measured: Measurement) -> dict[str, Any]:
    figures = asdict(measured)
    figures.pop("window_kl")
    figures.pop("seconds")
    return {f"{name}_heldout": value for name, value in figures.items()}
