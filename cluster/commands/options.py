"""Options that several commands have, and the request that some of them make up."""

from __future__ import annotations

from typing import Annotated

import typer

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
    str | None,
    typer.Option(help="Weights of size and quality loss: 0.3,0.7; or by name: code=0.8,prose=0.2, latency=1,mean=2."),
]
MaxLatency = Annotated[float | None, typer.Option(help="Largest predicted latency, in milliseconds.")]
Latency = Annotated[
    str | None, typer.Option(help="Latency table: a .json file of 'unicuco profile', or the name of one in the run.")
]
Dtype = Annotated[str, typer.Option(help="'bfloat16' or 'float32'.")]
Device = Annotated[str, typer.Option(help="'cpu', 'cuda', 'cuda:N', or several: 'cuda:0,cuda:1'.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Torch threads on a CPU.")]


def asked_for(
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
