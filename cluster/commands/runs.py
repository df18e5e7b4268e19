"""``unicuco report`` and ``unicuco watch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[str, typer.Argument(help="The run folder, or the run's URI.")],
    output: Annotated[Path | None, typer.Option(help="Folder for the pictures and the page; RUN/report.")] = None,
) -> None:
    """Draws a run: the front, strategies per block, predicted against measured, progress; one HTML page.

    Example: unicuco report runs/first
    """
    from unicuco.remote.fetch import run_folder
    from unicuco.report import write_report

    page = write_report(run_folder(run), output)
    typer.echo(f"Report: {page}")


def watch(
    run: Annotated[str, typer.Argument(help="The run folder, or the run's URI.")],
    once: Annotated[bool, typer.Option(help="Say how it is now and stop.")] = False,
) -> None:
    """Shows a run that is going on in another terminal or as a job, until it has ended.

    Example: unicuco watch runs/first
    """
    from cluster.watching import watch

    try:
        watch(run, once=once)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
