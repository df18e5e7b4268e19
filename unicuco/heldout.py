"""The end of a run: the policy's answers at the protocol's sizes, measured on windows that training never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unicuco.baselines.uniform import ladder, uniform
from unicuco.calibration import draw_windows
from unicuco.evaluator import Evaluator, EvaluatorConfig, Measurement
from unicuco.models.load import load_tokenizer
from unicuco.policy import Policy
from unicuco.preparation import Progress
from unicuco.request import Answer, Request

WINDOWS = 16
"""Fresh windows per domain."""


def measure_heldout(
    policy_folder: Path,
    model_spec: str,
    preparation_folder: Path,
    config: EvaluatorConfig,
    progress: Progress | None = None,
    sizes: tuple[float, ...] | None = None,
    windows: int = WINDOWS,
) -> list[dict[str, Any]]:
    """Measures the policy's answers and both uniform forms at ``sizes`` that the space can reach, on fresh windows.

    Args:
        sizes: ``ladder`` of the space where none are given.

    Returns:
        one row per size; ``kl_uniform_heldout`` is the better of the two forms. ``domains`` has the same figures for
        every calibration domain where there are several, predictions where the policy has any for them;
        ``latency_ms`` is predicted, where the policy has a latency table.
    """
    report = progress or (lambda stage, done, total: None)
    policy = Policy.load(policy_folder)
    search = Evaluator(model_spec, preparation_folder, config)
    sizes = tuple(kept for kept in sizes or ladder(search.space) if search.space.kept(search.space.smallest) <= kept)
    heldout = open_heldout(search, windows)
    answers = policy.answer([Request(kept=kept) for kept in sizes])
    rows: list[dict[str, Any]] = []
    report("measuring answers on fresh text", 0, len(sizes))  # each of them may take minutes
    for i, (kept, answer) in enumerate(zip(sizes, answers, strict=True)):
        levels = np.array(answer.levels)
        fresh = measure(heldout, levels)
        rivals = {form: measure(heldout, uniform(search.space, kept, form == "mlp")) for form in ("mlp", "all")}
        best = min(rivals, key=lambda form: rivals[form].kl)
        rows.append(
            {
                "kept": kept,
                "kept_exact": answer.kept,
                "ratio": answer.ratio,
                "levels": answer.levels,
                "origin": answer.origin,
                "kl_search": measure(search, levels).kl,
                "kl_heldout": fresh.kl,
                "kl_reverse_heldout": fresh.kl_reverse,
                "perplexity_heldout": fresh.perplexity,
                "kl_predicted": answer.kl,
                "kl_low": answer.kl_low,
                "kl_high": answer.kl_high,
                "kl_uniform_heldout": rivals[best].kl,
                "uniform_form": best,
                "tokens_heldout": fresh.tokens,
                "domains": _by_domain(heldout, answer, fresh, rivals[best]),
                **({"latency_ms": answer.latency_ms} if answer.latency_ms is not None else {}),
            }
        )
        report("measuring answers on fresh text", i + 1, len(sizes))
    return rows


def _by_domain(
    heldout: Evaluator, answer: Answer, fresh: Measurement, uniform: Measurement
) -> dict[str, dict[str, float]]:
    names = heldout.windows.domains
    found = {}
    for d, name in enumerate(names if len(names) > 1 else ()):
        found[name] = {"kl_heldout": fresh.domain_kl[d], "kl_uniform_heldout": uniform.domain_kl[d]}
        if name in answer.domains:
            promise = answer.domains[name]
            found[name] |= {"kl_predicted": promise.kl, "kl_low": promise.kl_low, "kl_high": promise.kl_high}
    return found


def open_heldout(search: Evaluator, windows: int) -> Evaluator:
    """``search``'s pinned model on ``windows`` fresh windows per domain."""
    calibration = search.preparation.config.calibration
    tokenizer = load_tokenizer(search.base.source, search.config.trust_remote_code)
    return search.on(draw_windows(calibration, tokenizer, "heldout", windows))


def measure(evaluator: Evaluator, levels: np.ndarray) -> Measurement:
    """One strategy (``num_sites`` level indices) on the evaluator's windows."""
    return evaluator.measure(evaluator.space.shape(levels))
