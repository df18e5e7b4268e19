"""How well each form of the surrogate predicts evaluations that it has not seen, on a recorded run.

    python -m benchmarks.surrogate --json FILE [--run RUN]

Fits on the first n evaluations of the run (default: the demo's) and predicts all later ones, as a search has to.

- ``rmse``: of log KL, per form and n; ``coverage``: share of later evaluations inside the 90 % interval; ``fit_s``.

The run's own surrogate chose what comes later, so the figures favour neither form by design but both face the front.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import demo_policy, finish, parser, surroundings
from unicuco.policy import Policy
from unicuco.sampling import Z90
from unicuco.slopes import read_slopes
from unicuco.surrogate import NOISE_FLOOR, Surrogate, SurrogateConfig

SHARES = (0.1, 0.2, 0.4, 0.7)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--run", type=Path, help="a run or policy folder")
    given = options.parse_args()
    parts = Policy.load(given.run or demo_policy()).parts
    done = sorted(parts.evaluations, key=lambda e: (e.finished, e.eval_id))
    levels, kl = np.array([e.levels for e in done]), np.array([e.kl for e in done])
    logs, x = np.log(kl + NOISE_FLOOR), torch.as_tensor(parts.space.sparsities(levels))
    forms: dict[str, list[dict[str, float]]] = {}
    for form, mean_form, with_margins in (
        ("damage", "damage", True),
        ("damage, margins left out", "damage", False),
        ("plain", "plain", False),
    ):
        for n in (max(8, round(share * len(done))) for share in SHARES):
            began = time.perf_counter()
            config = SurrogateConfig.model_validate({"mean": mean_form})
            slopes = read_slopes(parts.space, done[:n]) if with_margins else None
            surrogate = Surrogate(parts.space, parts.damage, config).fit(levels[:n], kl[:n], slopes)
            seconds = time.perf_counter() - began
            with torch.no_grad():
                mean, deviation = surrogate.predict(x[n:])
            error = logs[n:] - mean.numpy()
            spread = np.sqrt(deviation.numpy() ** 2 + surrogate.noise_std**2)
            row = {
                "n": n,
                "rmse": float(np.sqrt((error**2).mean())),
                "bias": float(error.mean()),
                "coverage": float((np.abs(error) <= Z90 * spread).mean()),
                "fit_s": seconds,
            }
            forms.setdefault(form, []).append(row)
    rows = [
        (
            f"{form}, {row['n']:.0f} evaluations",
            f"rmse {row['rmse']:.3f}, bias {row['bias']:+.3f}, coverage {row['coverage']:.2f}",
            "",
        )
        for form, found in forms.items()
        for row in found
    ]
    about = surroundings(
        model=parts.provenance.get("model", {}).get("spec"), evaluations=len(done), threads=torch.get_num_threads()
    )
    finish("Surrogate: log KL of later evaluations", rows, {**forms, "surroundings": about}, given.json)


if __name__ == "__main__":
    main()
