"""``unicuco verify`` and ``unicuco export-gguf``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import Threads
from unicuco.errors import CheckpointError, RemoteError


def verify(
    checkpoint: Annotated[str, typer.Argument(help="The folder of a checkpoint, or its URI.")],
    threads: Threads = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the code in the folder, whoever wrote it.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found here too.")] = None,
) -> None:
    """Checks a checkpoint: every file's digest, logits in a fresh process, size, shapes, speed. Exit code 1: not good.

    Example: unicuco verify checkpoints/small
    """
    from cluster.verifying import run_verify

    try:
        good = run_verify(checkpoint, threads, trust_remote_code, json_file)
    except (CheckpointError, RemoteError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    raise typer.Exit(0 if good else 1)


def export_gguf(
    checkpoint: Annotated[Path, typer.Argument(help="A 'uniform' or 'padded' checkpoint, or a plain model's folder.")],
    output: Annotated[Path, typer.Argument(help="The GGUF file.")],
    tokenizer_pre: Annotated[
        str, typer.Option(help="llama.cpp's name for how text is split: 'smollm', 'llama-bpe', 'default', ...")
    ],
    replace: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Writes a Llama or Mistral checkpoint as one GGUF file, for llama.cpp.

    Example: unicuco export-gguf checkpoints/small small.gguf --tokenizer-pre smollm
    """
    from unicuco.checkpoint.gguf import write_gguf

    write_gguf(checkpoint, output, tokenizer_pre, replace)
    typer.echo(f"GGUF: {output}, {output.stat().st_size / 1e6:.0f} MB")
