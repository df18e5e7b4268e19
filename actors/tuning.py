"""A sweep on Ray Tune: trials in actors that are used again, and a searcher that asks ``unicuco.tuning.halving``.

Importing this module imports Ray Tune; only the driver of a sweep does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from actors.runtime import environment
from unicuco.errors import TuningError
from unicuco.tuning.halving import Halving
from unicuco.tuning.study import Job, Score, Scorer, Study

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # nobody reads three logs of every trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a sweep, not a trial
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class Trial(tune.Trainable):
    """One process that scores one job after the other; its fits and the oracle stay where they are in between."""

    def setup(self, config: dict[str, Any], study: Study) -> None:  # type: ignore[override]
        import torch

        torch.set_num_threads(1)
        self._scorer = Scorer(study)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._job = Job(**new_config)
        return True

    def step(self) -> dict[str, Any]:
        return {"score": self._scorer.score(self._job), "done": True}


class _HalvingSearcher(Searcher):
    """Hands out the jobs of a ``Halving`` and tells it what came of them; in the driver's process.

    Args:
        report: called with the number of trials done after each.
    """

    def __init__(self, halving: Halving, report: Callable[[int], None]) -> None:
        super().__init__()
        self._halving, self._report = halving, report
        self._jobs: dict[str, Job] = {}
        self.error: TuningError | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune writes its searcher down. A display cannot be, and no sweep is resumed.
        return {**vars(self), "_report": None}

    def suggest(self, trial_id: str) -> Any:
        if self.error is not None or self._halving.finished:
            return Searcher.FINISHED
        job = self._halving.next()
        if job is None:
            return None
        self._jobs[trial_id] = job
        return asdict(job)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        score = (result or {}).get("score")
        if error or not isinstance(score, Score):
            score = Score.failed("its process died")
        try:
            self._halving.tell(self._jobs.pop(trial_id), score)
        except TuningError as found:  # raised here, it would be logged by Tune and lost
            self.error = found
        self._report(len(self._halving.scores))

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # a sweep is not resumed

    def restore(self, checkpoint_path: str) -> None: ...


def run_sweep(study: Study, halving: Halving, report: Callable[[int], None]) -> None:
    """Runs all jobs of ``halving`` on the connected Ray, as many at a time as it has processors.

    Args:
        report: called with the number of trials done after each.

    Raises:
        TuningError: the default setting fails.
    """
    searcher = _HalvingSearcher(halving, report)
    with environment(SETTINGS), tempfile.TemporaryDirectory(prefix="ucc-tune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(Trial, study=study), {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=halving.total + 1,  # the searcher says when it is over
                reuse_actors=True,
                metric=None,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
    if searcher.error is not None:
        raise searcher.error
    if not halving.finished:
        raise TuningError(f"The sweep ended after {len(halving.scores)} of {halving.total} trials.")


def processors() -> int:
    """Trials that run at a time on the connected Ray."""
    return int(ray.cluster_resources().get("CPU", 1))


def _name(trial: Any) -> str:
    return str(trial.trial_id)
