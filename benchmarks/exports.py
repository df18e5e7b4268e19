"""What an export takes beside ``save_file`` on the same tensors, and what its parts take alone.

    python -m benchmarks.checkpoints --only export --json FILE

- ``export_ratio``: seconds of ``write_checkpoint(verify=False)``, with tokenizer, digests and fsync, of a model that
  is pinned and was measured, so that its projections are solved already (as in ``unicuco prune`` and in the service) ÷
  those of ``save_file`` on the same tensors in memory, which computes no digest and does not sync (goal 1.5);
- ``export_ratio_cold``: the same of an export out of files, block by block (``unicuco prune --no-measure
  --no-verify``): opening the base model, solving, and all of the above.
  Both are the smallest of rounds in turns; ``..._processor``: of processor time, which other work on the machine
  disturbs less. Beside them what the parts take alone: opening, reading blocks, solving, planning (the
  configuration, and what tensors there will be), hashing, the tokenizer, ``save_file`` with fsync;
- ``export_ratio_floor``: the SHA-256 alone ÷ ``save_file``: no export with a digest of its file can be below;
- ``export_ratio_synced``: the export ÷ ``save_file`` with fsync, both durable;
- ``export_peak_bytes``: largest memory of a process that exports cold, over what it had after its imports.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from unicuco.checkpoint import write_checkpoint
from unicuco.checkpoint.stream import StreamingPruner, open_base_model
from unicuco.checkpoint.write import LazyBlocks, plan
from unicuco.models.load import BaseModel
from unicuco.models.source import ModelSource
from unicuco.preparation import Preparation
from unicuco.pruners.base import Pruner, pruned_blocks
from unicuco.pruners.build import build_pruner
from unicuco.space import Shape

EXPORT = """
import json, sys
from pathlib import Path
import torch
import unicuco.models.hetero
from unicuco.checkpoint import write_checkpoint
from unicuco.checkpoint.reload import peak_bytes as peak
from unicuco.checkpoint.stream import StreamingPruner, open_base_model
from unicuco.models.source import find_model
from unicuco.preparation import Preparation, PreparationConfig, prepare
from unicuco.space import Shape
model, folder, target, groups, neurons = sys.argv[1:]
torch.ones(64, 64) @ torch.ones(64, 64)
before = peak()
opened = open_base_model(find_model(model), "bfloat16")
pruner = StreamingPruner(opened, Preparation.open(Path(folder)))
shape = Shape(tuple(json.loads(groups)), tuple(json.loads(neurons)))
report = write_checkpoint(opened.base, None, pruner, shape, Path(target), verify=False)
blocks = opened.base.geometry.blocks
print(json.dumps({
    "export_peak_bytes": peak() - before,
    "export_block_bytes": 2 * max(block.params for block in blocks),
    "export_outer_bytes": 2 * opened.base.geometry.fixed_params,
}))
"""


def export(
    source: ModelSource,
    base: BaseModel,
    tokenizer: Any,
    pruner: Pruner,
    preparation: Preparation,
    shape: Shape,
    rounds: int,
) -> dict[str, Any]:
    """Seconds of exports and of their parts, beside ``save_file`` on the same tensors; each the smallest of its rounds.

    Args:
        base: pinned, with its pruner.
    """
    with tempfile.TemporaryDirectory(prefix="unicuco-bench-") as temporary:
        root = Path(temporary)

        def cold(target: Path) -> None:
            opened = open_base_model(source, "bfloat16")
            assert opened is not None
            own = StreamingPruner(opened, preparation)
            write_checkpoint(opened.base, tokenizer, own, shape, target, verify=False)

        def measured(target: Path) -> None:
            write_checkpoint(base, tokenizer, pruner, shape, target, verify=False)

        pruned_blocks(pruner, shape)  # as the measurement on fresh text does before an export
        measured(root / "first")
        tensors = {name: t.clone() for name, t in load_file(root / "first" / "model.safetensors").items()}
        buffers = [tensor.view(-1).view(torch.uint8).numpy() for tensor in tensors.values()]

        def hashed(target: Path) -> None:
            digest = hashlib.sha256()
            for buffer in buffers:
                digest.update(buffer)

        def synced(target: Path) -> None:
            save_file(tensors, target)
            with open(target, "rb") as file:
                os.fsync(file.fileno())

        opened = open_base_model(source, "bfloat16")
        assert opened is not None
        inside = [name for name, p in opened.base.model.named_parameters() if p.is_meta]

        def read(target: Path) -> None:
            for name in inside:
                opened.read(name)

        def solved(target: Path) -> None:
            pruned_blocks(build_pruner(base, preparation), shape)  # a new one: nothing is solved yet

        def planned(target: Path) -> None:
            plan(base, LazyBlocks(pruner, shape, base.model.dtype), shape, "hetero")

        ways = {
            "save_file": lambda target: save_file(tensors, target),
            "export": measured,
            "export_cold": cold,
            "part_opening": lambda target: open_base_model(source, "bfloat16"),
            "part_reading": read,
            "part_solving": solved,
            "part_planning": planned,
            "part_hashing": hashed,
            "part_tokenizer": tokenizer.save_pretrained,
            "save_file_fsync": synced,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        processor: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(-1, rounds):
            for name in sorted(ways, reverse=bool(turn % 2)):
                target = root / f"{name}-{turn}"
                began, began_processor = time.perf_counter(), time.process_time()
                ways[name](target)
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - began)
                    processor[name].append(time.process_time() - began_processor)
                shutil.rmtree(target, ignore_errors=True)
                target.unlink(missing_ok=True)
        command = [sys.executable, "-c", EXPORT, source.spec, str(preparation.folder), str(root / "alone")]
        command += [json.dumps(shape.groups), json.dumps(shape.neurons)]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"the export does not work in a fresh process: {ran.stderr[-2000:]}")
    best = {name: min(times) for name, times in seconds.items()}
    least = {name: min(times) for name, times in processor.items()}
    return {
        "export_ratio": best["export"] / best["save_file"],
        "export_ratio_floor": best["part_hashing"] / best["save_file"],
        "export_ratio_synced": best["export"] / best["save_file_fsync"],
        "export_ratio_processor": least["export"] / least["save_file"],
        "export_ratio_cold": best["export_cold"] / best["save_file"],
        "export_ratio_cold_processor": least["export_cold"] / least["save_file"],
        **{f"{name}_seconds": value for name, value in best.items()},
        **{f"{name}_processor_seconds": value for name, value in least.items()},
        "export_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        **json.loads(ran.stdout.splitlines()[-1]),
    }
