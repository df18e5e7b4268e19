"""A base model of some billion parameters: what preparing and evaluating it takes, against its floor.

    python -m benchmarks.large [--device cuda] [--layers 28] [--hidden 3072] [--neurons 8192] [--json FILE]

Shapes of Llama 3.2 3B by default, weights random (bfloat16), vocabulary and tokenizer of the built-in model. What
random weights compute means nothing; what computing it takes does. Figures:

- ``prepare_seconds``; ``evaluation_seconds_...`` of the dense strategy and of uniform kept 0.7, medians of 5;
- ``floor_ratio``: dense evaluation ÷ what its multiply-adds (blocks and head) take at the rate of a large matrix
  product in bfloat16, measured in the same run;
- ``gpu_peak_gib`` while preparing and while evaluating, beside ``weights_gib``; ``preparation_gib`` on disk.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import MODEL, console, finish, parser, surroundings
from unicuco.baselines.uniform import uniform
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.source import find_model
from unicuco.preparation import PreparationConfig, prepare

ROUNDS, HEAD_DIM, GIB = 5, 128, 2**30
PRODUCT = 8192
"""Rows and columns of the matrix product whose rate is the floor's."""


def main() -> None:
    options = parser(__doc__, device=True)
    options.add_argument("--layers", type=int, default=28)
    options.add_argument("--hidden", type=int, default=3072)
    options.add_argument("--neurons", type=int, default=8192)
    options.add_argument("--runs", type=Path, default=Path("runs/large"))
    given = options.parse_args()
    folder = given.runs / f"{given.layers}-{given.hidden}-{given.neurons}"
    if not (folder / "config.json").is_file():
        write_random_model(folder, given)
    figures = measured(folder, given)
    figures["surroundings"] = surroundings(
        model=f"random, {figures['parameters'] / 1e9:.2f} billion parameters, {given.layers} blocks",
        device=given.device,
        dtype="bfloat16",
        rounds=ROUNDS,
    )
    finish("A large base model", rows(figures), figures, given.json)


def write_random_model(folder: Path, given: Any) -> None:
    """A Llama with random weights and the built-in model's vocabulary, as a model folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(find_model(MODEL))
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=given.hidden,
        intermediate_size=given.neurons,
        num_hidden_layers=given.layers,
        num_attention_heads=given.hidden // HEAD_DIM,
        num_key_value_heads=max(given.hidden // HEAD_DIM // 3, 1),
        head_dim=HEAD_DIM,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device(given.device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measured(folder: Path, given: Any) -> dict[str, Any]:
    clock = Clock(given.device)
    found: dict[str, Any] = {}
    base, found["load_seconds"] = clock(lambda: load_base_model(str(folder), "bfloat16", given.device))
    found["parameters"] = sum(p.numel() for p in base.model.parameters())
    found["weights_gib"] = sum(p.numel() * p.element_size() for p in base.model.parameters()) / GIB
    console.print(f"loaded in {found['load_seconds']:.0f} s")
    preparation, found["prepare_seconds"] = clock(
        lambda: prepare(base, load_tokenizer(base.source), PreparationConfig(), root=given.runs / "preparations")
    )
    found["gpu_peak_gib_preparing"] = clock.peak()
    found["preparation_gib"] = sum(file.stat().st_size for file in preparation.folder.iterdir()) / GIB
    console.print(f"prepared in {found['prepare_seconds']:.0f} s")
    evaluator, found["pin_seconds"] = clock(
        lambda: Evaluator(str(folder), preparation.folder, EvaluatorConfig(device=given.device), base=base)
    )
    space, tokens = evaluator.space, evaluator.num_tokens
    found["tokens"] = tokens
    for name, levels in (
        ("dense", np.zeros(space.num_sites, dtype=np.int64)),
        ("kept_0.7", uniform(space, 0.7, mlp_only=False)),
    ):
        shape = space.shape(levels)
        _, found[f"evaluation_seconds_{name}_first"] = clock(lambda shape=shape: evaluator.measure(shape))
        each = [clock(lambda shape=shape: evaluator.measure(shape))[1] for _ in range(ROUNDS)]
        found[f"evaluation_seconds_{name}"] = statistics.median(each)
    found["gpu_peak_gib_evaluating"] = clock.peak()
    macs = space.total(np.zeros(space.num_sites, np.int64), "macs") * tokens + head_macs(base.model, tokens)
    rate = product_rate(clock, given.device)
    found["product_tflops"] = rate / 1e12
    found["floor_seconds"] = 2 * float(macs) / rate
    found["floor_ratio"] = found["evaluation_seconds_dense"] / found["floor_seconds"]
    return found


class Clock:
    """Seconds of a call, the GPU's queue included, and the most GPU memory that was taken since last asked."""

    def __init__(self, device: str) -> None:
        self._gpu = device if device.startswith("cuda") else None

    def __call__(self, call: Callable[[], Any]) -> tuple[Any, float]:
        began = time.perf_counter()
        found = call()
        if self._gpu:
            torch.cuda.synchronize(self._gpu)
        return found, time.perf_counter() - began

    def peak(self) -> float | None:
        if self._gpu is None:
            return None
        found = torch.cuda.max_memory_allocated(self._gpu) / GIB
        torch.cuda.reset_peak_memory_stats(self._gpu)
        return found


def head_macs(model: Any, tokens: int) -> int:
    return int(model.get_output_embeddings().weight.numel()) * tokens


def product_rate(clock: Clock, device: str) -> float:
    """Floating-point operations a second of a large product of random bfloat16 matrices."""
    size = PRODUCT if device.startswith("cuda") else PRODUCT // 8
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [clock(lambda: a @ b)[1] for _ in range(20)][5:]
    return 2 * size**3 / statistics.median(seconds)


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, f"{value:.4g}", "") for name, value in figures.items() if isinstance(value, float)]


if __name__ == "__main__":
    main()
