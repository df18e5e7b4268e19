"""Reads a run folder for the report: whatever of it exists, since a report may be asked for while the run goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unicuco.errors import EvaluationLogError, PolicyError
from unicuco.evaluations import Evaluation, EvaluationLog
from unicuco.models.geometry import Geometry
from unicuco.request import Request
from unicuco.space import SearchSpace, Shape, Size, SpaceConfig

PREDICTED_SIZES = 40
"""Points at which the policy's front is drawn."""
PREFERRED_SIZES = (0.9, 0.8, 0.7, 0.6, 0.5)
PREFERRED_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Sizes, and shares of one domain against another, for which the policy is asked where domains are objectives."""


class HeldOut(BaseModel):
    """One answer of the policy, measured on windows that training never saw. KL in nats per token."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kept: float = Field(gt=0, le=1)
    levels: tuple[int, ...] = ()
    kl_search: float | None = None
    kl_heldout: float
    kl_predicted: float | None = None
    kl_low: float | None = None
    kl_high: float | None = None
    kl_uniform_heldout: float | None = None
    latency_ms: float | None = None


class Progress(BaseModel):
    """One line of ``progress.jsonl``; ``elapsed``: seconds of training, sessions before a resume included."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    elapsed: float = 0.0
    done: int
    failed: int = 0
    running: int = 0
    version: int = 0
    hypervolume: float = math.nan
    evaluations_per_second: float = math.nan


class Predicted(NamedTuple):
    """What the policy promises at one size: KL on fresh text with its 90 % interval, nats per token."""

    kept: float
    kl: float
    kl_low: float
    kl_high: float


class Preferred(NamedTuple):
    """What the policy promises where ``first`` counts ``share``, ``second`` the rest; nats per token, fresh text."""

    bound: float
    kept: float
    first: str
    second: str
    share: float
    kl_first: float
    kl_second: float


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        settings: ``run.json`` as it is.
        evaluations: in the order in which they finished.
        heldout: by ``kept``, largest first.
        space: the search space, once the run has saved a policy.
        predicted: the policy's own front, smallest first; empty without a policy.
        preferred: its answers where one domain is preferred to another; empty where domains are no objectives.
        notes: one sentence for each thing that could not be read and is left out.
    """

    folder: Path
    settings: dict[str, Any]
    evaluations: list[Evaluation]
    progress: list[Progress] = field(default_factory=list)
    heldout: list[HeldOut] = field(default_factory=list)
    space: SearchSpace | None = None
    predicted: list[Predicted] = field(default_factory=list)
    preferred: list[Preferred] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def front(self) -> list[Evaluation]:
        """Evaluations that no other one beats in both kept and KL, smallest first."""
        return pareto_front(self.evaluations)

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """The calibration domains, as the evaluations name them."""
        return next((e.domains for e in self.evaluations if e.domains), ())

    def setting(self, *names: str) -> Any:
        """The setting nearest to the top of ``run.json`` that has one of ``names``; ``None`` when there is none."""
        level: list[Any] = [self.settings]
        while level:
            for name in names:
                for item in level:
                    if isinstance(item, dict) and item.get(name) not in (None, "", [], {}):
                        return item[name]
            level = [value for item in level if isinstance(item, dict) for value in item.values()]
        return None

    def shape(self, levels: tuple[int, ...]) -> Shape | None:
        """What ``levels`` leaves in each block; ``None`` without a search space that they fit."""
        return self.space.shape(np.array(levels)) if self.space and self._fits(levels) else None

    def size(self, levels: tuple[int, ...]) -> Size | None:
        """Exact size of ``levels``, weights in two bytes each; ``None`` without a search space that they fit."""
        return self.space.size(np.array(levels)) if self.space and self._fits(levels) else None

    def _fits(self, levels: tuple[int, ...]) -> bool:
        if self.space is None or len(levels) != self.space.num_sites:
            return False
        return bool((np.array(levels) >= 0).all() and (np.array(levels) < self.space.num_levels).all())


