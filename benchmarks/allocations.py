"""Who shares out zeros best: uniform, OWL, or StratNet's answer; one mode for all, the same held-out tokens for all.

    python -m benchmarks.allocations --pruner wanda --sparsities 0.6 0.7 --evaluations 100 [--text wiki.test.joined.txt]
                                     [--seed 0] [--in-order] [--minutes N] [--runs FOLDER] [--json FILE]

Everybody is measured in the database's mode, every block pruned on dense activations, with as many zeros:

- ``uniform``: every matrix at the sparsity; ``owl``: OWL's sparsities of blocks as they are, on the same calibration
  windows; ``owl-levels``: these snapped to the database's levels;
- ``stratnet``: the answer of one policy, trained with ``--evaluations`` standard evaluations for all sparsities.

Figures: KL on fresh windows, and KL and perplexity on the first 20,480 tokens of ``--text`` in windows of 2,048;
``kl_vs_uniform`` and ``kl_vs_owl`` (the better form of it), ``perplexity_vs_...`` likewise (goal: 1 at most from 0.6).
``--in-order`` measures the same sparsities pruned again in order, as exports are.

Evaluations and finished measurements lie under ``--runs``: a benchmark that is cut off goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contestants import Race, run_learner
from benchmarks.harness import MODEL, console, finish, parser, surroundings
from benchmarks.search import open_evaluator
from unicuco.baselines.cached import EvaluationCache
from unicuco.calibration import Domain, Windows, first_windows, read_text
from unicuco.evaluator import Evaluator
from unicuco.heldout import WINDOWS, open_heldout
from unicuco.learner import LearnerConfig
from unicuco.levels import SPARSITY_PRUNERS, SpaceConfig
from unicuco.models.load import DTYPES, load_base_model, load_tokenizer
from unicuco.pruners.base import PrunedBlock, pruned_blocks
from unicuco.pruners.depth import DepthPruner
from unicuco.pruners.owl import outlier_shares, owl_allocation
from unicuco.pruners.sequential import count_zeros, prune_in_place
from unicuco.space import Shape, budgets_of
from unicuco.storage import write_json

TOKENS, WINDOW = 20480, 2048
CONTESTANTS = ("uniform", "owl", "owl-levels", "stratnet")
Shares = tuple[tuple[float, float], ...]


class Contest:
    """One pruner, one seed: the pinned model, and everybody's sparsities of attention and MLP of every block."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.evaluator = open_evaluator(SpaceConfig(pruner=given.pruner), given.seed, device=given.device)
        self.space = self.evaluator.space
        self.folder = given.runs / given.pruner / f"seed-{given.seed}"

    def kept(self, sparsity: float) -> float:
        """Share of the blocks' parameters that uniform ``sparsity`` leaves, which nobody may exceed."""
        return float(self.space.kept(self._uniform(sparsity)))

    def _uniform(self, sparsity: float) -> np.ndarray:
        return np.full(self.space.num_sites, self.space.config.sparsities.index(sparsity))

    @cached_property
    def outliers(self) -> np.ndarray:
        return outlier_shares(self.evaluator.base.model, self.evaluator.preparation.calibration_windows)

    @cached_property
    def answers(self) -> dict[float, np.ndarray]:
        """StratNet's levels for every sparsity."""
        given = self.given
        sizes = tuple(self.kept(sparsity) for sparsity in given.sparsities)
        cache = EvaluationCache(self.evaluator, self.folder / "cache")
        race = Race(cache, sizes, given.evaluations, given.seed, self.folder / f"{given.evaluations}")
        # A little beyond the smallest, so that it does not lie at the edge of what was looked at.
        config = LearnerConfig(evaluations=given.evaluations, seed=given.seed, kept_low=min(sizes) - 0.05)
        levels = run_learner(race, "stratnet", config)
        assert all(float(self.space.kept(row)) <= kept + 1e-9 for row, kept in zip(levels, sizes, strict=True))
        return dict(zip(given.sparsities, levels, strict=True))

    def shares(self, name: str, sparsity: float) -> Shares:
        if name == "owl":
            return tuple((share, share) for share in owl_allocation(self.outliers, sparsity))
        if name == "owl-levels":
            wish = np.array([owl_allocation(self.outliers, sparsity)[site.block] for site in self.space.sites])
            budget = budgets_of(self.space, np.array([self.kept(sparsity)]))
            return self.space.shape(self.space.project(wish, {"params": budget})[0]).sparsity
        levels = self._uniform(sparsity) if name == "uniform" else self.answers[sparsity]
        return self.space.shape(levels).sparsity

    def blocks(self, name: str, shares: Shares, in_order: bool) -> tuple[list[PrunedBlock], int]:
        """The pruned blocks, and how many weights in them are zero."""
        dense = self.space.shape(np.zeros(self.space.num_sites, dtype=np.int64))
        whole = Shape(dense.groups, dense.neurons)
        if not in_order and name != "owl":
            found = pruned_blocks(self.evaluator.pruner, Shape(dense.groups, dense.neurons, shares))
            every = [(n, t) for block in found for part in (block.attention, block.mlp) for n, t in part.items()]
            return found, sum(int((t == 0).sum()) for n, t in every if n.endswith("proj.weight"))
        dtype = self.evaluator.config.dtype
        base = load_base_model(MODEL, "float32" if in_order else dtype, self.given.device)  # exports prune in float32
        windows = self.evaluator.preparation.calibration_windows
        prune_in_place(base.model, windows, self.given.pruner, shares, dense_inputs=not in_order)
        torch.nn.Module.to(base.model, DTYPES[dtype])
        return pruned_blocks(DepthPruner(base), whole), count_zeros(base.model)[0]


