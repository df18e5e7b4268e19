"""Whether ``unicuco evaluate --tasks`` gives lm-eval's own numbers on the dense built-in model.

    python -m benchmarks.exactness --data FOLDER [--limit 20] [--seed N] [--json FILE]

lm-eval is called as its own command line calls it (it loads the model by itself), ``unicuco evaluate`` as a command.
``--data`` holds ``TASK.jsonl`` for the five tasks. Needs ``pip install -e '.[bench]'``.

- ``figures``: how many means and standard errors were compared; ``different``: how many of them differ (goal 0).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import MODEL, finish, parser, surroundings
from cluster.cli import app
from unicuco.models.source import find_model
from unicuco.tasks import OFFLINE, check_lm_eval, find_tasks
from unicuco.tasks.run import BATCH

DTYPE = "bfloat16"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, required=True, help="folder with one TASK.jsonl per task")
    options.add_argument("--limit", type=int, default=20, help="examples per task (default 20)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--batch-size", type=int, default=BATCH)
    given = options.parse_args()
    find_tasks(OFFLINE, given.data)
    check_lm_eval()
    theirs, ours = lm_evals_own(given), by_command(given)
    rows, compared, different = [], 0, 0
    for task, metrics in theirs.items():
        for metric, pair in metrics.items():
            mine = (ours[task]["metrics"][metric]["mean"], ours[task]["metrics"][metric]["error"])
            compared += 2
            different += sum(a != b for a, b in zip(pair, mine, strict=True))
            rows.append((f"{task}, {metric}: lm-eval / unicuco evaluate", f"{pair[0]:.6f} / {mine[0]:.6f}", ""))
    rows.append(("means and standard errors that differ", f"{different} of {compared}", "0"))
    about = surroundings(
        model=MODEL, limit=given.limit, seed=given.seed, dtype=DTYPE, batch_size=given.batch_size,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    figures = {"theirs": theirs, "compared": compared, "different": different, "surroundings": about}
    finish("lm-eval's numbers and ours", rows, figures, given.json)


def lm_evals_own(given: Any) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard error of every metric of every task."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    found = simple_evaluate(
        "hf",
        {"pretrained": str(find_model(MODEL).folder), "dtype": DTYPE},
        tasks=find_tasks(OFFLINE, given.data),
        limit=given.limit,
        batch_size=given.batch_size,
        device="cpu",
        task_manager=TaskManager(include_defaults=False),
        **dict.fromkeys(seeds, given.seed),
    )
    return {
        task: {
            metric: (results[f"{metric},none"], results[f"{metric}_stderr,none"])
            for metric in ("acc", "acc_norm")
            if f"{metric},none" in results
        }
        for task, results in found["results"].items()
    }


def by_command(given: Any) -> dict[str, Any]:
    """What ``unicuco evaluate`` writes into its JSON."""
    with tempfile.TemporaryDirectory(prefix="unicuco-exactness-") as temporary:
        figures = Path(temporary) / "figures.json"
        asked = ["evaluate", MODEL, "--tasks", ",".join(OFFLINE), "--task-data", str(given.data)]
        asked += ["--limit", str(given.limit), "--seed", str(given.seed), "--batch-size", str(given.batch_size)]
        asked += ["--dtype", DTYPE, "--tokens", "512", "--window-length", "512", "--json", str(figures)]
        app(asked, standalone_mode=False)
        return dict(json.loads(figures.read_text(encoding="utf-8"))["results"][0]["tasks"])


if __name__ == "__main__":
    main()
