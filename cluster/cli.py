"""The command line: ``unicuco COMMAND``; every command is in a module of its own.

Importing this module is cheap (typer alone); each command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys

import typer

from cluster.commands.answer import answer
from cluster.commands.evaluate import evaluate
from cluster.commands.profile import profile
from cluster.commands.prune import prune
from cluster.commands.recover import recover
from cluster.commands.runs import report, watch
from cluster.commands.serve import serve
from cluster.commands.supernet import supernet
from cluster.commands.verify import export_gguf, verify
from cluster.keys import keys_app
from cluster.train import add_train_command
from cluster.tune import add_tune_command
from unicuco.errors import UniCuCoError

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
for _command in (watch, answer, prune, verify, export_gguf, evaluate, recover, supernet, profile, report, serve):
    app.command()(_command)
app.add_typer(keys_app, name="keys")


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
