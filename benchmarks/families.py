"""Every family, tiny and random: do both layouts, and the model in memory, compute what the masked original does?

    python -m benchmarks.families [--families NAME ...] [--strategies 20] [--docs docs/families.md] [--json FILE]

Per family and strategy (five corners: the first attention, the first MLP or the first block dropped, one attention left
with MLPs around it, no MLP at all; the others random), float32:

- logits of ``hetero``, of ``padded`` and of the evaluator's model, against the untouched model with masks (1e-4);
- greedy generation with left padding: token-identical with a cache, without, and from ``padded``;
- save -> load -> save: byte-identical files;
- of the first strategy: loaded in a fresh process with the code that the checkpoint carries.

``families_failed`` counts the families in which anything of this is not so (goal 0). ``--docs`` writes the table into a
Markdown file, between its two markers.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

import unicuco.models.hetero  # noqa: F401  (registers the Auto classes)
from benchmarks.harness import console, finish, parser, surroundings
from benchmarks.tiny_families import (
    CONFIGS,
    PrefixPruner,
    logits_of,
    masked_model,
    random_shapes,
    some_tokens,
    tiny_model,
)
from unicuco.checkpoint import write_checkpoint
from unicuco.checkpoint.card import file_digests
from unicuco.errors import ModelError, UniCuCoError
from unicuco.models.load import BaseModel
from unicuco.models.sites import check_config
from unicuco.models.swap import SwitchableModel
from unicuco.pruners.base import pruned_blocks
from unicuco.space import Shape

TOLERANCE, NEW_TOKENS, SEED = 1e-4, 12, 0
LAYOUTS = ("hetero", "padded")
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
ABOUT = {
    "llama": ("Llama 2 and 3, SmolLM2, TinyLlama", ""),
    "mistral": ("Mistral 7B", "sliding window"),
    "qwen2": ("Qwen2, Qwen2.5", "q/k/v biases, layer types"),
    "qwen3": ("Qwen3, dense", "norms in each head, layer types"),
    "gemma2": ("Gemma 2", "norms before and after each sublayer, soft caps, layer types"),
    "gemma3_text": ("Gemma 3, text", "the same with norms in each head, no soft cap on scores"),
    "phi3": ("Phi-3, Phi-3.5 and Phi-4, text", "fused q/k/v and gate/up, partial rotary embedding"),
    "olmo2": ("OLMo 2", "norms after each sublayer; q/k norms over all heads"),
    "smollm3": ("SmolLM3", "layers without rotary embedding, layer types"),
    "granite": ("Granite 3, dense", "multipliers on embeddings, residuals, scores and logits"),
    "gpt2": ("GPT-2", "fused q/k/v, transposed weights, biases, no gate, learned positions"),
    "opt": ("OPT, all but 350M", "biases, ReLU, no gate, MLP without a module of its own"),
}
REFUSED = ("mixtral", "qwen3_moe")


@dataclass
class Found:
    """What a family's checks showed: the largest differences of logits, and every check that failed, in words."""

    family: str
    strategies: int = 0
    differences: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*LAYOUTS, "memory"), 0.0))
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def state(self, layout: str) -> str:
        return "failed" if any(reason.startswith(layout) for reason in self.failed) else "ok"


def check_family(family: str, strategies: int) -> Found:
    """All checks of one family on ``strategies`` strategies."""
    began, base, found = time.monotonic(), tiny_model(family), Found(family)
    with tempfile.TemporaryDirectory(prefix="unicuco-families-") as folder:
        for i, shape in enumerate(random_shapes(base, SEED, strategies)):
            try:
                _check_strategy(base, shape, Path(folder) / str(i), i == 0, found)
            except (UniCuCoError, RuntimeError, ValueError) as error:
                found.failed.append(f"hetero or padded, {shape}: {error}")
            found.strategies += 1
    found.seconds = time.monotonic() - began
    return found