def main() -> None:
    options = parser(__doc__, device=True)
    options.add_argument("--pruner", choices=SPARSITY_PRUNERS, default="wanda")
    options.add_argument("--sparsities", type=float, nargs="+", default=[0.6, 0.7], help="levels of the database")
    options.add_argument("--evaluations", type=int, default=100, help="StratNet's budget, for all sparsities")
    options.add_argument("--text", type=Path, help="WikiText-2 raw test, rows joined by blank lines")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--in-order", action="store_true", help="measure exports' sequential pruning as well")
    options.add_argument("--minutes", type=float, default=float("inf"), help="start no measurement after this long")
    options.add_argument("--runs", type=Path, default=Path("runs/allocations"))
    given = options.parse_args()
    levels = SpaceConfig(pruner=given.pruner).sparsities
    if unknown := [s for s in given.sparsities if s not in levels[1:]]:
        options.error(f"{unknown[0]:g} is no level of the database; it has {', '.join(f'{s:g}' for s in levels[1:])}")
    until = time.monotonic() + 60 * given.minutes
    contest = Contest(given)
    places = {"heldout": open_heldout(contest.evaluator, WINDOWS)}
    if given.text:
        tokenizer = load_tokenizer(contest.evaluator.base.source)
        places["text"] = contest.evaluator.on(text_windows(given.text, tokenizer))
    modes = ["database", "in-order"] if given.in_order else ["database"]
    found: dict[str, Any] = {mode: {} for mode in modes}
    for mode in modes:
        for name in CONTESTANTS:
            for sparsity in given.sparsities:
                measured = measure(contest, mode, name, sparsity, places, until)
                if measured is not None:
                    found[mode].setdefault(name, {})[f"{sparsity:g}"] = measured
    figures: dict[str, Any] = {"measured": found, **{mode: ratios(found[mode]) for mode in modes}}
    figures["surroundings"] = surroundings(
        model=MODEL,
        pruner=given.pruner,
        seed=given.seed,
        evaluations=given.evaluations,
        tokens=contest.evaluator.num_tokens,
        tokens_heldout=places["heldout"].num_tokens,
        text=given.text.name if given.text else None,
        dtype=contest.evaluator.config.dtype,
        device=given.device,
        threads=torch.get_num_threads(),
    )
    finish(f"Allocations of zeros, {given.pruner}", rows(figures, modes), figures, given.json)


def text_windows(path: Path, tokenizer: Any) -> Windows:
    return first_windows(read_text(Domain.parse(str(path))), tokenizer, TOKENS, WINDOW, "text")


def measure(
    contest: Contest, mode: str, name: str, sparsity: float, places: dict[str, Evaluator], until: float
) -> dict[str, Any] | None:
    """One allocation on all texts; from disk as far as it was measured before. ``None``: no time left."""
    given = contest.given
    file = f"{mode}-{name}-{sparsity:g}" + (f"-{given.evaluations}" if name == "stratnet" else "")
    path = contest.folder / "measured" / f"{file}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    digests = {place: evaluator.windows_digest for place, evaluator in places.items()}
    if all(known.get(f"{place}_windows") == digest for place, digest in digests.items()):
        return dict(known)
    if time.monotonic() > until:
        return None
    shares = contest.shares(name, sparsity)
    blocks, zeros = contest.blocks(name, shares, mode == "in-order")
    known |= {"zeros": zeros, "sparsity": shares}
    for place, evaluator in places.items():
        result = evaluator.measure_blocks(blocks)
        known |= {f"{place}_windows": digests[place], f"{place}_kl": result.kl}
        known[f"{place}_perplexity"] = result.perplexity
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, known)
    shown = ", ".join(f"{p} KL {known[f'{p}_kl']:.3f}, perplexity {known[f'{p}_perplexity']:.2f}" for p in places)
    console.print(f"{mode}, {name} at {sparsity:g}: {shown}")
    return known


def ratios(measured: dict[str, Any]) -> dict[str, Any]:
    """StratNet's figures ÷ those of each rival, per sparsity."""
    figures: dict[str, Any] = {}
    for value in ("heldout_kl", "text_kl", "text_perplexity"):
        for rival, names in (("uniform", ("uniform",)), ("owl", ("owl", "owl-levels"))):
            found: dict[str, float] = {}
            for sparsity, ours in measured.get("stratnet", {}).items():
                theirs = [measured[n][sparsity][value] for n in names if value in measured.get(n, {}).get(sparsity, {})]
                if theirs and value in ours:
                    found[sparsity] = ours[value] / min(theirs)
            if found:
                figures[f"{value}_vs_{rival}"] = found
    return figures


def rows(figures: dict[str, Any], modes: list[str]) -> list[tuple[str, str, str]]:
    def show(values: dict[str, float]) -> str:
        return "  ".join(f"{sparsity}: {value:.3f}" for sparsity, value in values.items())

    table = []
    for mode in modes:
        for name, found in figures["measured"][mode].items():
            for value in ("heldout_kl", "text_kl", "text_perplexity"):
                values = {s: m[value] for s, m in found.items() if value in m}
                if values:
                    table.append((f"{mode}: {value}, {name}", show(values), ""))
        table += [(f"{mode}: {name}", show(values), "1 at most") for name, values in figures[mode].items()]
    return table


if __name__ == "__main__":
    main()
