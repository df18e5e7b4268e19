"""Our search against every rival on the same budget, on the same evaluator; judged on windows nobody searched on.

    python -m benchmarks.search --evaluations 300 [--space depth] [--only NAME ...] [--seeds 0 1 2] [--minutes N]
                                [--transfer NAME=FILE] [--recorded] [--model SPEC] [--json FILE]

Budgets are full-forward-equivalent evaluations of the standard tokens, for all sizes together; ``evolution-5x`` gets as
many for each of two sizes. Figures, geometric means over the seeds that both sides finished:

- ``kl_vs_best_equal_budget``: held-out KL of our answer ÷ that of the best rival at the size (goal: geometric mean 1.0,
  none above 1.03); ``kl_vs_uniform_geomean`` (goal 0.85); ``kl_vs_evolution_5x`` (goal 1.0);
- ``hypervolume_ratio`` per rival: of (kept, log KL held out), ours ÷ theirs (goal 1.0);
- ``search_gap``: held-out ÷ search KL per contestant: how much of what it found was luck;
- ``transfer_vs``: ratios on another corpus, its first 20,480 tokens in windows of 2,048.

Everything lies under ``--runs``: evaluations in a cache, a finished contestant in ``results/NAME.json``. A benchmark
that is cut off, by ``--minutes`` or otherwise, goes on where it stopped; several may run at once with different
``--only``. ``--quick``: one seed, three sizes. ``--recorded`` takes what ``benchmarks/records`` holds (measured before,
with date and versions) for finished and races only the others; without it everything is measured here. ``--model``:
another base model than the built-in one, such as a super-network of it; give it ``--runs`` of its own.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.contestants import CONTESTANTS, DEPTH_CONTESTANTS, Contestant, Race
from benchmarks.harness import MODEL, console, finish, parser, surroundings
from benchmarks.standings import Results, Standings, make_figures, make_rows
from cluster.runs import versions
from unicuco.baselines.cached import EvaluationCache
from unicuco.baselines.uniform import LADDER
from unicuco.calibration import CalibrationConfig, Domain, first_windows, read_text
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.heldout import WINDOWS, open_heldout
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.preparation import PreparationConfig, prepare
from unicuco.space import SPACES, SpaceConfig
from unicuco.storage import write_json

DEPTH_SIZES = (0.875, 0.75, 0.625)
RECORDS = Path(__file__).parent / "records"
TRANSFER_TOKENS, TRANSFER_WINDOW = 20480, 2048


def main() -> None:
    options = parser(__doc__, device=True)
    options.add_argument("--evaluations", type=int, default=300)
    options.add_argument("--space", choices=[*SPACES, "depth"], default="mixed", help="depth: the same as blocks")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--only", nargs="+", help="run these contestants only")
    options.add_argument("--minutes", type=float, default=float("inf"), help="start no contestant after this long")
    options.add_argument("--runs", type=Path, default=Path("runs/search"))
    options.add_argument("--transfer", help="measure answers on another corpus too, NAME=FILE")
    options.add_argument("--recorded", action="store_true", help="take finished results from benchmarks/records")
    options.add_argument("--model", default=MODEL, help="base model (default: the built-in one)")
    options.add_argument("--quick", action="store_true", help="one seed, three sizes")
    given = options.parse_args()
    if given.model != MODEL and given.recorded:
        raise SystemExit("Records are of the built-in model; leave out --recorded or --model.")
    given.space = "blocks" if given.space == "depth" else given.space
    depth = SPACES[given.space].pruner == "depth"
    sizes = DEPTH_SIZES if depth else LADDER[::2] if given.quick else LADDER
    seeds = given.seeds[:1] if given.quick else given.seeds
    field = DEPTH_CONTESTANTS if depth else CONTESTANTS
    todo = {name: run for name, run in field.items() if not given.only or name in given.only}
    until = time.monotonic() + 60 * given.minutes
    tables: list[Results] = []
    for seed in seeds:
        folder = given.runs / given.space / f"{given.evaluations}-{len(sizes)}-seed-{seed}"
        if given.recorded:
            take_records(RECORDS / folder.relative_to(given.runs), folder)
        open_here = functools.cache(functools.partial(open_evaluator, given.space, seed, given.model, given.device))
        if any(name not in read_results(folder, field) for name in todo) or given.transfer:
            cache = EvaluationCache(open_here(), given.runs / "cache" / f"{open_here().preparation.digest[:16]}")
            run_seed(Race(cache, sizes, given.evaluations, seed, folder), todo, until)
            if given.transfer:
                measure_transfer(open_here(), folder, Domain.parse(given.transfer), until)
        tables.append(read_results(folder, field))
    standings = Standings(sizes, tables)
    figures = make_figures(standings)
    missing = [name for name in field if len(standings.seeds(name)) < len(seeds)]
    if missing:
        console.print(f"Not finished on every seed: {', '.join(missing)}. Run again to go on.")
    calibration = CalibrationConfig()
    tokens = calibration.search_windows * calibration.window_length
    figures["missing"] = missing
    figures["surroundings"] = surroundings(
        model=given.model,
        space=given.space,
        seeds=seeds,
        sizes=list(sizes),
        corpus=calibration.domains[0].source,
        evaluations=given.evaluations,
        tokens=tokens,
        tokens_heldout=WINDOWS * calibration.window_length,
        dtype=EvaluatorConfig().dtype,
        device=given.device,
    )
    finish("Search: everybody on the same budget, held out", make_rows(standings, figures), figures, given.json)


def take_records(records: Path, folder: Path) -> None:
    """Puts recorded results of a race beside those in its ``folder``, which stay."""
    for path in sorted(records.glob("*.json")):
        target = folder / "results" / path.name
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def open_evaluator(space: str | SpaceConfig, seed: int, model: str = MODEL, device: str = "cpu") -> Evaluator:
    """The base model on the windows of ``seed``."""
    chosen = SPACES[space] if isinstance(space, str) else space
    config = PreparationConfig(calibration=CalibrationConfig(seed=seed), space=chosen)
    base = load_base_model(model, config.dtype, device)
    prepared = prepare(base, load_tokenizer(base.source), config)
    return Evaluator(model, prepared.folder, EvaluatorConfig(device=device), base=base)


def run_seed(race: Race, todo: dict[str, Contestant], until: float) -> None:
    """Everybody of ``todo`` that has not finished yet, each into a file of its own: several may run at once."""
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
            "measured_on": time.strftime("%Y-%m-%d", time.gmtime()),
            "versions": versions(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        shown = " ".join("-" if kl is None else f"{kl:.4f}" for kl in result["heldout"])
        console.print(f"seed {race.seed}  {name:<16} held out {shown}  {seconds:.0f} s")


def measure_transfer(evaluator: Evaluator, folder: Path, corpus: Domain, until: float) -> None:
    """Adds ``transfer``, KL on the first tokens of another corpus, to all results that lack it."""
    tokenizer = load_tokenizer(evaluator.base.source)
    windows = first_windows(read_text(corpus), tokenizer, TRANSFER_TOKENS, TRANSFER_WINDOW, corpus.name)
    there = evaluator.on(windows)
    for path in sorted((folder / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "transfer" in result or time.monotonic() > until:
            continue
        asked = [kl is not None for kl in result["heldout"]]
        shapes = [evaluator.space.shape(np.array(levels)) for levels in result["levels"]]
        result["transfer"] = [there.measure(s).kl if a else None for s, a in zip(shapes, asked, strict=True)]
        result["transfer_corpus"] = corpus.name
        write_json(path, result)


def read_results(folder: Path, field: Iterable[str]) -> Results:
    """What has finished on one seed, in the order of ``field``."""
    paths = {name: folder / "results" / f"{name}.json" for name in field}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


if __name__ == "__main__":
    main()
