"""What the learner actor wraps, and how it is opened on a run's log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from unicuco.evaluations import Candidate, Evaluation
    from unicuco.latency import NamedTable


class LearnerLike(Protocol):
    """What the actor wraps: ``unicuco.learner.Learner``, or anything with its methods."""

    def ask(self, n: int) -> list[Candidate]: ...
    def tell(self, *evaluations: Evaluation) -> int: ...
    def give_up(self, candidate: Candidate, reason: str) -> None: ...
    def requeue(self, candidate: Candidate) -> None: ...
    def needs_training(self) -> bool: ...
    def train(self) -> Any: ...
    def status(self) -> Any: ...
    def finished(self) -> bool: ...
    def save_policy(self, folder: Path) -> None: ...


def open_learner(
    preparation: Path,
    evaluations: Path,
    config: Any,
    provenance: dict[str, Any],
    uri: str | None = None,
    latency: NamedTable | None = None,
) -> LearnerLike:
    """``unicuco.learner.Learner`` on a run's log, with what the preparation knows of the search space.

    Args:
        uri: of a run that does not lie on this machine's disk; ``evaluations`` then mirrors its log.
        latency: a table by which latency is an objective.
    """
    from unicuco.evaluations import EvaluationLog
    from unicuco.learner import Learner
    from unicuco.preparation import Preparation

    prepared = Preparation.open(preparation)
    domains = [domain.name for domain in prepared.config.calibration.domains]
    if uri is not None:
        from unicuco.remote.learner import RemoteLearner
        from unicuco.remote.log import RemoteLog
        from unicuco.remote.store import Store

        remote = RemoteLog(evaluations, Store(uri))
        return RemoteLearner(
            prepared.space, prepared.damage, config, remote, provenance, prepared.margin_groups, domains, latency
        )
    log = EvaluationLog(evaluations)
    return Learner(prepared.space, prepared.damage, config, log, provenance, prepared.margin_groups, domains, latency)
