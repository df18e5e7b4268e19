"""What a run tells Prometheus, through Ray's metrics port: all of it begins with ``ray_unicuco_run_``.

``cluster/grafana/unicuco.json`` draws it. Labels are the run's folder name alone: paths would be long and many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unicuco.evaluations import Evaluation

GAUGES = {
    "spent": "Standard evaluations of the budget that are done or failed.",
    "running": "Candidates at evaluators now.",
    "waiting": "Proposals of the last training that nobody has asked for yet.",
    "staleness": "Trainings that the last evaluations were behind when they came back, on average.",
    "policy_version": "Trainings so far.",
    "hypervolume": "Of the measured front of kept share and log KL.",
    "evaluators": "Evaluators ready for work.",
    "training": "1 while the learner trains.",
}
SECONDS = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0]


class RunMetrics:
    """Gauges and counters of one run; lives in the learner actor."""

    def __init__(self, run: str) -> None:
        from ray.util import metrics

        tags = {"run": run}
        self._gauges = {name: metrics.Gauge(f"unicuco_run_{name}", text, ("run",)) for name, text in GAUGES.items()}
        self._done = metrics.Counter("unicuco_run_evaluations_total", "Evaluations measured.", ("run",))
        self._failed = metrics.Counter("unicuco_run_given_up_total", "Candidates given up for good.", ("run",))
        self._returned = metrics.Counter("unicuco_run_returned_total", "Candidates handed out once more.", ("run",))
        self._seconds = metrics.Histogram("unicuco_run_evaluation_seconds", "Of one evaluation.", SECONDS, ("run",))
        for metric in (*self._gauges.values(), self._done, self._failed, self._returned, self._seconds):
            metric.set_default_tags(tags)

    def measured(self, evaluation: Evaluation) -> None:
        self._done.inc()
        self._seconds.observe(max(evaluation.seconds, 1e-3))

    def given_up(self) -> None:
        self._failed.inc()

    def returned(self) -> None:
        self._returned.inc()

    def stand(self, status: Any, evaluators: int, training: bool) -> None:
        """How the run stands; ``status`` is the learner's own (``unicuco.learner.LearnerStatus``)."""
        values = {
            "spent": status.spent,
            "running": status.running,
            "waiting": status.waiting,
            "staleness": status.staleness,
            "policy_version": status.version,
            "hypervolume": status.hypervolume,
            "evaluators": evaluators,
            "training": int(training),
        }
        for name, value in values.items():
            self._gauges[name].set(value)
