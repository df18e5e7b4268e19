"""The training command, and the entry point of a Ray job.

    python -m cluster.train smollm2 --run runs/first
    ray job submit --address http://HEAD:8265 -- python -m cluster.train smollm2 --run /shared/runs/first

``unicuco train`` mounts the same function, so that the two cannot drift apart. Importing this module is cheap; what
trains is ``cluster.training``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cluster.entry import run_alone, stop_codes
from unicuco.errors import UniCuCoError

T = TypeVar("T")

EXAMPLES = """
Trains a policy for one base model: evaluates pruned models in parallel on Ray and learns to answer every request.

Examples:

    unicuco train smollm2 --run runs/first

    unicuco train ./my-model --run runs/mine --calibration prose=wiki.txt --calibration code=code.jsonl

    unicuco train smollm2 --run runs/sparse --pruner wanda

    unicuco train smollm2 --run runs/fast --latency latency.json

    unicuco train --resume runs/first

    unicuco train smollm2 --run s3://bucket/runs/first
"""

_RESUMABLE = {"model", "resume", "evaluators", "evaluator_cpus", "evaluator_gpus", "address"}
"""Options that may be given together with --resume: where the run goes on, not what it is."""


class OptionError(UniCuCoError):
    """Options that do not go together, or a value that is not allowed."""


def train_command(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Base model: hub id, local folder, GGUF file, a URI of either, or 'smollm2'.", show_default=False
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Folder or URI (s3://...) for the new run.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with the run in this folder or at this URI.", show_default=False)
    ] = None,
    evaluations: Annotated[int | None, typer.Option(help="How many pruned models to measure.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search.")] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="Text: 'sotu', a .txt/.jsonl/.parquet file or a dataset, as [NAME=]SOURCE; repeatable."),
    ] = None,
    window_length: Annotated[int | None, typer.Option(help="Tokens per window.")] = None,
    calibration_windows: Annotated[int | None, typer.Option(help="Windows per domain for the preparation.")] = None,
    search_windows: Annotated[int | None, typer.Option(help="Windows per domain for every evaluation.")] = None,
    calibration_seed: Annotated[int | None, typer.Option(help="Seed that picks the windows.")] = None,
    objectives: Annotated[
        str | None, typer.Option(help="'mean' KL over the domains, 'domains' one by one, or 'auto'.")
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(help="A .json file of 'unicuco profile': latency is an objective, too.", show_default=False),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="What a strategy decides: 'blocks' or 'sublayers' (kept or dropped), 'width' (attention and MLPs "
            "narrower, none dropped) or 'mixed' (narrower or dropped; the default)."
        ),
    ] = None,
    multiple: Annotated[
        int | None,
        typer.Option(min=1, help="MLPs keep a multiple of this many neurons: 64 (the default), 128, 256."),
    ] = None,
    pruner: Annotated[
        str | None,
        typer.Option(help="Search sparsities in dense shapes instead: 'wanda', 'sparsegpt' or 'sparsellm'."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="'cpu' or 'cuda'.")] = None,
    dtype: Annotated[str | None, typer.Option(help="'bfloat16' or 'float32'.")] = None,
    threads: Annotated[int | None, typer.Option(help="Torch threads per evaluator on a CPU.")] = None,
    trust_remote_code: Annotated[bool | None, typer.Option(help="Run the base model's own code.")] = None,
    evaluators: Annotated[
        int | None, typer.Option(help="Evaluators: one per GPU, or as many as fit, if not given.")
    ] = None,
    evaluator_cpus: Annotated[float | None, typer.Option(help="CPUs for each evaluator.")] = None,
    evaluator_gpus: Annotated[
        float | None, typer.Option(help="GPUs for each evaluator: a fraction, or several whole ones.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="HOST:PORT of a running Ray cluster, or 'auto'.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file with any setting of run.json's 'config'.")] = None,
) -> None:
    from rich.console import Console

    console = Console()
    given = {name: value for name, value in context.params.items() if value not in (None, [], ())}
    with stop_codes():
        if resume is not None:
            _resume(resume, model, given, console)
        else:
            _train(given, console)


train_command.__doc__ = EXAMPLES


def add_train_command(app: typer.Typer) -> None:
    """Mounts ``train`` on a command line."""
    app.command("train", help=EXAMPLES, no_args_is_help=True)(train_command)


def config_values(given: dict[str, Any]) -> dict[str, Any]:
    """The nested values of a ``TrainConfig`` that the options say, over those of ``--config``.

    Raises:
        OptionError: the file is not a JSON object, or two options say the same thing.
    """
    values = _read_config(given["config"]) if "config" in given else {}
    if "space" in given and "pruner" in given:
        raise OptionError("--space is about widths and --pruner about zeros: give one of them.")
    places = {
        "model": ("model",),
        "run": ("run",),
        "evaluations": ("learner", "evaluations"),
        "seed": ("learner", "seed"),
        "objectives": ("learner", "objectives"),
        "latency": ("latency",),
        "window_length": ("preparation", "calibration", "window_length"),
        "calibration_windows": ("preparation", "calibration", "calibration_windows"),
        "search_windows": ("preparation", "calibration", "search_windows"),
        "calibration_seed": ("preparation", "calibration", "seed"),
        "calibration": ("preparation", "calibration", "domains"),
        "space": ("preparation", "space"),
        "pruner": ("preparation", "space", "pruner"),
        "device": ("evaluator", "device"),
        "dtype": ("evaluator", "dtype"),
        "threads": ("evaluator", "threads"),
        "trust_remote_code": ("evaluator", "trust_remote_code"),
        "evaluators": ("pool", "evaluators"),
        "evaluator_cpus": ("pool", "cpus"),
        "evaluator_gpus": ("pool", "gpus"),
        "address": ("ray", "address"),
    }
    for name, path in places.items():
        if name not in given:
            continue
        inner = values
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise OptionError(f"{given['config']}: '{key}' must be a JSON object.")
        if isinstance(inner.get(path[-1]), dict):
            raise OptionError(f"--{name} and '{'.'.join(path)}' in {given['config']} say the same thing: give one.")
        inner[path[-1]] = given[name]
    if "multiple" in given:
        _put_multiple(values, given["multiple"])
    return values


def _put_multiple(values: dict[str, Any], multiple: int) -> None:
    """Puts ``--multiple`` into the search space, which may have been given by name."""
    from unicuco.levels import SPACES

    preparation = values.setdefault("preparation", {})
    space = preparation.get("space", {}) if isinstance(preparation, dict) else None
    if isinstance(space, str) and space in SPACES:
        space = SPACES[space].model_dump()
        if space["pruner"] == "depth":
            raise OptionError("--multiple is for MLPs that become narrower: give it with --space mixed or width.")
        del space["neuron_multiple"]
    if not isinstance(space, dict):
        return  # not a search space: refused where all values are read
    if "neuron_multiple" in space:
        raise OptionError("--multiple and 'neuron_multiple' in the file of --config say the same thing: give one.")
    preparation["space"] = space | {"neuron_multiple": multiple}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(values, dict):
        raise OptionError(f"{path} holds no JSON object.")
    return values


def _train(given: dict[str, Any], console: Any) -> None:
    if "config" not in given and ("model" not in given or "run" not in given):
        raise OptionError("Say what to train and where: unicuco train MODEL --run FOLDER (or --resume FOLDER).")
    values = config_values(given)
    from cluster.training import TrainConfig, train
    from unicuco.calibration import Domain
    from unicuco.levels import SPARSITY_PRUNERS

    if given.get("pruner", SPARSITY_PRUNERS[0]) not in SPARSITY_PRUNERS:
        raise OptionError(
            f"--pruner is {', '.join(SPARSITY_PRUNERS[:-1])} or {SPARSITY_PRUNERS[-1]}; see also --space."
        )

    def build() -> TrainConfig:
        if "calibration" in given:
            values["preparation"]["calibration"]["domains"] = [Domain.parse(text) for text in given["calibration"]]
        return TrainConfig.model_validate(values)

    train(_validated(build), console)


def _resume(run: str, model: str | None, given: dict[str, Any], console: Any) -> None:
    foreign = sorted(given.keys() - _RESUMABLE)
    if foreign:
        raise OptionError(
            f"A run is resumed as it was started: --{foreign[0].replace('_', '-')} cannot be given with --resume."
        )
    from actors.placement import PoolConfig
    from actors.runtime import RayConfig
    from cluster.training import resume

    values = config_values({name: value for name, value in given.items() if name != "model"})
    pool = _validated(lambda: PoolConfig(**values["pool"])) if "pool" in values else None
    ray = _validated(lambda: RayConfig(**values["ray"])) if "ray" in values else None
    resume(run, model, pool, ray, console)


def _validated(build: Callable[[], T]) -> T:
    from pydantic import ValidationError

    from unicuco.request import explain_validation

    try:
        return build()
    except ValidationError as error:
        raise OptionError(f"{explain_validation(error)}.") from error


def main() -> None:
    """``python -m cluster.train``."""
    run_alone(train_command, "train", EXAMPLES)


if __name__ == "__main__":
    main()
