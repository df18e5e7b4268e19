"""What all benchmarks share: the command line, what stands beside every figure, and the demo's policy."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unicuco.storage import write_json

MODEL = "smollm2"
DEMO_RUN = Path("runs/demo")
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)


def parser(description: str | None, device: bool = False) -> argparse.ArgumentParser:
    """A parser with ``--json FILE``, the only argument that any benchmark needs; ``device``: and with ``--device``."""
    parsed = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parsed.add_argument("--json", type=Path, help="write the figures here")
    if device:
        parsed.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    return parsed


def surroundings(**settings: Any) -> dict[str, Any]:
    """Settings, versions, machine and command."""
    from cluster.runs import versions

    machine: dict[str, Any] = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    if str(settings.get("device", "cpu")).startswith("cuda"):
        import torch

        machine["gpu"] = torch.cuda.get_device_name(settings["device"])
    command = shlex.join(["python", "-m", *_module(), *sys.argv[1:]])
    return {**settings, "versions": versions(), "machine": machine, "command": command}


def finish(title: str, rows: list[tuple[str, str, str]], figures: dict[str, Any], json_file: Path | None) -> None:
    """Prints ``(figure, value, goal)`` rows and what they were measured with, and writes the JSON."""
    table = Table(title=title, box=None, header_style="bold", title_justify="left")
    for name in ("figure", "measured", "goal"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    about = {k: v for k, v in figures["surroundings"].items() if k != "versions"}
    console.print(", ".join(f"{name} {value}" for name, value in about.items()))
    if json_file:
        write_json(json_file, figures)
        console.print(f"Figures: {json_file}")


def paired(first: Callable[[], Any], second: Callable[[], Any], rounds: int, clock: Callable[[], float]) -> list[tuple]:
    """Seconds of both, ``rounds`` times in turns and in alternating order, after one uncounted round."""
    times = []
    for n in range(rounds + 1):
        pair = {}
        for name, run in ((0, first), (1, second)) if n % 2 else ((1, second), (0, first)):
            began = clock()
            run()
            pair[name] = clock() - began
        if n:
            times.append((pair[0], pair[1]))
    return times


def median_ratio(pairs: list[tuple]) -> float:
    """Median of first ÷ second, pair by pair."""
    return statistics.median(a / b for a, b in pairs)


def demo_policy() -> Path:
    """The policy of ``make demo``; trained here first where there is none."""
    if not (DEMO_RUN / "policy" / "policy.json").is_file() or not (DEMO_RUN / "heldout.json").is_file():
        from cluster.training import TrainConfig, resume, train

        console.print(f"No finished demo run in {DEMO_RUN}: training one first.")
        if (DEMO_RUN / "run.json").is_file():
            resume(DEMO_RUN, console=console)
        else:
            train(TrainConfig(model=MODEL, run=DEMO_RUN), console)
    return DEMO_RUN / "policy"


def _module() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name] if spec else [sys.argv[0]]