def _check_strategy(base: BaseModel, shape: Shape, folder: Path, fresh: bool, found: Found) -> None:
    tokens, pruner = some_tokens(), PrefixPruner(base)
    expected = logits_of(masked_model(base, shape), tokens)
    switch = SwitchableModel(base.model)
    switch.apply(pruned_blocks(pruner, shape))
    _compare(found, "memory", shape, logits_of(base.model, tokens), expected)
    switch.restore()
    generated: list[torch.Tensor] = []
    for layout in LAYOUTS:
        first, again = folder / layout, folder / f"{layout}-again"
        write_checkpoint(base, None, pruner, shape, first, layout, verify=fresh)
        model: Any = AutoModelForCausalLM.from_pretrained(first).eval()
        _compare(found, layout, shape, logits_of(model, tokens), expected)
        model.save_pretrained(again)
        known, saved = file_digests(first), file_digests(again)
        if {name: known.get(name) for name in saved} != saved or "model.safetensors" not in saved:
            found.failed.append(f"{layout}, {shape}: saved again, its files differ")
        mask = torch.ones_like(tokens)
        mask[0, :3] = 0
        for use_cache in (True, False):
            options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
            generated.append(model.generate(tokens, attention_mask=mask, use_cache=use_cache, **options))
            if not torch.equal(generated[-1], generated[0]):
                found.failed.append(f"{layout}, {shape}: it generates other tokens (use_cache={use_cache})")


def _compare(found: Found, what: str, shape: Shape, logits: torch.Tensor, expected: torch.Tensor) -> None:
    difference = float((logits - expected).abs().max())
    found.differences[what] = max(found.differences[what], difference)
    if not difference <= TOLERANCE:  # also for NaN
        found.failed.append(f"{what}, {shape}: its logits differ by {difference:.3g}")


def refusal(family: str) -> str:
    """The sentence with which a family is refused.

    Raises:
        AssertionError: it is not.
    """
    try:
        check_config(AutoConfig.for_model(family))
    except ModelError as error:
        return str(error)
    raise AssertionError(f"{family} is not refused")


def table(found: list[Found]) -> str:
    """The matrix, as Markdown."""
    lines = [
        "| `model_type` | models | what is special | `hetero` | `padded` | evaluator | largest difference of logits |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        states = " | ".join(one.state(what) for what in (*LAYOUTS, "memory"))
        largest = max(one.differences.values())
        lines.append(f"| {one.family} | {' | '.join(ABOUT[one.family])} | {states} | {largest:.1e} |")
    lines += [f"| {family} | | mixture of experts | refused | refused | refused | |" for family in REFUSED]
    return "\n".join(lines)


def write_table(docs: Path, matrix: str) -> None:
    """Puts ``matrix`` between the markers of ``docs``."""
    before, rest = docs.read_text(encoding="utf-8").split(BEGIN)
    docs.write_text(f"{before}{BEGIN}\n{matrix}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--families", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    options.add_argument("--strategies", type=int, default=20, help="per family (default 20)")
    options.add_argument("--docs", type=Path, help="write the table of all families into this Markdown file")
    given = options.parse_args()
    logging.disable_progress_bar()
    found = []
    for family in given.families:
        found.append(check_family(family, given.strategies))
        console.print(f"{family}: {len(found[-1].failed)} checks failed, {found[-1].seconds:.0f} s")
        for reason in found[-1].failed:
            console.print(f"  {reason}")
    failed = sum(bool(one.failed) for one in found)
    for family in REFUSED:
        console.print(refusal(family))
    matrix = table(found)
    if given.docs and given.families == list(CONFIGS):
        write_table(given.docs, matrix)
    rows = [(one.family, "failed" if one.failed else f"ok, {max(one.differences.values()):.1e}", "ok") for one in found]
    rows.append(("families_failed", str(failed), "0"))
    figures = {
        "families_failed": failed,
        "families": {one.family: {**vars(one)} for one in found},
        "surroundings": surroundings(strategies=given.strategies, seed=SEED, dtype="float32"),
    }
    finish(f"{len(found)} families, {given.strategies} strategies each", rows, figures, given.json)


if __name__ == "__main__":
    main()
