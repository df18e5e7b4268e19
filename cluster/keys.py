"""``unicuco keys``: the file of a service's API keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

keys_app = typer.Typer(help="API keys of a service.", no_args_is_help=True)
KeysFile = Annotated[Path, typer.Option("--file", help="The file of keys.")]


@keys_app.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Who the key is for.")], file: KeysFile = Path("keys.json")
) -> None:
    """Makes a key and prints it, once; the file keeps its hash.

    Example: unicuco keys add laptop --file keys.json
    """
    from cluster.service.keys import KeyFile

    typer.echo(KeyFile(file).add(name))


@keys_app.command("remove")
def remove_key(name: Annotated[str, typer.Argument(help="Whose key.")], file: KeysFile = Path("keys.json")) -> None:
    """Removes a key; services that use the file refuse it within a second."""
    from cluster.service.keys import KeyFile

    KeyFile(file).remove(name)


@keys_app.command("list")
def list_keys(file: KeysFile = Path("keys.json")) -> None:
    """Names of the keys."""
    from cluster.service.keys import KeyFile

    typer.echo("\n".join(KeyFile(file).read()))
