"""Our search against every rival on the same budget, on the same evaluator; judged on windows nobody searched on.

    python -m benchmarks.search --evaluations 300 [--space blocks] [--only NAME ...] [--minutes N] [--json FILE]

Budgets are full-forward-equivalent evaluations of the standard tokens, for all sizes together; ``evolution-5x`` gets as
many for each of two sizes. Figures, means over seeds:

- ``kl_vs_best_equal_budget``: held-out KL of our answer ÷ that of the best rival at the size (goal: geometric mean 1.0,
  none above 1.03); ``kl_vs_uniform_geomean`` (goal 0.85); ``kl_vs_evolution_5x`` (goal 1.0);
- ``hypervolume_ratio`` per rival: of (kept, log KL held out), ours ÷ theirs (goal 1.0);
- ``search_gap``: held-out ÷ search KL per contestant: how much of what it found was luck.

Everything lies under ``--runs``: evaluations in a cache, a finished contestant in ``results/NAME.json``. A benchmark that is
cut off, by ``--minutes`` or otherwise, goes on where it stopped; what it prints says who is still missing. ``--quick``:
one seed, three sizes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import CONTESTANTS, DEPTH_CONTESTANTS, LONG_SIZES, Contestant, Race
from benchmarks.harness import MODEL, console, finish, parser, surroundings
from unicuco.baselines.cached import EvaluationCache
from unicuco.baselines.uniform import LADDER
from unicuco.calibration import CalibrationConfig
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.heldout import WINDOWS, open_heldout
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.objectives import hypervolume
from unicuco.preparation import PreparationConfig, prepare
from unicuco.space import SPACES
from unicuco.storage import write_json

DEPTH_SIZES = (0.875, 0.75, 0.625)
Results = dict[str, dict[str, Any]]
"""Contestant -> ``levels``, ``search`` and ``heldout`` KL per size, ``seconds``; one such table per seed."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--evaluations", type=int, default=300)
    options.add_argument("--space", choices=list(SPACES), default="mixed")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--only", nargs="+", help="run these contestants only")
    options.add_argument("--minutes", type=float, default=float("inf"), help="start no contestant after this long")
    options.add_argument("--runs", type=Path, default=Path("runs/search"))
    options.add_argument("--quick", action="store_true", help="one seed, three sizes")
    given = options.parse_args()
    depth = SPACES[given.space].pruner == "depth"
    sizes = DEPTH_SIZES if depth else LADDER[::2] if given.quick else LADDER
    seeds = given.seeds[:1] if given.quick else given.seeds
    field = DEPTH_CONTESTANTS if depth else CONTESTANTS
    todo = {name: run for name, run in field.items() if not given.only or name in given.only}
    until = time.monotonic() + 60 * given.minutes
    tables, evaluator = [], None
    for seed in seeds:
        evaluator = open_evaluator(given.space, seed)
        folder = given.runs / given.space / f"{given.evaluations}-{len(sizes)}-seed-{seed}"
        cache = EvaluationCache(evaluator, given.runs / "cache" / f"{evaluator.preparation.digest[:16]}")
        run_seed(Race(cache, sizes, given.evaluations, seed, folder), todo, until)
        tables.append(read_results(folder))
    assert evaluator is not None
    about = surroundings(
        model=MODEL,
        space=given.space,
        seeds=seeds,
        sizes=list(sizes),
        corpus=evaluator.preparation.config.calibration.domains[0].source,
        evaluations=given.evaluations,
        tokens=evaluator.num_tokens,
        tokens_heldout=evaluator.num_tokens // len(evaluator.windows.tokens) * WINDOWS,
        dtype=evaluator.config.dtype,
    )
    report(tables, sizes, list(field), about, given.json)


def open_evaluator(space: str, seed: int) -> Evaluator:
    """The base model on the windows of ``seed``."""
    config = PreparationConfig(calibration=CalibrationConfig(seed=seed), space=SPACES[space])
    base = load_base_model(MODEL, config.dtype)
    prepared = prepare(base, load_tokenizer(base.source), config)
    return Evaluator(MODEL, prepared.folder, EvaluatorConfig(), base=base)


