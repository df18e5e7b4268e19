"""``unicuco verify``: whether a checkpoint is still what was written, and what it is like to use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from unicuco.remote import is_uri
from unicuco.storage import write_json


def run_verify(checkpoint: str, threads: int | None, trust_remote_code: bool, json_file: Path | None) -> bool:
    """Prints (and writes) what was found.

    Returns:
        whether the checkpoint is good.

    Raises:
        CheckpointError: it is none of ours, or carries code that nobody has allowed. RemoteError: no such place.
    """
    import torch

    from unicuco.checkpoint.audit import Audit, audit
    from unicuco.checkpoint.upload import fetched

    if threads:
        torch.set_num_threads(threads)
    console = Console()
    place = fetched(checkpoint) if is_uri(checkpoint) else nullcontext(Path(checkpoint))
    with console.status("checking files, loading in a fresh process"), place as folder:
        found: Audit = audit(folder, trust_remote_code)
    record, size = found.record, found.record["size"]
    lines = [
        f"checkpoint  {checkpoint} ({record['layout']}, {record['dtype']}), {record['pruner']} from "
        f"{record['base_model']['spec']}",
        f"size        {size['params']:,} parameters, {size['bytes'] / 1e6:.1f} MB; kept {size['kept']:.3f}, "
        f"ratio {size['ratio']:.3f}",
    ]
    if found.loaded is not None:
        loaded = found.loaded
        lines += [
            f"files       {len(record['files'])} with {found.bytes / 1e6:.1f} MB, every SHA-256 as recorded",
            f"loaded      {loaded['class']} in {loaded['load_seconds']:.1f} s, {loaded['params']:,} parameters; "
            f"at most {loaded['peak_bytes'] / 1e6:.0f} MB of memory",
        ]
        lines += [f"  {line}" for line in _layers(loaded["layers"])]
        lines.append(
            f"speed       {loaded['prefill_tokens_per_second']:.0f} tokens/s reading {loaded['prefill_tokens']}, "
            f"{loaded['decode_tokens_per_second']:.1f} tokens/s writing ({loaded['threads']} threads)"
        )
        if found.logits is None:
            lines.append("logits      none recorded: it was written without being verified")
        else:
            lines.append(
                f"logits      on {found.logits.tokens} tokens at most {found.logits.max_abs_diff:.2g} from those "
                f"recorded (allowed {found.logits.tolerance:.2g})"
            )
    lines += [f"problem     {problem}" for problem in found.problems]
    lines.append("good" if found.passed else "NOT GOOD")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    if json_file:
        verification = None if found.logits is None else asdict(found.logits)
        keys = ("base_model", "pruner", "layout", "dtype", "size", "files")
        about = {"checkpoint": checkpoint, "passed": found.passed, "problems": list(found.problems)}
        write_json(
            json_file,
            {**about, "logits": verification, "loaded": found.loaded, **{key: record[key] for key in keys}},
        )
    return found.passed


def _layers(layers: list[dict[str, Any]]) -> Iterator[str]:
    """One line for every run of equal layers."""
    start = 0
    for layer, same in groupby(layers):
        end = start + len(list(same)) - 1
        where = f"layer {start}" if start == end else f"layers {start}-{end}"
        heads = "" if layer["heads"] is None else f"{layer['heads']} heads on {layer['kv_heads']} KV heads, "
        mlps = " + ".join(str(width) for width in layer["mlps"]) or "no"
        yield f"{where}: {heads}{mlps} neurons"
        start = end + 1
