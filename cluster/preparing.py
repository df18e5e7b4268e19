"""The driver's own work before a run: the base model, its preparation, and where both are computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cluster.progress import stages
from cluster.runs import RunError
from unicuco.calibration import draw_windows
from unicuco.costs import Costs
from unicuco.heldout import WINDOWS
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.source import ModelSource
from unicuco.models.spread import devices_for
from unicuco.preparation import Preparation, prepare
from unicuco.remote.nodes import find_preparation
from unicuco.space import SearchSpace

if TYPE_CHECKING:
    from cluster.training import TrainConfig


def prepare_run(config: TrainConfig, source: ModelSource, console: Console) -> Preparation:
    """Builds or finds the preparation; the driver's copy of the base model is gone afterwards, from GPUs too."""
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar is ours
    trust = config.evaluator.trust_remote_code
    tokenizer = load_tokenizer(source, trust)
    draw_windows(config.preparation.calibration, tokenizer, "heldout", WINDOWS)  # too short a text: say so now
    base = load_base_model(source, config.preparation.dtype, driver_device(config), trust)
    table = None if config.latency is None else config.latency.table
    Costs(SearchSpace(base.geometry, config.preparation.space), table).check_reach(config.learner.kept_low)
    with stages(console) as report:
        prepared = prepare(base, tokenizer, config.preparation, report)
    del base
    torch.cuda.empty_cache()  # evaluators on this machine need the room
    return prepared


def reopen(
    recorded: dict[str, str], uri: str | None, config: TrainConfig, source: ModelSource, console: Console
) -> Preparation:
    """The preparation that the run began with; built again where cache and run have lost it."""
    prepared = find_preparation(Path(recorded["folder"]), recorded["digest"], uri)
    if prepared is None:
        prepared = prepare_run(config, source, console)
    if prepared.digest != recorded["digest"]:
        raise RunError(
            f"The run was started with preparation {recorded['digest'][:12]}, but the one here is "
            f"{prepared.digest[:12]}: the calibration text or the versions changed. Start a new run."
        )
    prepared.check_model(source.digest, source.spec)
    return prepared


def driver_device(config: TrainConfig) -> str:
    """Where the driver itself computes: on as many GPUs as an evaluator, if they are here (a head may have none)."""
    import torch

    if not config.evaluator.device.startswith("cuda") or not torch.cuda.is_available():
        return "cpu"
    return devices_for("cuda", min(config.pool.gpus or 1, torch.cuda.device_count()))


def portable(spec: str) -> str:
    """``spec`` so that it means the same to an actor with another working directory."""
    path = Path(spec).expanduser()
    return str(path.resolve()) if path.exists() else spec
