"""The policies on offer: loaded, described, and replaced by their new versions while calls go on."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cluster.service.config import PolicyConfig
from cluster.service.problems import ProblemError
from unicuco.errors import PolicyError, RemoteError, RequestError
from unicuco.latency import NANOSECONDS, LatencyError, tables_signature
from unicuco.models.load import DTYPES
from unicuco.objectives import front
from unicuco.policy import Policy
from unicuco.remote import is_uri
from unicuco.remote.fetch import policy_folder
from unicuco.request import Answer, Request
from unicuco.timed import Timed
from unicuco.wire import Front, FrontPoint, LatencyDescription, PolicyDescription

LOG = logging.getLogger("unicuco.service")
FRONT_POINTS = 41
URI_SECONDS = 15.0
"""Between two looks for a new version at a URI."""
WARM_SIZES = 1024
"""Answered when a policy is loaded: about as many as SmolLM2 has strategies of different size."""


@dataclass(frozen=True)
class Offered:
    """One version of a policy under its name. A call that has begun keeps the version it began with."""

    name: str
    policy: Policy
    digest: str
    bytes_per_param: int
    tables: str = ""
    """Which latency tables it has been loaded with."""

    @property
    def version(self) -> int:
        return self.policy.parts.version

    def check(self, requests: dict[str, Request]) -> None:
        """Raises ProblemError (422) naming the first request, by its place in the call, that it cannot read."""
        for place, request in requests.items():
            try:
                self.policy.check_request(request, self.bytes_per_param)
            except RequestError as error:
                where = [{"where": place, "what": str(error)}]
                raise ProblemError(422, "unknown_objective", str(error), errors=where) from error

    def answer(self, requests: list[Request]) -> list[Answer]:
        return self.policy.answer(requests, self.bytes_per_param)

    def describe(self) -> PolicyDescription:
        space, parts = self.policy.space, self.policy.parts
        return PolicyDescription(
            name=self.name,
            model=str(parts.provenance.get("model", {}).get("spec", "")),
            version=self.version,
            digest=self.digest,
            evaluations=len(parts.evaluations),
            blocks=len(space.geometry.blocks),
            groups=[block.groups for block in space.geometry.blocks],
            neurons=[block.neurons for block in space.geometry.blocks],
            smallest_kept=float(space.kept(space.smallest)),
            objectives=[*self.policy.costs.names, *self.policy.qualities.names],
            latency=[_describe_table(self.policy.timed[name]) for name in self.policy.timed.names],
        )

    @cached_property
    def front(self) -> Front:
        """What this version promises over its sizes: laid out once."""
        low = max(self.policy.scale.kept_low, float(self.policy.space.kept(self.policy.space.smallest)))
        answers = self.answer([Request(kept=float(kept)) for kept in np.linspace(1.0, low, FRONT_POINTS)])
        done = self.policy.parts.evaluations
        points = np.array([(e.kept, e.kl) for e in done]).reshape(-1, 2)
        return Front(
            policy=self.name,
            version=self.version,
            promised=[
                FrontPoint(kept=a.kept, bytes=a.bytes, kl=a.kl, kl_low=a.kl_low, kl_high=a.kl_high) for a in answers
            ],
            measured=[(float(points[i, 0]), float(points[i, 1])) for i in front(points)] if len(points) else [],
        )


class Policies:
    """All policies by name. ``refresh`` reads from disk; everything else is a look-up."""

    def __init__(self, configs: Mapping[str, PolicyConfig]) -> None:
        """Raises PolicyError or RemoteError where one cannot be read."""
        self._configs = dict(configs)
        self._next_look: dict[str, float] = {}
        self._offered = {name: self._load(name) for name in self._configs}

    def get(self, name: str | None) -> Offered:
        """The policy called ``name``, or the only one there is.

        Raises:
            ProblemError: 404 with the names there are; 422 where one must be chosen.
        """
        offered = self._offered
        if name is None:
            if len(offered) == 1:
                return next(iter(offered.values()))
            raise ProblemError(422, "which_policy", f"Name a policy: {', '.join(offered)}.")
        if name not in offered:
            raise ProblemError(404, "unknown_policy", f"There is no policy '{name}'; there are {', '.join(offered)}.")
        return offered[name]

    def describe(self) -> list[PolicyDescription]:
        return [offered.describe() for offered in self._offered.values()]

    def refresh(self) -> list[str]:
        """Takes up new versions; one that cannot be read leaves the old one in place. Returns what changed."""
        changed = []
        for name, config in self._configs.items():
            try:
                if not self._may_look(name):
                    continue
                folder, offered = policy_folder(config.path), self._offered[name]
                if (_digest(folder), tables_signature(folder)) == (offered.digest, offered.tables):
                    continue
                self._offered = {**self._offered, name: self._load(name)}  # in one step: readers see old or new
                changed.append(name)
            except (PolicyError, RemoteError, LatencyError) as error:
                LOG.warning("policy %s keeps its version: %s", name, error)
        return changed

    def _may_look(self, name: str) -> bool:
        """Stores count, and charge, every look."""
        if not is_uri(self._configs[name].path):
            return True
        now = time.monotonic()
        if now < self._next_look.get(name, 0.0):
            return False
        self._next_look[name] = now + URI_SECONDS
        return True

    def _load(self, name: str) -> Offered:
        config = self._configs[name]
        folder = policy_folder(config.path)
        digest, tables = _digest(folder), tables_signature(folder)
        loaded = Offered(name, Policy.load(folder), digest, DTYPES[config.dtype].itemsize, tables)
        # What is worked out at the first answers of every size is worked out before anybody waits.
        smallest = float(loaded.policy.space.kept(loaded.policy.space.smallest))
        loaded.answer([Request(kept=float(kept)) for kept in np.linspace(1.0, max(smallest, 0.01), WARM_SIZES)])
        return loaded


def _describe_table(timed: Timed) -> LatencyDescription:
    table = timed.table
    return LatencyDescription(
        name=timed.name,
        workload=table.config.describe(),
        device=str(table.surroundings.get("device", "")),
        dense_ms=timed.dense / NANOSECONDS,
        fastest_ms=timed.floor / NANOSECONDS,
        error=table.error if math.isfinite(table.error) else None,
    )


def _digest(folder: Path) -> str:
    """What ``policy.json`` says of its content; it is written last and in one piece."""
    for path in (folder / "policy.json", folder / "policy" / "policy.json"):
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["digest"])[:16]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PolicyError(f"No readable policy at {folder}: {error}") from error
    raise PolicyError(f"No policy at {folder}.")
