"""Pruners without data on the built-in model: perplexity with as many neurons gone from every MLP.

    python -m benchmarks.datafree --text wiki.test.joined.txt [--methods NAME ...] [--sparsities S ...] [--seeds N ...]
                                  [--tokens N] [--window N] [--minutes N] [--runs FOLDER] [--json FILE]

Perplexity is of the first ``--tokens`` of ``--text`` in windows of ``--window`` (docs/protocol.md), float32. No other
text is read. ``prunenet-40`` is a policy that learned at 0.4, ``prunenet-spectrum`` one with the paper's reward.
Figures, per sparsity, of log-perplexities' means over seeds:

- ``prunenet_vs_random`` and ``prunenet_vs_row-norms``: ratio (goal: below 1); so for ``folding`` and ``alignment``;
- ``reuse``: ``prunenet-40`` ÷ ``prunenet`` (goal: within 0.02 of 1).

Every finished measurement lies under ``--runs``, so a benchmark that is cut off goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import MODEL, console, finish, parser, surroundings
from unicuco.assess import hidden_states
from unicuco.beforeafter import perplexity
from unicuco.calibration import Domain, Windows, first_windows, read_text
from unicuco.datafree import DataFreeConfig, data_free_pruner
from unicuco.models.head import Head
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.swap import SwitchableModel
from unicuco.pruners.base import pruned_blocks
from unicuco.pruners.prunenet import PruneNetConfig

METHODS = ("random", "row-norms", "alignment", "prunenet", "prunenet-40", "prunenet-spectrum", "folding")
REUSED = 0.4


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--text", type=Path, required=True, help="WikiText-2 raw test, rows joined by blank lines")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--sparsities", type=float, nargs="+", default=[0.2, 0.25, 0.3])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--tokens", type=int, default=20480)
    options.add_argument("--window", type=int, default=2048)
    options.add_argument("--minutes", type=float, default=float("inf"), help="start no measurement after this long")
    options.add_argument("--runs", type=Path, default=Path("runs/datafree"))
    given = options.parse_args()
    until = time.monotonic() + 60 * given.minutes
    base = load_base_model(MODEL, "float32")
    text = first_windows(
        read_text(Domain.parse(str(given.text))), load_tokenizer(base.source), given.tokens, given.window, "text"
    )
    folder = given.runs / text.digest[:8]
    measured: dict[str, dict[float, list[Any]]] = {}
    for sparsity in given.sparsities:
        for method in given.methods:
            seeds = given.seeds[:1] if method in ("row-norms", "alignment") else given.seeds
            found = [measure(folder, given.runs, base, method, sparsity, seed, text, until) for seed in seeds]
            measured.setdefault(method, {})[sparsity] = [f for f in found if f]
    figures = summary(measured)
    figures["surroundings"] = surroundings(
        model=MODEL,
        seeds=given.seeds,
        text=given.text.name,
        tokens=int(text.tokens.size),
        window=given.window,
        dtype="float32",
        threads=torch.get_num_threads(),
    )
    finish("Neurons removed without data, as many from every MLP", rows(figures), figures, given.json)


def measure(
    folder: Path, runs: Path, base: Any, method: str, sparsity: float, seed: int, text: Windows, until: float
) -> Any:
    """Log-perplexity and seconds to prune; ``None``: no time left."""
    path = folder / f"{method}-{sparsity:g}-{seed}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    if time.monotonic() > until:
        return None
    began = time.perf_counter()
    pruner = data_free_pruner(base, config_of(method, sparsity, seed, runs))
    seconds = time.perf_counter() - began
    switch = SwitchableModel(base.model)
    switch.apply(pruned_blocks(pruner, pruner.shape))
    try:
        hidden, _ = hidden_states(base.model, text)
        found = {"log_perplexity": math.log(perplexity(Head(base.model), hidden, text)), "seconds": seconds}
    finally:
        switch.restore()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    console.print(
        f"{method} at {sparsity:g}, seed {seed}: log-perplexity {found['log_perplexity']:.3f} ({seconds:.0f} s)"
    )
    return found


def config_of(method: str, sparsity: float, seed: int, runs: Path) -> DataFreeConfig:
    if method == "prunenet-spectrum":
        learning = PruneNetConfig(sparsity=sparsity, seed=seed, reward="spectrum")
        return DataFreeConfig(method="prunenet", sparsity=sparsity, seed=seed, prunenet=learning)
    if method != "prunenet-40":
        return DataFreeConfig(method=method, sparsity=sparsity, seed=seed)  # type: ignore[arg-type]
    learning = PruneNetConfig(sparsity=REUSED, seed=seed)
    return DataFreeConfig(
        method="prunenet", sparsity=sparsity, seed=seed, prunenet=learning, policy=runs / f"policy-{seed}"
    )


def summary(measured: dict[str, dict[float, list[Any]]]) -> dict[str, Any]:
    logs = {
        method: {f"{s:g}": [f["log_perplexity"] for f in found] for s, found in by.items() if found}
        for method, by in measured.items()
    }
    figures: dict[str, Any] = {"log_perplexity": logs}
    pairs = [(a, b, f"{a}_vs_{b}") for a in ("prunenet", "folding", "alignment") for b in ("random", "row-norms")]
    for first, second, name in [*pairs, ("prunenet-40", "prunenet", "reuse")]:
        mine, theirs = logs.get(first, {}), logs.get(second, {})
        figures[name] = {s: float(np.mean(mine[s]) / np.mean(theirs[s])) for s in mine if s in theirs}
    return figures


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = [
        (f"log-perplexity, {method}", "  ".join(f"{s}: {np.mean(v):.3f}" for s, v in by.items()), "")
        for method, by in figures["log_perplexity"].items()
    ]
    goals = {
        "prunenet_vs_random": "< 1",
        "prunenet_vs_row-norms": "< 1",
        "folding_vs_random": "",
        "folding_vs_row-norms": "",
        "alignment_vs_random": "",
        "alignment_vs_row-norms": "",
        "reuse": "1 ± 0.02",
    }
    return found + [
        (name, "  ".join(f"{s}: {r:.3f}" for s, r in figures[name].items()), goal) for name, goal in goals.items()
    ]


if __name__ == "__main__":
    main()
