"""What the commands that are also a Ray job's entry point have in common: exit codes, and running one alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from unicuco.errors import UniCuCoError


@contextmanager
def stop_codes() -> Iterator[None]:
    """Ctrl-C ends a command with exit code 130, Ray's answer to a SIGTERM with 143."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except SystemExit as stop:
        raise typer.Exit(143) from stop


def run_alone(command: Callable[..., Any], name: str, examples: str) -> None:
    """Runs ``unicuco NAME`` as ``python -m cluster.NAME``: user mistakes are one sentence and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=examples.replace(f"unicuco {name}", f"python -m cluster.{name}"), no_args_is_help=True)(command)
    try:
        app()
    except UniCuCoError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
