"""Whether a command line is one that its program would take, found out without running it."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def check_training(words: Sequence[str]) -> None:
    """A training command as jobs are given it.

    Raises:
        Exception: typer's or ours, when an option or a combination is not allowed.
    """
    from cluster.train import config_values, train_command

    assert list(words[:3]) == ["python", "-m", "cluster.train"], words
    app = typer.Typer()
    app.command()(train_command)
    context = typer.main.get_command(app).make_context("train", list(words[3:]))
    given = {name: value for name, value in context.params.items() if value not in (None, [], ())}
    values = config_values({name: value for name, value in given.items() if name != "resume"})
    assert "resume" in given or ("model" in values and "run" in values), words
    context.close()
