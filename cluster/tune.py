"""The tuning command, and the entry point of a Ray job.

    python -m cluster.tune runs/first
    ray job submit --address http://HEAD:8265 -- python -m cluster.tune /shared/runs/first

``unicuco tune`` mounts the same function. Importing this module is cheap; what sweeps is ``cluster.tuning``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.entry import run_alone, stop_codes

EXAMPLES = """
Sweeps the learner's settings on the recorded evaluations of a run, and says whether any are better than the run's own.

Nothing is measured anew but with --confirm, which makes one real run with the winning settings.

Examples:

    unicuco tune runs/first

    unicuco tune runs/first --vary stratnet.width=64,256 --vary stratnet.learning_rate=0.0005..0.01

    unicuco train smollm2 --run runs/second --config runs/first/tune/config.json
"""


def tune_command(
    run: Annotated[str, typer.Argument(help="A run folder or URI, of a run that ended or still goes on.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(help="Vary this alone: NAME=VALUE,VALUE or NAME=LOW..HIGH; repeatable.", show_default=False),
    ] = None,
    sweep: Annotated[Path | None, typer.Option(help="JSON file with 'vary', 'settings', 'seeds', 'cuts'...")] = None,
    settings: Annotated[int | None, typer.Option(help="How many settings to try (64).", show_default=False)] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds of the finals (4).", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the settings that are drawn, and of trials.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results; RUN/tune.", show_default=False)] = None,
    confirm: Annotated[
        str | None,
        typer.Option(help="New folder or URI: make a real run there if other settings win.", show_default=False),
    ] = None,
    address: Annotated[str | None, typer.Option(help="HOST:PORT of a running Ray cluster, or 'auto'.")] = None,
) -> None:
    from actors.runtime import RayConfig
    from cluster.tuning import TuneConfig, tune
    from unicuco.errors import TuningError
    from unicuco.remote import is_uri
    from unicuco.remote.fetch import run_folder
    from unicuco.tuning.sweep import read_sweep

    if is_uri(run) and output is None:
        raise TuningError(f"{run} is not on this machine: say where the results go with --output.")
    chosen = read_sweep(sweep, vary or (), settings=settings, seeds=seeds, seed=seed)
    with stop_codes():
        tune(
            TuneConfig(
                run=run_folder(run), sweep=chosen, output=output, confirm=confirm, ray=RayConfig(address=address)
            )
        )


tune_command.__doc__ = EXAMPLES


def add_tune_command(app: typer.Typer) -> None:
    """Mounts ``tune`` on a command line."""
    app.command("tune", help=EXAMPLES, no_args_is_help=True)(tune_command)


def main() -> None:
    """``python -m cluster.tune``."""
    run_alone(tune_command, "tune", EXAMPLES)


if __name__ == "__main__":
    main()
