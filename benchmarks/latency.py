"""How well a latency table predicts, and what asking for latency gains over asking for size.

    python -m benchmarks.latency --policy FOLDER --json FILE

Prediction: 20 random strategies spread over kept 0.4 to 1.0 that the table did not see, as the models that their
checkpoints would load, interleaved with the dense model; the least of 7 rounds.

- ``median_error``: median relative error of the predicted milliseconds (goal 8 %); ``rank_correlation`` (goal 0.97);
  ``median_error_beside_dense``: of the milliseconds as shares of the dense model's, predicted and measured: what is
  left where the whole machine is slower or faster than when the table was made.

Gain: the answer to kept 0.7, and answers to bounds on latency below what it takes, with their real weights: measured
milliseconds in turns, and KL on held-out text.

- ``faster``, ``kl_more``: of the answer to a bound 12 % under the size answer's latency, against that answer (goals
  10 % and at most 5 %); ``within_size``: the same where kept 0.7 is a bound as well; ``same_latency``: KL at the size
  answer's own latency.

On a busy machine ``--clock processor`` counts the time that the processor spent on the model's one thread.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.harness import MODEL, console, finish, parser, surroundings
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.heldout import WINDOWS, open_heldout
from unicuco.latency import LatencyConfig, LatencyTable, load_table
from unicuco.models.load import load_base_model
from unicuco.policy import Policy
from unicuco.profiling import profile, spread_strategies
from unicuco.pruners.unordered import Slices
from unicuco.request import Answer, Request
from unicuco.space import SearchSpace, Shape
from unicuco.storage import cache_dir
from unicuco.timing import Workload, interleaved, pruned_model, torch_threads

STRATEGIES, KEPT, UNDER = 20, 0.7, 0.88


def prediction(evaluator: Evaluator, table: LatencyTable, space: SearchSpace, rounds: int) -> dict[str, Any]:
    """Predicted against measured milliseconds of strategies that the table did not see."""
    levels = spread_strategies(space, np.linspace(1.0, 0.4, STRATEGIES), seed=1)
    shapes = [space.shape(row) for row in levels]
    dense = space.shape(np.zeros(space.num_sites, dtype=np.int64))
    slices, base = Slices(evaluator.base), evaluator.base
    workload = Workload(table.config, base.geometry.vocab_size)
    runs = [workload.on(pruned_model(base, slices, shape)) for shape in (dense, *shapes)]
    dense_ms, *measured = interleaved(runs, rounds)
    predicted = [table.predict(shape) for shape in shapes]
    errors = np.array(predicted) / np.array(measured) - 1
    beside_dense = (1 + errors) * dense_ms / table.predict(dense) - 1
    return {
        "kept": [float(k) for k in space.kept(levels)],
        "predicted_ms": predicted,
        "measured_ms": measured,
        "dense_ms": dense_ms,
        "dense_predicted_ms": table.predict(dense),
        "median_error": float(np.median(np.abs(errors))),
        "largest_error": float(np.abs(errors).max()),
        "median_error_beside_dense": float(np.median(np.abs(beside_dense))),
        "rank_correlation": float(spearmanr(predicted, measured).statistic),
    }


def gain(evaluator: Evaluator, policy: Policy, table: LatencyTable, rounds: int) -> dict[str, Any]:
    """The answer to a size against answers to bounds on latency: measured milliseconds and held-out KL."""
    by_size = policy.answer([Request(kept=KEPT)])[0]
    assert by_size.latency_ms is not None
    under = UNDER * by_size.latency_ms
    requests = {
        "faster": Request(max_latency_ms=under),
        "within_size": Request(max_latency_ms=under, kept=KEPT),
        "same_latency": Request(max_latency_ms=by_size.latency_ms),
    }
    answers = {"by_size": by_size} | dict(zip(requests, policy.answer(list(requests.values())), strict=True))
    shapes = {name: Shape(tuple(answer.groups), tuple(answer.neurons)) for name, answer in answers.items()}
    workload = Workload(table.config, evaluator.base.geometry.vocab_size)
    models = [pruned_model(evaluator.base, evaluator.pruner, shape) for shape in shapes.values()]
    measured = dict(zip(shapes, interleaved([workload.on(model) for model in models], rounds), strict=True))
    heldout = open_heldout(evaluator, WINDOWS)
    kl = {name: heldout.measure(shape).kl for name, shape in shapes.items()}
    return {name: _row(answer, measured[name], kl[name]) for name, answer in answers.items()}


def _row(answer: Answer, measured_ms: float, kl: float) -> dict[str, Any]:
    return {
        "kept": answer.kept,
        "predicted_ms": answer.latency_ms,
        "measured_ms": measured_ms,
        "predicted_kl": answer.kl,
        "kl_heldout": kl,
        "origin": answer.origin,
        "groups": answer.groups,
        "neurons": answer.neurons,
    }


def _options() -> Any:
    options = parser(__doc__, device=True)
    options.add_argument("--policy", type=Path, required=True, help="a policy or run folder of the base model")
    options.add_argument("--model", default=MODEL, help="the base model")
    options.add_argument("--table", type=Path, help="a latency table; measured here where none is given")
    options.add_argument("--mode", default="decode", help="'decode' or 'prefill'")
    options.add_argument("--tokens", type=int, default=512)
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--clock", default="wall", help="'wall', or 'processor' on a busy machine")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--only-prediction", action="store_true", help="leave out the gain, which measures KL")
    return options.parse_args()


def main() -> None:
    options = _options()
    policy = Policy.load(options.policy)
    digest = policy.parts.evaluations[0].preparation
    config = EvaluatorConfig(dtype=options.dtype, device=options.device, threads=options.threads)
    config_of_table = LatencyConfig.model_validate(
        {"dtype": options.dtype, "device": options.device, "batch": options.batch}
        | {"threads": options.threads, "mode": options.mode, "clock": options.clock}
        | {"tokens" if options.mode == "prefill" else "context": options.tokens}
    )
    load_before = os.getloadavg()
    if options.table:
        table = load_table(options.table)
    else:
        base = load_base_model(options.model, options.dtype, options.device)
        table = profile(base, config_of_table, policy.space.config.neuron_multiple)
        console.print(f"profiled: error on whole models {table.median_error:.1%}, largest {table.error:.1%}")
    policy = policy.with_table("here", table)
    evaluator = Evaluator(options.model, cache_dir() / "preparations" / digest[:24], config)
    with torch_threads(table.config):
        found = prediction(evaluator, table, policy.space, options.rounds)
        console.print(f"predicted: median error {found['median_error']:.1%}")
        gained = {} if options.only_prediction else gain(evaluator, policy, table, options.rounds)
    figures = {
        **{name: value for name, value in found.items() if isinstance(value, float) and not name.startswith("dense")},
        "prediction": found,
        "gain": gained,
        "table": {"checks": [check.model_dump() for check in table.checks], **table.surroundings},
        "surroundings": surroundings(
            model=options.model,
            workload=table.config.describe(),
            clock=table.config.clock,
            device=options.device,
            rounds=options.rounds,
            load=[round(load_before[0], 1), round(os.getloadavg()[0], 1)],
            heldout=f"{WINDOWS} windows per domain",
            torch_threads=torch.get_num_threads(),
        ),
    }
    rows = [
        (f"median error of {STRATEGIES} strategies", f"{found['median_error']:.1%}", "8 %"),
        ("largest error", f"{found['largest_error']:.1%}", ""),
        ("median error beside the dense model", f"{found['median_error_beside_dense']:.1%}", ""),
        ("rank correlation", f"{found['rank_correlation']:.3f}", "0.97"),
    ]
    if gained:
        size, quick = gained["by_size"], gained["faster"]
        figures["faster"] = 1 - quick["measured_ms"] / size["measured_ms"]
        figures["kl_more"] = quick["kl_heldout"] / size["kl_heldout"] - 1
        rows.append((f"faster than the answer to kept {KEPT:g}", f"{figures['faster']:.1%}", "10 %"))
        rows.append(("its held-out KL, more", f"{figures['kl_more']:+.1%}", "at most 5 %"))
    for name, row in gained.items():
        text = f"{row['measured_ms']:.1f} ms ({row['predicted_ms']:.1f} predicted), KL {row['kl_heldout']:.3f}"
        rows.append((f"{name}: kept {row['kept']:.3f}, {row['origin']}", text, ""))
    finish("Latency", rows, figures, options.json)


if __name__ == "__main__":
    main()
