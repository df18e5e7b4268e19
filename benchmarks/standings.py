"""Who won a race: figures and rows of a table from what each contestant found on each seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unicuco.objectives import hypervolume

Results = dict[str, dict[str, Any]]
"""Contestant -> ``levels``, ``search`` and ``heldout`` KL per size (None where it was not asked); one such per seed."""
OWN = ("ours", "without-margins")
LONG = "evolution-5x"
Row = tuple[str, str, str]


@dataclass(frozen=True)
class Standings:
    """Held-out results of a race.

    Attributes:
        sizes: kept shares (``num_sizes``).
        tables: one table of results per seed; a contestant may be missing from some.
    """

    sizes: tuple[float, ...]
    tables: list[Results]

    @property
    def names(self) -> list[str]:
        """Everybody who finished on one seed at least, in order of appearance."""
        return list(dict.fromkeys(name for table in self.tables for name in table))

    def seeds(self, *names: str) -> list[int]:
        """Indices of the seeds on which all of ``names`` finished."""
        return [i for i, table in enumerate(self.tables) if all(name in table for name in names)]

    def kl(self, name: str, seeds: list[int], where: str = "heldout") -> np.ndarray:
        """``len(seeds) x num_sizes``, nan where it was not asked or not measured."""
        missing = [None] * len(self.sizes)
        rows = [self.tables[i][name].get(where) or missing for i in seeds]
        return np.array([[np.nan if value is None else value for value in row] for row in rows])

    def ratio(self, name: str, rival: str, where: str = "heldout") -> np.ndarray:
        """KL of ``name`` ÷ KL of ``rival``: geometric mean over the seeds that both finished on (``num_sizes``)."""
        seeds = self.seeds(name, rival)
        return _geomean(self.kl(name, seeds, where) / self.kl(rival, seeds, where))

    def hypervolume(self, name: str, seed: int) -> float:
        """Of (kept, log KL held out) up to (1, log KL of uniform at the smallest size); nan without a uniform."""
        table = self.tables[seed]
        forms = [table[form]["heldout"][-1] for form in table if form.startswith("uniform")]
        # The protocol's reference is uniform; where there is no uniform pruning, the worst that anybody has.
        ends = [result["heldout"][-1] for result in table.values() if result["heldout"][-1] is not None]
        reference = min(forms) if forms else max(ends)
        kl = self.kl(name, [seed])[0]
        there = ~np.isnan(kl)
        points = np.column_stack([np.array(self.sizes)[there], np.log(kl[there])])
        return hypervolume(points, (1.0, float(np.log(reference))))

    def hypervolume_ratio(self, name: str, rival: str) -> float:
        """Mean over the seeds that both finished on."""
        seeds = self.seeds(name, rival)
        return float(np.mean([self.hypervolume(name, s) / self.hypervolume(rival, s) for s in seeds]))


def make_figures(standings: Standings) -> dict[str, Any]:
    """All figures of a race, by the names of ``benchmarks.search``."""
    names, rivals = standings.names, [n for n in standings.names if n not in (*OWN, LONG)]
    every = {name: standings.seeds(name) for name in names}
    figures: dict[str, Any] = {
        "heldout": {name: standings.kl(name, seeds).tolist() for name, seeds in every.items()},
        "search_gap": {
            name: float(np.exp(np.nanmean(np.log(standings.kl(name, s) / standings.kl(name, s, "search")))))
            for name, s in every.items()
        },
        "seeds_finished": {name: len(seeds) for name, seeds in every.items()},
        "seconds": {name: [standings.tables[i][name]["seconds"] for i in seeds] for name, seeds in every.items()},
    }
    rivals = [name for name in rivals if standings.seeds("ours", name)]
    if rivals:
        against = {name: standings.ratio("ours", name) for name in rivals}
        figures["kl_vs"] = {name: ratio.tolist() for name, ratio in against.items()}
        figures["kl_vs_best_equal_budget"] = np.max(list(against.values()), axis=0).tolist()
        figures["kl_vs_best_geomean"] = float(_geomean(np.array(figures["kl_vs_best_equal_budget"])))
        figures["hypervolume_ratio"] = {name: standings.hypervolume_ratio("ours", name) for name in rivals}
        forms = [name for name in rivals if name.startswith("uniform")]
        if forms:
            figures["kl_vs_uniform_geomean"] = float(_geomean(np.max([against[n] for n in forms], axis=0)))
    if standings.seeds("ours", LONG):
        figures["kl_vs_evolution_5x"] = [v for v in standings.ratio("ours", LONG).tolist() if not np.isnan(v)]
    for table in standings.tables:
        if "ours" in table and table["ours"].get("transfer"):
            figures["transfer_vs"] = {
                name: standings.ratio("ours", name, "transfer").tolist()
                for name in [*rivals, LONG]
                if standings.seeds("ours", name) and not np.isnan(standings.ratio("ours", name, "transfer")).all()
            }
            break
    return figures


def make_rows(standings: Standings, figures: dict[str, Any]) -> list[Row]:
    """(figure, measured, goal) for people."""
    rows: list[Row] = []
    for name in standings.names:
        kl = _geomean(standings.kl(name, standings.seeds(name)))
        seeds, gap = figures["seeds_finished"][name], figures["search_gap"][name]
        rows.append((f"held-out KL, {name} ({_plural(seeds)})", _show(kl, 4), f"gap {gap:.3f}"))
    for name, ratio in figures.get("kl_vs", {}).items():
        volume = figures["hypervolume_ratio"][name]
        rows.append((f"ours ÷ {name}", _show(ratio, 3), f"hypervolume {volume:.3f} (1.0)"))
    if "kl_vs_best_equal_budget" in figures:
        rows.append(("kl_vs_best_equal_budget", _show(figures["kl_vs_best_equal_budget"], 3), "none > 1.03"))
        rows.append(("its geometric mean", f"{figures['kl_vs_best_geomean']:.3f}", "1.0"))
    if "kl_vs_uniform_geomean" in figures:
        rows.append(("kl_vs_uniform_geomean", f"{figures['kl_vs_uniform_geomean']:.3f}", "0.85"))
    if "kl_vs_evolution_5x" in figures:
        rows.append(("kl_vs_evolution_5x", _show(figures["kl_vs_evolution_5x"], 3), "1.0"))
    for name, ratio in figures.get("transfer_vs", {}).items():
        rows.append((f"other corpus, ours ÷ {name}", _show(ratio, 3), ""))
    return rows


def _show(values: Any, digits: int) -> str:
    return "  ".join("-" if np.isnan(v) else f"{v:.{digits}f}" for v in np.asarray(values, dtype=np.float64))


def _plural(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _geomean(ratio: np.ndarray) -> np.ndarray:
    """Over the first axis; nan where nothing is known."""
    with np.errstate(invalid="ignore"):
        return np.exp(np.log(ratio).mean(axis=0))
