"""Small real learners and evaluators in plain Python: the actors do with them what they do with the big ones."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from unicuco.errors import ModelError
from unicuco.evaluations import Candidate, Evaluation, EvaluationLog
from unicuco.learner_status import LearnerStatus


def hoard() -> None:
    """Takes 6 GB, 100 MB at a time, so that whoever watches has the time to end this process."""
    held = []
    for _ in range(60):
        held.append(b"x" * (100 << 20))
        time.sleep(0.05)


class QuadraticEvaluator:
    """Damage grows with the square of the levels; leaves a note of who works on what, so that tests can aim.

    The candidate's origin can ask for trouble: ``poison`` kills the process, ``broken`` raises, ``heavy`` takes memory
    until somebody ends the process.
    """

    def __init__(self, notes: Path, seconds: float = 0.0, missing_model: bool = False) -> None:
        if missing_model:
            raise ModelError("No folder at /nowhere.")
        self.notes, self.seconds = Path(notes), seconds

    def evaluate(self, candidate: Candidate) -> Evaluation:
        note = self.notes / f"{candidate.eval_id}.{os.getpid()}.{time.time_ns()}"
        note.touch()
        if candidate.origin == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if candidate.origin == "broken":
            raise ValueError("no such thing")
        if candidate.origin == "heavy":
            hoard()
        time.sleep(self.seconds)
        damage = sum(level**2 for level in candidate.levels) / 100
        return Evaluation(
            candidate.eval_id, candidate.levels, candidate.origin, 100, 0.5, damage, damage, 2.0, ("text",), (damage,),
            64, 64.0, self.seconds, "float32", "cpu", 1, 0, "p", "w", finished=time.time(),
        )  # fmt: skip


class CountingLearner:
    """Hands out ``budget`` candidates in order and trains every ``every`` results by multiplying matrices.

    The first of all trainings takes memory until somebody ends the process, if ``hoards`` names a file to note it in.
    """

    def __init__(
        self,
        evaluations: Path,
        budget: int,
        broken: tuple[int, ...] = (),
        heavy: tuple[int, ...] = (),
        every: int = 1000,
        train_seconds: float = 0.0,
        hoards: Path | None = None,
    ) -> None:
        self.hoards = hoards
        self.log = EvaluationLog(evaluations)
        self.budget, self.every, self.train_seconds = budget, every, train_seconds
        self.origins = {**dict.fromkeys(broken, "broken"), **dict.fromkeys(heavy, "heavy")}
        self.lock = threading.Lock()
        done = {evaluation.eval_id for evaluation in self.log.read()}
        self.queue = [f"e{i}" for i in range(budget) if f"e{i}" not in done]
        self.submitted = self.done = len(done)
        self.failed: dict[str, str] = {}
        self.version = 0
        self.trained_at = self.done

    def ask(self, n: int) -> list[Candidate]:
        with self.lock:
            names, self.queue = self.queue[:n], self.queue[n:]
            self.submitted += len(names)
            return [self._candidate(name) for name in names]

    def _candidate(self, name: str) -> Candidate:
        number = int(name[1:])
        return Candidate(name, (number, number + 1), self.origins.get(number, "uniform"))

    def tell(self, *evaluations: Evaluation) -> int:
        with self.lock:
            new = self.log.append(*evaluations)
            self.done += new
            return new

    def give_up(self, candidate: Candidate, reason: str) -> None:
        with self.lock:
            self.failed[candidate.eval_id] = reason

    def requeue(self, candidate: Candidate) -> None:
        with self.lock:
            self.queue.insert(0, candidate.eval_id)
            self.submitted -= 1

    def needs_training(self) -> bool:
        fresh = self.done - self.trained_at
        return fresh >= self.every or (self._spent() and fresh > 0)

    def _spent(self) -> bool:
        return self.done + len(self.failed) == self.budget

    def train(self) -> None:
        self.trained_at = self.done
        if self.hoards and not self.hoards.exists():
            self.hoards.touch()
            hoard()
        import torch

        end = time.perf_counter() + self.train_seconds
        weights = torch.rand(400, 400, dtype=torch.float64)
        while time.perf_counter() < end:
            weights = torch.linalg.inv(weights @ weights.T + torch.eye(400, dtype=torch.float64))
        self.version += 1

    def status(self) -> LearnerStatus:
        running = self.submitted - self.done - len(self.failed)
        front = [(0.5, 0.1)] if self.done else []
        counts = (self.submitted, self.done, len(self.failed), running, self.version)
        return LearnerStatus(*counts, 0.0, front, self.done + len(self.failed), len(self.queue))

    def finished(self) -> bool:
        return self._spent() and self.trained_at == self.done

    def save_policy(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "version").write_text(str(self.version))
