"""``unicuco answer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import (
    Bytes,
    Kept,
    Latency,
    MaxKl,
    MaxLatency,
    Params,
    PolicyFolder,
    Preference,
    Ratio,
    asked_for,
)


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

    Example: unicuco answer runs/first --preference latency=0.4,mean=0.6 --latency latency.json

    Example: unicuco answer runs/first --requests examples/requests.jsonl --output answers.jsonl
    """
    from cluster.answering import run_answer

    asked = asked_for(kept, ratio, params, max_bytes, max_kl, preference, max_latency_ms)
    run_answer(policy, asked, requests, output, latency)
