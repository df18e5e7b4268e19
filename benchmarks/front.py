"""A fresh run against uniform pruning, on text that nobody searched on.

    python -m benchmarks.front --json FILE [--quick] [--runs FOLDER]

Three runs with three seeds (of the search and of the windows), each at most 150 standard evaluations; then the policy's
answers at kept 0.9 to 0.5 and both uniform forms are measured on held-out windows. Means over seeds:

- ``kl_vs_uniform``: KL of our answer ÷ KL of the better uniform form, per size (goal: none above 1.03);
- ``sizes_won``: how many of these are below 1 (goal 4 of 5); ``kl_vs_uniform_geomean`` (goal 0.95);
- ``search_gap``: held-out ÷ search KL of our answers, geometric mean: how much of the gain was luck.

``--quick``: one seed, three sizes. Each seed keeps its run folder under ``--runs``: a benchmark that was cut off
goes on where it stopped, and a finished seed is read, not repeated (delete its folder to repeat it).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import MODEL, console, finish, parser, surroundings
from cluster.runs import RunFolder
from cluster.training import TrainConfig, resume, train
from unicuco.calibration import CalibrationConfig
from unicuco.learner import LearnerConfig
from unicuco.preparation import PreparationConfig

EVALUATIONS = 150


def run(seed: int, folder: Path) -> tuple[list[dict[str, Any]], TrainConfig]:
    """Rows of held-out measurements of one run, made, finished or only read in ``folder``."""
    config = TrainConfig(
        model=MODEL,
        run=folder,
        preparation=PreparationConfig(calibration=CalibrationConfig(seed=seed)),
        learner=LearnerConfig(evaluations=EVALUATIONS, seed=seed),
    )
    there = RunFolder(folder)
    if there.heldout.is_file():
        console.print(f"Seed {seed}: finished before, read from {folder}.")
    elif there.about.is_file():
        resume(folder, console=console)
    else:
        train(config, console)
    return json.loads(there.heldout.read_text(encoding="utf-8")), config


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--quick", action="store_true", help="one seed, three sizes")
    options.add_argument("--runs", type=Path, default=Path("runs/front"), help="where the runs of the seeds lie")
    given = options.parse_args()
    seeds = (0,) if given.quick else (0, 1, 2)
    wanted = (0.9, 0.7, 0.5) if given.quick else (0.9, 0.8, 0.7, 0.6, 0.5)
    runs = [run(seed, given.runs / f"seed-{seed}") for seed in seeds]
    by_size = {kept: [row for rows, _ in runs for row in rows if row["kept"] == kept] for kept in wanted}
    ratios = {k: np.array([r["kl_heldout"] / r["kl_uniform_heldout"] for r in rows]) for k, rows in by_size.items()}
    means = [float(np.exp(np.log(r).mean())) for r in ratios.values()]
    gaps = [row["kl_heldout"] / row["kl_search"] for rows in by_size.values() for row in rows]
    inside = [row["kl_low"] <= row["kl_heldout"] <= row["kl_high"] for rows in by_size.values() for row in rows]
    config = runs[0][1]
    figures = {
        "sizes": list(wanted),
        "kl_vs_uniform": means,
        "kl_vs_uniform_spread": [float(r.max() - r.min()) for r in ratios.values()],
        "sizes_won": sum(mean < 1 for mean in means),
        "kl_vs_uniform_geomean": float(np.exp(np.log(means).mean())),
        "search_gap": float(np.exp(np.log(gaps).mean())),
        "inside_interval": float(np.mean(inside)),
        "rows": [rows for rows, _ in runs],
        "surroundings": surroundings(
            model=MODEL,
            seeds=list(seeds),
            corpus=config.preparation.calibration.domains[0].source,
            evaluations=EVALUATIONS,
            tokens=config.tokens,
            tokens_heldout=runs[0][0][0]["tokens_heldout"],
            dtype=config.evaluator.dtype,
        ),
    }
    rows = [
        (f"kl_vs_uniform at kept {kept}", f"{mean:.3f} (spread {spread:.3f})", "1.03")
        for kept, mean, spread in zip(wanted, means, figures["kl_vs_uniform_spread"], strict=True)
    ]
    rows += [
        ("sizes_won", f"{figures['sizes_won']} of {len(wanted)}", "4 of 5"),
        ("kl_vs_uniform_geomean", f"{figures['kl_vs_uniform_geomean']:.3f}", "0.95"),
        ("search_gap (held out ÷ search)", f"{figures['search_gap']:.3f}", ""),
        ("inside the 90 % interval", f"{figures['inside_interval']:.2f}", ""),
    ]
    finish("Front: our answers against uniform pruning, held out", rows, figures, given.json)


if __name__ == "__main__":
    main()
