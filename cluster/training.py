"""A training run: from a base model to a policy in a run folder, on whatever Ray there is.

The driver here prepares, creates the actors, waits, shows progress and writes the end; the learner actor runs the run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from rich.console import Console

from actors.factory import Factory
from actors.placement import PoolConfig, PoolPlan, plan_pool
from actors.runtime import RayConfig, start_or_attach, usable_cpus
from cluster.preparing import driver_device, portable, prepare_run, reopen
from cluster.progress import RunDisplay, print_heldout, stages
from cluster.remote_runs import open_run
from cluster.runs import RunError, RunFolder, describe_run, versions, write_about
from cluster.watching import read_heldout
from unicuco.evaluations import EvaluationLog
from unicuco.evaluator import EvaluatorConfig
from unicuco.heldout import measure_heldout
from unicuco.latency import NamedTable
from unicuco.learner import LearnerConfig
from unicuco.models.source import find_model
from unicuco.models.spread import devices_for
from unicuco.preparation import Preparation, PreparationConfig
from unicuco.teacher import find_teacher

SPARSE_KEPT_LOW = 0.2
"""``kept_low`` of runs with a sparsity pruner."""


class TrainConfig(BaseModel):
    """Everything about one run; composed of the parts' own configurations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """Hub id, local folder, GGUF file, or ``smollm2``."""
    run: str | Path
    """The run folder, or a URI (``s3://bucket/runs/first``); must not exist yet."""
    preparation: PreparationConfig = PreparationConfig()
    learner: LearnerConfig = Field(default=LearnerConfig(), validate_default=True)
    latency: NamedTable | None = None
    """A latency table by which latency is an objective beside size; its file, or what ``run.json`` keeps of it."""
    evaluator: EvaluatorConfig = EvaluatorConfig()
    pool: PoolConfig = PoolConfig()
    ray: RayConfig = RayConfig()

    @field_validator("latency", mode="before")
    @classmethod
    def _read_table(cls, value: Any) -> Any:
        return NamedTable.read(Path(value).expanduser()) if isinstance(value, str | Path) else value

    @field_validator("learner")
    @classmethod
    def _far_enough(cls, learner: LearnerConfig, info: ValidationInfo) -> LearnerConfig:
        """Zeros are of use where widths are not any more: the search goes further, unless the user says how far."""
        preparation: PreparationConfig | None = info.data.get("preparation")  # none: it is wrong, and says so itself
        if preparation is None or not preparation.space.is_sparse or "kept_low" in learner.model_fields_set:
            return learner
        return learner.model_copy(update={"kept_low": SPARSE_KEPT_LOW})

    @property
    def tokens(self) -> int:
        """The standard tokens: how many one evaluation runs on."""
        calibration = self.preparation.calibration
        return calibration.search_windows * calibration.window_length * len(calibration.domains)


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        run: the run folder; of a run at a URI, its working folder here. policy: the policy in it.
        evaluations, failed: candidates measured and given up, earlier sessions included.
        seconds: wall time of this session.
        heldout: what ``heldout.json`` says.
    """

    run: Path
    policy: Path
    evaluations: int
    failed: int
    seconds: float
    heldout: list[dict[str, Any]]


def train(config: TrainConfig, console: Console | None = None) -> TrainResult:
    """Runs a new training run to its end.

    A Ctrl-C (or a SIGTERM that Ray turned into ``SystemExit``) ends evaluators and Ray, says how to go on, and is
    raised again; every evaluation that finished is on disk.

    Raises:
        UniCuCoError: a wrong model, text, folder or cluster, before any work; a full disk or dying evaluators later.
    """
    console = console or Console()
    folder = open_run(config.run)
    folder.refuse_existing()
    source = find_model(config.model)
    follows = find_teacher(source)
    teacher = follows and {"spec": follows.spec, "digest": follows.digest}
    config = config.model_copy(update={"model": portable(config.model), "run": folder.where})
    with folder.locked(console.print), start_or_attach(config.ray):
        plan = plan_for(config)
        prepared = prepare_run(config, source, console)
        facts = {
            "model": {"spec": source.spec, "digest": source.digest} | ({"teacher": teacher} if teacher else {}),
            "preparation": {
                "digest": prepared.digest,
                "folder": str(prepared.folder),
                "config": config.preparation.model_dump(mode="json"),
            },
            "seed": config.learner.seed,
            "dtype": config.evaluator.dtype,
            "tokens": config.tokens,
        }
        write_about(folder, describe_run(config.model_dump(mode="json", exclude={"run", "ray"}), **facts))
        return _run(config, plan, folder, prepared, console)


def resume(
    run: str | Path,
    model: str | None = None,
    pool: PoolConfig | None = None,
    ray: RayConfig | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Goes on with the run in ``run``, with the configuration it was started with; see ``train``.

    Args:
        model: where the base model lies now, when it moved; its content must be the same.
        pool: what is set in it replaces the run's own; ray: the cluster to go on with. Neither is part of the run.

    Raises:
        RunError: no run there, another process is at it, or another base model or preparation than it was started with.
    """
    console = console or Console()
    folder = open_run(run)
    about = folder.read()
    try:
        config = TrainConfig.model_validate({**about["config"], "run": folder.where})
        model_digest, preparation = about["model"]["digest"], about["preparation"]
    except (KeyError, TypeError, ValidationError) as error:
        raise RunError(f"{folder.where} does not describe a run that can be resumed: {error}") from error
    moved = {
        "model": portable(model) if model else config.model,
        "pool": config.pool.model_copy(update=pool.model_dump(exclude_unset=True)) if pool else config.pool,
        "ray": ray or config.ray,
    }
    config = config.model_copy(update=moved)
    source = find_model(config.model)
    if source.digest != model_digest:
        raise RunError(
            f"{folder.where} was started with another base model (content {model_digest[:12]}) than {source.spec} "
            f"(content {source.digest[:12]})."
        )
    changed = [name for name, version in versions().items() if about["versions"].get(name) != version]
    if changed:
        console.print(f"Note: started with other versions of {', '.join(changed)}.", highlight=False)
    ended = _ended(folder, console)
    if ended is not None:
        return ended
    with folder.locked(console.print), start_or_attach(config.ray):
        plan = plan_for(config)
        prepared = reopen(preparation, folder.uri, config, source, console)
        return _run(config, plan, folder, prepared, console)


