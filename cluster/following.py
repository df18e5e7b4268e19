"""The driver's side of a run: asks the learner actor how it stands, shows it, and comes through its restarts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayTaskError

from actors.learner import RESTARTS
from actors.pool import DEATHS, first_line
from actors.runtime import original_error
from cluster.progress import RunDisplay
from cluster.runs import RunError
from unicuco.errors import UniCuCoError

POLL_SECONDS = 0.25
STOP_SECONDS = 30.0
"""How long a clean stop may take before the actors are ended the hard way."""


def follow(actor: Any, display: RunDisplay) -> Any:
    """Shows the run until it is over and its policy is written; returns the learner's last status.

    Raises:
        UniCuCoError: what ended the run; or the learner actor died more often than Ray restarts it.
    """
    while True:
        progress = answer(actor.progress.remote)
        display.update(progress)
        if progress.finished:
            break
        time.sleep(POLL_SECONDS)
    status = answer(actor.finish.remote)
    display.update(progress, last=True)
    return status


def stop(actor: Any) -> None:
    """Ends the run at once; what was measured is on disk."""
    try:
        ray.get(actor.stop.remote(), timeout=STOP_SECONDS)
    except Exception:  # a stop that fails is followed by a kill
        return


def answer(call: Callable[[], Any]) -> Any:
    """What the learner actor answers to ``call``, which is made again where needed; its own errors as themselves.

    Ray repeats a call that an ordinary death interrupted. One that its memory monitor ended comes back as an error,
    though the actor is restarted all the same: ask again.

    Raises:
        UniCuCoError: what ended the run; RunError where the actor died more often than Ray restarts it.
    """
    for restarts_left in reversed(range(RESTARTS + 1)):
        try:
            return ray.get(call())
        except RayTaskError as error:
            cause = original_error(error)
            if isinstance(cause, UniCuCoError):
                raise cause from None
            raise
        except DEATHS as error:
            if isinstance(error, OutOfMemoryError) and restarts_left:
                continue
            raise RunError(
                f"The learner died and could not be restarted ({first_line(error)}). Every finished evaluation is on "
                "disk: go on with --resume."
            ) from error
    raise AssertionError("the last try returns or raises")