def pareto_front(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """The evaluations that no other one beats in both kept and KL, smallest first."""
    front: list[Evaluation] = []
    for evaluation in sorted(evaluations, key=lambda e: (e.kept, e.kl)):
        if not front or evaluation.kl < front[-1].kl:
            front.append(evaluation)
    return front


def read_run(folder: Path) -> Run:
    """Reads a run folder, finished or still going.

    Raises:
        EvaluationLogError: the folder is no run, or one of its files is broken.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise EvaluationLogError(
            f"{folder} is not a training run: it holds no run.json. Give the folder that 'unicuco train --run' wrote."
        )
    settings = _read_json(folder / "run.json")
    if not isinstance(settings, dict):
        raise EvaluationLogError(f"{folder / 'run.json'} is broken: it holds no JSON object.")
    notes: list[str] = []
    predicted, preferred = _ask_policy(folder / "policy", notes)
    return Run(
        folder=folder,
        settings=settings,
        evaluations=EvaluationLog(folder / "evaluations").read(),
        progress=_read_progress(folder / "progress.jsonl", notes),
        heldout=_read_heldout(folder / "heldout.json"),
        space=_read_space(folder / "policy" / "policy.json", notes),
        predicted=predicted,
        preferred=preferred,
        notes=notes,
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationLogError(f"{path} is broken: {error}.") from error


def _read_heldout(path: Path) -> list[HeldOut]:
    if not path.is_file():
        return []
    rows = _read_json(path)
    try:
        points = [HeldOut.model_validate(row) for row in rows]
    except (ValidationError, TypeError) as error:
        raise EvaluationLogError(f"{path} is broken: it is not a list of held-out measurements.") from error
    return sorted(points, key=lambda point: -point.kept)


def _read_progress(path: Path, notes: list[str]) -> list[Progress]:
    """Every whole line; a kill can tear one, and a resumed run then goes on behind it."""
    records, torn = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            records.append(Progress.model_validate_json(line))
        except ValidationError:
            torn += bool(line.strip())
    if torn:
        notes.append(f"{torn} torn line{'s' * (torn > 1)} of progress.jsonl left out.")
    return records


def _read_space(path: Path, notes: list[str]) -> SearchSpace | None:
    if not path.is_file():
        return None
    try:
        saved = _read_json(path)["space"]
        return SearchSpace(Geometry.model_validate(saved["geometry"]), SpaceConfig.model_validate(saved["config"]))
    except (KeyError, TypeError, ValidationError):
        notes.append(
            "The policy names no search space that this version of UniCuCo knows; its strategies are left out."
        )
        return None


def _ask_policy(folder: Path, notes: list[str]) -> tuple[list[Predicted], list[Preferred]]:
    """The policy's answers to a ladder of sizes, and to preferences between every two domains."""
    if not (folder / "stratnet.safetensors").is_file():
        return [], []
    from unicuco.policy import Policy  # brings torch and gpytorch

    try:
        policy = Policy.load(folder)
    except PolicyError as error:
        notes.append(f"The policy's own predictions are left out: {error}")
        return [], []
    sizes = np.linspace(policy.scale.kept_low, 0.98, PREDICTED_SIZES)
    answers = policy.answer([Request(kept=float(kept)) for kept in sizes])
    predicted = [Predicted(a.kept, a.kl, a.kl_low, a.kl_high) for a in answers if a.feasible]
    names = policy.qualities.names if policy.parts.domains else ()
    preferred = []
    for first, second in combinations(names, 2):
        asked = [
            (size, share) for size in PREFERRED_SIZES for share in PREFERRED_SHARES if size >= policy.scale.kept_low
        ]
        requests = [Request(kept=size, preference={first: share, second: 1 - share}) for size, share in asked]
        for (size, share), a in zip(asked, policy.answer(requests), strict=True):
            kls = (a.domains[first].kl, a.domains[second].kl)
            preferred.append(Preferred(size, a.kept, first, second, share, *kls))
    return predicted, preferred