def _ended(folder: RunFolder, console: Console) -> TrainResult | None:
    """What a run that went to its end left, told again; ``None``: there is something to go on with."""
    if not (folder.heldout.is_file() and folder.policy.is_dir()):
        return None
    heldout, evaluations = read_heldout(folder), len(EvaluationLog(folder.evaluations))
    console.print(
        f"The run in {folder.where} has ended, with {evaluations} strategies evaluated: nothing is left to do.",
        highlight=False,
        soft_wrap=True,
    )
    print_heldout(heldout, console)
    return TrainResult(folder.path, folder.policy, evaluations, 0, 0.0, heldout)


def plan_for(config: TrainConfig) -> PoolPlan:
    """The pool that ``config`` comes to on the connected Ray.

    Made once, before the preparation: an autoscaler may take idle nodes away meanwhile, and brings them again.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return plan_pool(config.pool, config.evaluator.device, nodes, config.evaluator.threads)


def placed(evaluator: EvaluatorConfig, plan: PoolPlan) -> EvaluatorConfig:
    """What each actor of ``plan`` is told; it sees no GPUs but its own, all of which its base model is spread over."""
    if evaluator.device.startswith("cuda"):
        return evaluator.model_copy(update={"device": devices_for("cuda", plan.gpus)})
    return evaluator.model_copy(update={"threads": plan.threads})


def _run(
    config: TrainConfig, plan: PoolPlan, folder: RunFolder, prepared: Preparation, console: Console
) -> TrainResult:
    import ray

    from actors.learner import create_learner
    from actors.pool import PoolSetup
    from cluster.following import follow, stop

    began = time.monotonic()
    folder.share(prepared)
    evaluator = Factory(
        "unicuco.remote.nodes:open_evaluator",
        {
            "model_spec": config.model,
            "preparation_folder": prepared.folder,
            "digest": prepared.digest,
            "uri": folder.uri,
            "config": placed(config.evaluator, plan),
        },
    )
    learner = Factory(
        "actors.learner_like:open_learner",
        {
            "preparation": prepared.folder,
            "evaluations": folder.evaluations,
            "config": config.learner,
            "provenance": folder.provenance(),
            "latency": config.latency,
            "uri": folder.uri,
        },
    )
    console.print(
        f"{config.model}: {config.learner.evaluations} evaluations of {config.tokens} tokens, "
        f"{plan.evaluators} evaluator(s) on {config.evaluator.device}, {config.evaluator.dtype}; run {folder.where}",
        highlight=False,
        soft_wrap=True,
    )
    setup = PoolSetup(evaluator, plan, config.pool.in_flight, config.pool.attempts)
    actor = create_learner(learner, setup, folder.policy, threads=max(1, min(4, usable_cpus() // 4)))
    try:
        with RunDisplay(console, config.learner.evaluations, folder.progress_log()) as display:
            status = follow(actor, display)
    except (KeyboardInterrupt, SystemExit):
        stop(actor)
        done = len(EvaluationLog(folder.evaluations))
        console.print(
            f"Stopped after {done} of {config.learner.evaluations} evaluations; all are on disk. "
            f"Go on with: unicuco train --resume {folder.where}",
            highlight=False,
            soft_wrap=True,
        )
        raise
    finally:
        ray.kill(actor)  # and with it its evaluators
    folder.log().compact()
    heldout = _measure_heldout(config, folder, prepared, console)
    if heldout:
        print_heldout(heldout, console)
    return TrainResult(folder.path, folder.policy, status.done, status.failed, time.monotonic() - began, heldout)


def _measure_heldout(
    config: TrainConfig, folder: RunFolder, prepared: Preparation, console: Console
) -> list[dict[str, Any]]:
    """The policy's answers at the protocol's sizes, measured on fresh windows; what ``heldout.json`` then says."""
    evaluator = config.evaluator.model_copy(update={"device": driver_device(config)})
    with stages(console) as report:
        rows = measure_heldout(folder.policy, config.model, prepared.folder, evaluator, report)
    folder.save(folder.heldout, rows)
    return rows
