"""What training a super-network gives its slices: the same strategies before and after, on text that nobody saw.

    python -m benchmarks.supernet [--policy FOLDER] [--minutes 30 | --steps N] [--set NAME=VALUE ...]
                                  [--text FILE] [--runs FOLDER] [--json FILE]

Strategies: for each of five sizes the one that predicted damages choose (``prior``), and with ``--policy`` that
policy's answer (``answer``). Before: the base model's slices. After: the super-network's, prepared anew, as
``unicuco train SUPERNET`` sees them. KL is from the original base model both times, on 16 held-out windows of ``sotu``.

- ``kl_ratio_0.7``: KL after ÷ before at kept 0.7 (goal 0.6); the other sizes beside, and ``kl_whole``, of the whole
  network after training (0 before);
- ``text_ratio_0.7``: the same on the first 8,192 tokens of ``--text`` (WikiText-2), which was never trained on.

The super-network lies under ``--runs``; one that is there is measured again and not trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import MODEL, console, finish, parser, surroundings
from unicuco.calibration import CalibrationConfig, Domain, Windows, first_windows, read_text
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.heldout import WINDOWS, open_heldout
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.policy import Policy
from unicuco.preparation import PreparationConfig, prepare
from unicuco.request import Request
from unicuco.space import Shape
from unicuco.supernet import supernet_config, train_supernet
from unicuco.supernet.draws import ladder_shapes

SIZES = (0.9, 0.8, 0.7, 0.6, 0.5)
GOAL_KEPT, GOAL = 0.7, 0.6
TEXT_TOKENS = 8192


def main() -> None:
    options = parser(__doc__, device=True)
    options.add_argument("--policy", type=Path, help="a policy or run folder: its answers are measured, too")
    budget = options.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=None)
    budget.add_argument("--steps", type=int, default=None)
    options.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings of the training")
    options.add_argument("--text", type=Path, help="a second text, such as WikiText-2's raw test set")
    options.add_argument("--runs", type=Path, default=Path("runs/supernet"))
    given = options.parse_args()
    settings: dict[str, Any] = {"steps": given.steps, "minutes": given.minutes, "device": given.device}
    if given.steps is None and given.minutes is None:
        settings["minutes"] = 30.0
    settings |= {name: json.loads(value) for name, _, value in (entry.partition("=") for entry in given.set)}
    config = supernet_config(**settings)
    folder = given.runs / "supernet"
    if not folder.is_dir():
        train_supernet(
            MODEL, folder, config, command="python -m benchmarks.supernet",
            progress=lambda done, total, loss: console.print(f"step {done} of {total}, loss {loss:.3f}")
            if done % 10 == 0
            else None,
        )  # fmt: skip
    record = json.loads((folder / "unicuco.json").read_text(encoding="utf-8"))["supernet"]
    figures = compared(folder, given.policy, given.text, given.device)
    about = surroundings(
        model=MODEL, steps=record["steps"], seconds=record["seconds"], threads=record["threads"],
        device=given.device,
        settings=record["config"], windows_heldout=WINDOWS, policy=str(given.policy),
    )  # fmt: skip
    finish("Super-network", rows(figures), figures | {"training": record, "surroundings": about}, given.json)


def compared(folder: Path, policy: Path | None, text: Path | None, device: str) -> dict[str, Any]:
    """KL of every strategy before and after, on every text."""
    shapes: dict[str, Shape] = {}
    found: dict[str, dict[str, list[float]]] = {}
    whole: list[float] = []
    for spec in (MODEL, str(folder)):
        evaluator = opened(spec, device)
        if not shapes:
            shapes = strategies(evaluator, policy)
        texts = {"sotu": open_heldout(evaluator, WINDOWS)}
        if text is not None:
            texts["text"] = evaluator.on(read_windows(evaluator, text))
        for name, on in texts.items():
            for label, shape in shapes.items():
                kl = on.measure(shape).kl
                found.setdefault(name, {}).setdefault(label, []).append(kl)
                console.print(f"{spec} {name} {label}: KL {kl:.4f}")
        dense = evaluator.space.shape(np.zeros(evaluator.space.num_sites, np.int64))
        whole.append(texts["sotu"].measure(dense).kl)
        del evaluator, texts
    flat: dict[str, Any] = {"kl_whole": whole[1], "kl": found}
    for name, cells in found.items():
        prefix = "kl" if name == "sotu" else name
        flat |= {f"{prefix}_ratio_{label}": after / before for label, (before, after) in cells.items()}
    return flat


def opened(spec: str, device: str) -> Evaluator:
    """``spec`` with its own preparation on ``sotu``, as ``unicuco train`` makes it."""
    recipe = PreparationConfig(calibration=CalibrationConfig(domains=(Domain.parse("sotu"),)))
    base = load_base_model(spec, recipe.dtype, device)
    prepared = prepare(base, load_tokenizer(base.source), recipe)
    return Evaluator(spec, prepared.folder, EvaluatorConfig(dtype=recipe.dtype, device=device), base=base)


def strategies(evaluator: Evaluator, policy: Path | None) -> dict[str, Shape]:
    """``prior KEPT`` and ``answer KEPT``, shapes of the base model's blocks."""
    chosen = ladder_shapes(evaluator.space, evaluator.preparation.damage, SIZES)
    found = {f"prior_{kept:g}": shape for kept, shape in zip(SIZES, chosen, strict=True)}
    if policy is not None:
        loaded = Policy.load(policy)
        answers = loaded.answer([Request(kept=kept) for kept in SIZES])
        found |= {
            f"answer_{kept:g}": loaded.space.shape(np.array(answer.levels))
            for kept, answer in zip(SIZES, answers, strict=True)
        }
    return found


def read_windows(evaluator: Evaluator, text: Path) -> Windows:
    domain = Domain.parse(f"text={text}")
    length = evaluator.preparation.config.calibration.window_length
    return first_windows(read_text(domain), load_tokenizer(evaluator.base.source), TEXT_TOKENS, length, "text")


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = [("kl_whole", f"{figures['kl_whole']:.4f}", "")]
    for name, cells in figures["kl"].items():
        for label, (before, after) in cells.items():
            goal = f"{GOAL}" if name == "sotu" and label.endswith(f"_{GOAL_KEPT:g}") else ""
            found.append(
                (f"{name}, {label.replace('_', ' ')}", f"{before:.4f} -> {after:.4f}: {after / before:.3f}", goal)
            )
    return found


if __name__ == "__main__":
    main()
