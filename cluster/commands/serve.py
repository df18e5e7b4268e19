"""``unicuco serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