def run_seed(race: Race, todo: dict[str, Contestant], until: float) -> None:
    """Everybody of ``todo`` that has not finished yet, each into a file of its own: several of these may run at once."""
    heldout = open_heldout(race.cache.evaluator, WINDOWS)
    for name, contestant in todo.items():
        path = race.folder / "results" / f"{name}.json"
        if path.is_file() or time.monotonic() > until:
            continue
        began, misses = time.perf_counter(), race.cache.misses
        levels = contestant(race)
        seconds = time.perf_counter() - began
        asked = [i for i, row in enumerate(levels) if (row >= 0).all()]
        assert all(race.cache.evaluator.space.kept(levels[i]) <= race.sizes[i] + 1e-9 for i in asked), name
        result = {
            "levels": levels.tolist(),
            "search": [race.cache.kl(row) if i in asked else None for i, row in enumerate(levels)],
            "heldout": [race.cache.kl(row, heldout) if i in asked else None for i, row in enumerate(levels)],
            "seconds": seconds,
            "measured_anew": race.cache.misses - misses,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        shown = " ".join("-" if kl is None else f"{kl:.4f}" for kl in result["heldout"])
        console.print(f"seed {race.seed}  {name:<16} held out {shown}  {seconds:.0f} s")


def read_results(folder: Path) -> Results:
    """What has finished on one seed."""
    paths = sorted((folder / "results").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def report(tables: list[Results], sizes: tuple[float, ...], field: list[str], about: dict[str, Any], to: Any) -> None:
    """Tables of all contestants that finished on every seed, and the figures."""
    there = [name for name in field if all(name in table for table in tables)]
    missing = [name for name in field if name not in there]
    if missing:
        console.print(f"Not finished on every seed, left out: {', '.join(missing)}. Run again to go on.")
    kl = {name: np.array([_floats(table[name]["heldout"]) for table in tables]) for name in there}  # seeds x sizes
    search = {name: np.array([_floats(table[name]["search"]) for table in tables]) for name in there}
    # The protocol's reference is uniform at the smallest size; where there is no uniform, the worst that anybody has.
    judges = [n for n in there if n.startswith("uniform")]
    reference = np.min([kl[n][:, -1] for n in judges], axis=0) if judges else np.max([k[:, -1] for k in kl.values()], 0)
    volumes = {n: np.array([_volume(row, sizes, r) for row, r in zip(kl[n], reference, strict=True)]) for n in there}
    figures: dict[str, Any] = {
        "heldout": {name: kl[name].tolist() for name in there},
        "search_gap": {name: _geomean(kl[name] / search[name]) for name in there},
        "seconds": {name: [table[name]["seconds"] for table in tables] for name in there},
        "missing": missing,
        "surroundings": about,
    }
    rows = [
        (
            f"held-out KL, {name}",
            "  ".join(f"{v:.4f}" for v in _logmean(kl[name])),
            f"{figures['search_gap'][name]:.3f}",
        )
        for name in there
    ]
    rows = [(name, values, f"gap {gap}") for name, values, gap in rows]
    rivals = [name for name in there if name not in ("ours", "without-margins", "evolution-5x")]
    if "ours" in there and rivals:
        best = np.min([_logmean(kl[name]) for name in rivals], axis=0)
        ratio = _logmean(kl["ours"]) / best
        figures["kl_vs_best_equal_budget"] = ratio.tolist()
        figures["kl_vs_best_geomean"] = _geomean(ratio)
        figures["hypervolume_ratio"] = {n: float((volumes["ours"] / volumes[n]).mean()) for n in rivals}
        rows += [
            ("kl_vs_best_equal_budget", "  ".join(f"{v:.3f}" for v in ratio), "none > 1.03"),
            ("its geometric mean", f"{figures['kl_vs_best_geomean']:.3f}", "1.0"),
        ]
        rows += [(f"hypervolume_ratio, {n}", f"{v:.3f}", "1.0") for n, v in figures["hypervolume_ratio"].items()]
        forms = [name for name in rivals if name.startswith("uniform")]
        if forms:
            against = _logmean(kl["ours"]) / np.min([_logmean(kl[name]) for name in forms], axis=0)
            figures["kl_vs_uniform_geomean"] = _geomean(against)
            rows.append(("kl_vs_uniform_geomean", f"{figures['kl_vs_uniform_geomean']:.3f}", "0.85"))
    if {"ours", "evolution-5x"} <= set(there):
        columns = [i for i, size in enumerate(sizes) if size in LONG_SIZES]
        long = kl["ours"][:, columns] / kl["evolution-5x"][:, columns]
        figures["kl_vs_evolution_5x"] = _logmean(long).tolist()
        rows.append(("kl_vs_evolution_5x", "  ".join(f"{v:.3f}" for v in figures["kl_vs_evolution_5x"]), "1.0"))
    finish("Search: everybody on the same budget, held out", rows, figures, to)


def _floats(values: list[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]


def _logmean(kl: np.ndarray) -> np.ndarray:
    """Geometric mean over seeds (``num_sizes``)."""
    return np.exp(np.log(kl).mean(axis=0))


def _geomean(ratio: np.ndarray) -> float:
    return float(np.exp(np.nanmean(np.log(ratio))))


def _volume(kl: np.ndarray, sizes: tuple[float, ...], reference: float) -> float:
    """Hypervolume of (kept, log KL) up to (1, log ``reference``)."""
    there = ~np.isnan(kl)
    points = np.column_stack([np.array(sizes)[there], np.log(kl[there])])
    return hypervolume(points, (1.0, float(np.log(reference))))


if __name__ == "__main__":
    main()
