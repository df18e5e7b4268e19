"""Reload-and-compare: the checkpoint as a fresh process loads it, against the pruned model as computed in memory.

Both sides compute in float32, one decoder layer at a time, whatever the stored dtype: float32 holds every bfloat16
number exactly, so a tight tolerance works, and no second copy of the model is made. The reference never goes through
the regrouping of ``hetero``: it is the base model with its own layers, zero-padded.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unicuco.checkpoint.layout import padded_block
from unicuco.errors import CheckpointError
from unicuco.models.load import BaseModel
from unicuco.models.sites import Block, find_blocks
from unicuco.pruners.base import PrunedBlock

PROBE_SHAPE = (2, 16)
TOLERANCE = 1e-3
"""Largest allowed difference of logits, relative to the largest logit (or to 1, when that is larger)."""


@dataclass(frozen=True)
class Verification:
    """What reloading showed: logits over ``tokens`` fixed tokens, in float32."""

    max_abs_diff: float
    max_abs_logit: float
    tolerance: float
    """Absolute: ``TOLERANCE`` times the largest logit."""
    tokens: int

    @property
    def passed(self) -> bool:
        return self.max_abs_diff <= self.tolerance  # false for NaN


class _PaddedLayer(nn.Module):
    """Computes one dense layer, zero-padded and in float32, from tensors that it makes at each call and forgets."""

    def __init__(self, block: Block, pruned: Sequence[PrunedBlock], index: int) -> None:
        super().__init__()
        self._held = (block, pruned, index)  # in a tuple: not a submodule, not copied, not cast

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        block, blocks, index = self._held
        pruned = blocks[index]  # first: it may bring the block's own weights
        state = {name: tensor.float() for name, tensor in padded_block(block, pruned).items()}
        return torch.func.functional_call(block.layer, state, args, kwargs)


def probe_tokens(vocab_size: int) -> Tensor:
    """Fixed token ids (``PROBE_SHAPE``), the same for every checkpoint of a vocabulary."""
    return torch.randint(0, vocab_size, PROBE_SHAPE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def reference_logits(base: BaseModel, pruned: Sequence[PrunedBlock], tokens: Tensor) -> Tensor:
    """Logits (``tokens.shape x vocab``, float32, on the CPU) of the base model with its blocks pruned.

    Args:
        pruned: every block; asked for one after the other, once each.
    """
    blocks = find_blocks(base.model)
    stand_ins = {id(block.layer): _PaddedLayer(block, pruned, i) for i, block in enumerate(blocks)}
    model: Any = copy.deepcopy(base.model, stand_ins)  # the memo puts the stand-ins where the layers were
    model = model.float().eval()
    return model(input_ids=tokens.to(model.device), use_cache=False).logits.float().cpu()


def check_reload(folder: Path, tokens: Tensor, expected: Tensor, trust_remote_code: bool) -> Verification:
    """Loads ``folder`` in a fresh process with plain transformers and compares its logits with ``expected``.

    Raises:
        CheckpointError: it does not load, or its logits differ.
    """
    try:
        found = reload(folder, {"tokens": tokens, "logits": expected.contiguous()}, trust_remote_code)
    except ReloadError as error:
        raise CheckpointError(f"The checkpoint was not kept: a fresh process could not load it ({error}).") from error
    largest = float(expected.abs().max())
    result = Verification(found["max_abs_diff"], largest, TOLERANCE * max(1.0, largest), tokens.numel())
    if not result.passed:
        raise CheckpointError(
            f"The checkpoint was not kept: reloaded, its logits differ from the pruned model's by up to "
            f"{result.max_abs_diff:.3g} (allowed {result.tolerance:.3g})."
        )
    return result


class ReloadError(Exception):
    """What the fresh process died of, in its own last line."""


def reload(folder: Path, probe: dict[str, Tensor], trust_remote_code: bool, measure: bool = False) -> dict[str, Any]:
    """What ``reload.py`` says of ``folder`` in a fresh process.

    Raises:
        ReloadError: it did not get to the end.
    """
    with tempfile.TemporaryDirectory(prefix="unicuco-verify-") as temporary:
        file = Path(temporary) / "probe.safetensors"
        save_file(probe, file)
        script = Path(__file__).with_name("reload.py")
        # -P keeps the script's own folder off the path. The module cache of remote code is thrown away afterwards:
        # a checkpoint's scratch name must not stay in the user's.
        command = [sys.executable, "-P", str(script), str(folder), str(file)]
        command += ["--remote"] * trust_remote_code + ["--measure"] * measure
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(Path(temporary) / "modules"),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "CUDA_VISIBLE_DEVICES": "",
        }
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ran.returncode != 0:
        reason = ran.stderr.strip().splitlines()[-1:] or [f"exit code {ran.returncode}"]
        raise ReloadError(reason[0].rstrip("."))
    return dict(json.loads(ran.stdout.strip().splitlines()[-1]))
