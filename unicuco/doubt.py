"""Whether a surrogate explains what was measured, and what a policy believes where it does not.

With few evaluations of a base model whose damages are unlike what is assumed of them, the fit can miss what it was
fitted to. Whatever it then promises for strategies that nobody measured is a guess, and on a real model such guesses
were several times worse than uniform pruning that had been measured (docs/decisions.md). A doubted policy believes
measurements first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unicuco.evaluations import Evaluation
from unicuco.qualities import Qualities
from unicuco.surrogate import NOISE_FLOOR, Surrogate

TRUSTED = 0.12
"""Misfit in log KL up to which a surrogate is believed: twice the largest of any search on SmolLM2."""
TRIVIAL_KL = 1e-3
"""Nats per token under which an evaluation is no test of a fit: near the whole model its logarithm is mostly noise."""
TESTED = 200
"""Evaluations that a fit is tested on at most, evenly over the run."""


@dataclass(frozen=True)
class Doubt:
    """A surrogate's misfit, and what was measured, by strategy.

    Attributes:
        misfit: as ``misfit`` says.
        mean, qualities: measured log KL over the domains (1), and of every quality that is an objective
            (``num_qualities``).
    """

    misfit: float
    mean: dict[bytes, np.ndarray]
    qualities: dict[bytes, np.ndarray]

    @classmethod
    def of(cls, surrogate: Surrogate, qualities: Qualities, evaluations: Sequence[Evaluation]) -> Doubt | None:
        """The doubt about ``surrogate``, or ``None`` where it is to be believed."""
        found = misfit(surrogate, evaluations)
        if found <= TRUSTED:
            return None
        keys = [np.array(e.levels, dtype=np.int64).tobytes() for e in evaluations]
        mean, own = Qualities.of_mean(surrogate).measured(evaluations), qualities.measured(evaluations)
        return cls(
            found, *({k: row for k, row in zip(keys, v, strict=True) if np.isfinite(row).all()} for v in (mean, own))
        )

    def on_mean(
        self, levels: np.ndarray, mean: np.ndarray, spread: np.ndarray, sampled: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of log KL (``n`` each): measured where they are, else with the misfit in the deviation.

        Args:
            levels: ``n x num_sites``; sampled: deviation by the draw of windows alone (``n``).
        """
        found, spreads = self._believe(self.mean, levels, mean[:, None], spread[:, None], sampled)
        return found[:, 0], spreads[:, 0]

    def on_qualities(
        self, levels: np.ndarray, qualities: np.ndarray, spreads: np.ndarray, sampled: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same of every quality (``n x num_qualities`` each)."""
        return self._believe(self.qualities, levels, qualities, spreads, sampled)

    def _believe(
        self,
        measured: dict[bytes, np.ndarray],
        levels: np.ndarray,
        values: np.ndarray,
        spreads: np.ndarray,
        sampled: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        values, spreads = values.copy(), np.hypot(spreads, self.misfit)
        for i, row in enumerate(levels):
            if (known := measured.get(np.asarray(row, dtype=np.int64).tobytes())) is not None:
                values[i], spreads[i] = known, sampled[i]
        return values, spreads


def misfit(surrogate: Surrogate, evaluations: Sequence[Evaluation]) -> float:
    """Root mean square of predicted against measured log KL of what the surrogate was fitted to.

    Predicted is KL on fresh text, which differs from what the search windows say by their luck: by 0.06 at most on
    SmolLM2.
    """
    done = [e for e in evaluations if TRIVIAL_KL < e.kl < np.inf]
    done = [done[i] for i in np.linspace(0, len(done) - 1, min(len(done), TESTED)).round().astype(int)]
    if not done:
        return 0.0
    levels = np.array([e.levels for e in done], dtype=np.int64)
    with torch.no_grad():
        predicted, _ = surrogate.predict(torch.as_tensor(surrogate.space.sparsities(levels)))
    gap = predicted.numpy() - np.log(np.array([e.kl for e in done]) + NOISE_FLOOR)
    return float(np.sqrt(np.mean(gap**2)))
