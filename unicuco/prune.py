"""From a request to a checkpoint: answer, prune, measure on fresh text, write, reload and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from unicuco.checkpoint import CheckpointCard, CheckpointReport, Layout, write_checkpoint
from unicuco.errors import InfeasibleRequestError, PolicyError
from unicuco.evaluator import Evaluator, EvaluatorConfig, Measurement
from unicuco.heldout import WINDOWS, open_heldout
from unicuco.latency import LatencyTable
from unicuco.models.load import DTYPES, load_base_model, load_tokenizer
from unicuco.models.source import ModelSource, find_model
from unicuco.policy import Policy
from unicuco.preparation import Preparation, PreparationConfig, Progress, prepare
from unicuco.request import Answer, Request
from unicuco.storage import cache_dir
from unicuco.timing import measure_latency


@dataclass(frozen=True)
class Pruned:
    """A checkpoint with what was promised and what was measured (``None`` when it was not measured)."""

    answer: Answer
    checkpoint: CheckpointReport
    measured: Measurement | None
    latency_ms: float | None = None
    """Measured on the pruned model; ``None``: no latency table, or one of another device or dtype."""


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
        layout: Layout = "hetero",
        measure: bool = True,
        replace: bool = False,
        command: str | None = None,
        stage: Callable[[str], None] = lambda name: None,
        table: LatencyTable | None = None,
    ) -> Pruned:
        """Writes ``answer`` as a checkpoint at ``target``.

        Args:
            measure: measure KL and perplexity on held-out windows, for the model card.
            stage: told what begins; what it raises ends the work, and nothing is left behind.
            table: by which ``answer`` promises its latency: measured too, where this is the table's device.

        Raises:
            StrategyError: levels that this space does not have; others: see ``write_checkpoint``.
        """
        evaluator = self.evaluator
        levels = evaluator.space.check_levels(np.array(answer.levels))
        shape = evaluator.space.shape(levels)
        measured = None
        if measure:
            stage("measuring on fresh text")
            measured = self._heldout.measure(shape)
        latency_ms = None
        if measure and table is not None:
            stage("measuring latency")
            latency_ms = measure_latency(evaluator.base, evaluator.pruner, shape, table)
        times = {} if latency_ms is None else {"latency_ms": latency_ms}
        promised = {} if answer.latency_ms is None else {"latency_ms": answer.latency_ms}
        workload = {} if table is None else {"latency": table.config.describe(), "latency_table": table.digest}
        preparation = evaluator.preparation
        calibration = preparation.config.calibration.model_dump(mode="json")
        card = CheckpointCard(
            request=request.model_dump(mode="json", exclude_none=True, exclude={"id"}),
            strategy=tuple(answer.strategy),
            measured=({} if measured is None else _figures(measured)) | times,
            predicted={"kl": answer.kl, "kl_low": answer.kl_low, "kl_high": answer.kl_high}
            | {f"kl_{name}": promise.kl for name, promise in answer.domains.items()}
            | promised,
            calibration={
                **calibration,
                **workload,
                "dtype": evaluator.config.dtype,
                "heldout_windows_per_domain": WINDOWS,
            },
            preparation=preparation.digest,
            command=command,
        )
        stage("writing and reloading")
        checkpoint = write_checkpoint(
            evaluator.base, self.tokenizer, evaluator.pruner, shape, Path(target), layout, card, replace=replace
        )
        return Pruned(answer, checkpoint, measured, latency_ms)

    @cached_property
    def _heldout(self) -> Evaluator:
        return open_heldout(self.evaluator, WINDOWS)


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
    source = find_model(model or str(policy.parts.provenance.get("model", {}).get("spec", "")))
    policy.check_model(source.digest, source.spec)
    preparation = find_preparation(policy, source, config, progress)
    base = load_base_model(source, config.dtype, config.device, config.trust_remote_code)
    evaluator = Evaluator(source.spec, preparation.folder, config, base=base)
    return Pinned(evaluator, load_tokenizer(source, config.trust_remote_code))


def prune(
    policy_folder: Path,
    request: Request,
    target: Path,
    layout: Layout = "hetero",
    model: str | None = None,
    config: EvaluatorConfig | None = None,
    measure: bool = True,
    replace: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
    tables: Mapping[str, LatencyTable] | None = None,
) -> Pruned:
    """Answers ``request`` and writes the answer as a checkpoint at ``target``.

    Args:
        model: where the base model lies, when not where it was trained; its content must be the same.
        config: dtype, device, and whether the base model's own code may run; the checkpoint is stored in this dtype.
        measure: measure KL and perplexity on held-out windows, for the model card.
        tables: latency tables beside those of the policy's folder, by name.

    Raises:
        InfeasibleRequestError: with what is feasible; nothing is written. Other ``UniCuCoError``: what is wrong.
    """
    config = config or EvaluatorConfig()
    policy = Policy.load(policy_folder)
    for name, given in (tables or {}).items():
        policy = policy.with_table(name, given)
    answer = policy.answer([request], bytes_per_param=DTYPES[config.dtype].itemsize)[0]
    if not answer.feasible:
        raise InfeasibleRequestError(answer.note)
    pinned = pin(policy, model, config, progress)
    chosen = policy.timed.choose(request)
    table = None if chosen is None else chosen.table
    return pinned.write(request, answer, target, layout, measure, replace, command, table=table)


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
