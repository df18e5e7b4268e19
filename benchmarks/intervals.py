"""Whether the 90 % interval of an answer's KL holds on fresh text.

    python -m benchmarks.intervals [--run RUN] [--transfer NAME=FILE] [--json FILE]

100 random requests (bounds and preferences) to the demo's policy. Each answer is measured on as many fresh windows as
an evaluation has, from a pool that neither calibration nor search saw; neighbouring requests have other windows: an
interval is about one draw of windows, and requests that shared theirs would be right or wrong together.

- ``coverage``: share of the intervals that hold (goal 0.80 to 0.97); ``ratio``: measured ÷ predicted, geometric mean;
- ``coverage_transfer``: the same on another corpus, for which nobody promised anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.harness import MODEL, demo_policy, finish, parser, surroundings
from unicuco.calibration import CalibrationConfig, Domain, Windows, draw_windows
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.source import find_model
from unicuco.policy import Policy
from unicuco.prune import find_preparation
from unicuco.request import Answer, Request

COUNT, GROUPS = 100, 25
CONFIG = EvaluatorConfig(reference_bytes=0)  # hidden states: so many sets of log-probabilities are too many


def make_requests(seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    kept, weight = rng.uniform(0.45, 0.95, COUNT // 2), rng.uniform(0.1, 0.9, COUNT - COUNT // 2)
    found = [Request(kept=float(k)) for k in kept] + [Request(preference=(float(w), float(1 - w))) for w in weight]
    return [found[i] for i in rng.permutation(COUNT)]


def measure(evaluator: Evaluator, answers: list[Answer], pool: Windows, each: int) -> np.ndarray:
    """KL of every answer on its group of ``pool`` (``num_answers``)."""
    place = np.arange(len(pool.tokens)) % (GROUPS * each)  # within its domain
    groups = [place // each == g for g in range(GROUPS)]
    sets = [evaluator.on(Windows(pool.tokens[g], pool.domain[g], pool.domains)) for g in groups]
    shapes = [evaluator.space.shape(np.array(answer.levels)) for answer in answers]
    return np.array([sets[i % GROUPS].measure(shape).kl for i, shape in enumerate(shapes)])


def summary(kl: np.ndarray, answers: list[Answer]) -> dict[str, Any]:
    inside = np.array([a.kl_low <= v <= a.kl_high for a, v in zip(answers, kl, strict=True)])
    ratio = kl / np.array([a.kl for a in answers])
    large = np.array([a.kept > 0.7 for a in answers])
    return {
        "coverage": float(inside.mean()),
        "coverage_large": float(inside[large].mean()),
        "coverage_small": float(inside[~large].mean()),
        "ratio": float(np.exp(np.log(ratio).mean())),
        "ratio_spread": float(np.log(ratio).std()),
        "half_width": float(np.median([np.log(a.kl_high / a.kl) for a in answers])),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--run", help="a run or policy folder; the demo's by default")
    options.add_argument("--transfer", help="another corpus, NAME=FILE")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    source = find_model(MODEL)
    policy = Policy.load(given.run or demo_policy())
    policy.check_model(source.digest, source.spec)
    preparation = find_preparation(policy, source, CONFIG)
    base, tokenizer = load_base_model(source, CONFIG.dtype), load_tokenizer(source)
    evaluator = Evaluator(MODEL, preparation.folder, CONFIG, base=base)
    calibration = preparation.config.calibration
    each = calibration.search_windows
    answers = policy.answer(make_requests(given.seed))
    pool = draw_windows(calibration, tokenizer, "heldout", GROUPS * each)
    figures = summary(measure(evaluator, answers, pool, each), answers)
    rows = [
        ("coverage of the 90 % interval", f"{figures['coverage']:.2f}", "0.80-0.97"),
        ("of answers above / up to kept 0.7", f"{figures['coverage_large']:.2f} / {figures['coverage_small']:.2f}", ""),
        ("measured ÷ predicted", f"{figures['ratio']:.3f} (spread {figures['ratio_spread']:.3f})", ""),
        ("half of the interval, in log KL", f"{figures['half_width']:.3f}", ""),
    ]
    if given.transfer:
        config = CalibrationConfig(domains=(Domain.parse(given.transfer),), window_length=calibration.window_length)
        there = summary(
            measure(evaluator, answers, draw_windows(config, tokenizer, "heldout", GROUPS * each), each), answers
        )
        figures["transfer"] = {"corpus": given.transfer.rpartition("=")[0], **there}
        rows.append(("coverage_transfer, measured ÷ predicted", f"{there['coverage']:.2f}, {there['ratio']:.2f}", ""))
    figures["surroundings"] = surroundings(
        model=MODEL, seed=given.seed, requests=COUNT, tokens=each * calibration.window_length, dtype=CONFIG.dtype
    )
    finish("Intervals: what answers promise, on fresh text", rows, figures, given.json)


if __name__ == "__main__":
    main()
