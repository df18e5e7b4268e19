"""What every machine of a cluster needs of a run: its preparation and its base model, fetched once per machine."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from unicuco.errors import ModelError, PreparationError
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.policy_parts import load_parts
from unicuco.preparation import Preparation
from unicuco.remote import is_uri
from unicuco.remote.documents import get_folder, put_folder
from unicuco.remote.fetch import policy_folder
from unicuco.remote.store import Store
from unicuco.storage import cache_dir

SUBJECT = "preparation"


def put_preparation(uri: str, preparation: Preparation) -> None:
    """Puts a preparation at the run's URI; the dense references stay, each machine computes its own.

    Raises:
        RemoteError: it is not there, or not all of it; who looks finds none.
    """
    put_folder(Store(uri), SUBJECT, preparation.folder)


def find_preparation(folder: Path, digest: str, uri: str | None) -> Preparation | None:
    """The preparation with this digest: at ``folder``, in this machine's cache, or fetched into it from the run's URI.

    Raises:
        RemoteError: the store cannot be read.
    """
    from filelock import FileLock

    cached = cache_dir() / "preparations" / digest[:24]
    for place in (Path(folder), cached):
        if (found := _open(place, digest)) is not None:
            return found
    if uri is None:
        return None
    cached.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(cached) + ".lock"):  # evaluators of one machine begin at the same time
        if not (cached / "preparation.json").is_file():
            get_folder(Store(uri), SUBJECT, lambda document: cached, "preparation.json")
            if (cached / "preparation.json").is_file() and _open(cached, digest) is None:  # another run's
                shutil.rmtree(cached)
    return _open(cached, digest)


def _open(folder: Path, digest: str) -> Preparation | None:
    if not (folder / "preparation.json").is_file():
        return None
    found = Preparation.open(folder)
    return found if found.digest == digest else None


def pruning_folder(place: str | Path) -> Path:
    """As ``policy_folder``; the preparation that the policy was trained with is then on this machine as well.

    Raises:
        PolicyError: the run there has no policy yet. RemoteError: the store cannot be read.
    """
    folder = policy_folder(place)
    if is_uri(place):
        recorded = load_parts(folder).provenance.get("preparation", {})
        find_preparation(Path(str(recorded.get("folder", ""))), str(recorded.get("digest", "")), str(place))
    return folder


def open_evaluator(
    model_spec: str, preparation_folder: Path, digest: str, uri: str | None, config: EvaluatorConfig
) -> Evaluator:
    """An ``Evaluator`` on this machine, whatever of the run is here already.

    Args:
        preparation_folder: where the preparation lies on the driver's machine.
        digest: of the preparation; uri: of the run, if it lies at one.

    Raises:
        PreparationError, ModelError: this machine lacks it and cannot get it; the sentence says how it could.
    """
    prepared = find_preparation(preparation_folder, digest, uri)
    if prepared is None:
        raise PreparationError(
            f"{socket.gethostname()} does not have the preparation {digest[:12]} ({preparation_folder} is on another "
            "machine): let UNICUCO_CACHE be a folder that all machines share, or give --run a URI, where each finds it."
        )
    try:
        return Evaluator(model_spec, prepared.folder, config)
    except ModelError as error:
        if Path(model_spec).is_absolute() and not Path(model_spec).exists():
            raise ModelError(
                f"{socket.gethostname()} does not have the base model: no folder or file at {model_spec}. Put it there "
                "on every machine, or name it by its hub id or a URI, and each fetches it."
            ) from error
        raise
