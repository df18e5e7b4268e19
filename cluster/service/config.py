"""What a service is told: policies, where checkpoints go, who may ask and how much."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from unicuco.errors import UniCuCoError
from unicuco.remote import is_uri
from unicuco.request import explain_validation
from unicuco.storage import cache_dir
from unicuco.wire import NAME

LOOPBACK = ("127.0.0.1", "::1", "localhost")

PolicyName = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class ServiceError(UniCuCoError):
    """The service is told something that does not work, before it starts."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PolicyConfig(_Section):
    """One policy, and how checkpoints of it are built."""

    path: Path | str
    """A policy folder, the run folder that holds one, or the URI of a run; measurements go back to a run's log."""
    model: str | None = None
    """Where the base model lies, when not where it was trained."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1)
    """Torch threads of a pruning replica on a CPU."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs of a pruning replica: a share of one, or several that the base model is spread over."""
    num_cpus: float = Field(default=1, ge=0)
    replicas: int = Field(default=1, ge=1, le=64)
    """Pruning replicas: base models pinned for this policy."""

    @field_validator("path")
    @classmethod
    def _folder_or_uri(cls, path: Path | str) -> Path | str:
        return str(path) if is_uri(path) else Path(path)

    @model_validator(mode="after")
    def _gpu_has_a_share(self) -> PolicyConfig:
        if self.device.startswith("cuda") and not self.num_gpus:
            raise ValueError("device 'cuda' needs num_gpus above 0")
        if self.num_gpus > 1 and not self.num_gpus.is_integer():
            raise ValueError("num_gpus is a share of one GPU (up to 1) or several whole ones (2, 3, ...)")
        return self


class LimitsConfig(_Section):
    """What one caller, and all together, may ask for."""

    requests_per_call: int = Field(default=256, ge=1, le=4096)
    body_bytes: int = Field(default=1 << 20, ge=1024)
    calls_per_second: float = Field(default=200, gt=0)
    """Per key and gateway replica, with bursts of twice as many."""
    calls_at_once: int = Field(default=64, ge=1)
    """Calls that a gateway replica works on; further ones are told to come back (503)."""
    active_checkpoints: int = Field(default=8, ge=1)
    """Queued or being built, per key."""
    retention_days: float = Field(default=30, gt=0)
    """Finished checkpoints are removed so long after."""
    timeout_seconds: float = Field(default=30, gt=0)
    """Of one call for answers."""


class ServiceConfig(_Section):
    """A whole service."""

    policies: dict[PolicyName, PolicyConfig] = Field(min_length=1)
    storage: Path = Field(default_factory=lambda: cache_dir() / "service" / "checkpoints")
    """Folder of finished checkpoints; gateway and pruning replicas all see it."""
    database: str = Field(default_factory=lambda: f"sqlite:///{cache_dir() / 'service' / 'jobs.sqlite'}")
    """SQLAlchemy URL of the table of checkpoints: SQLite, or ``postgresql+psycopg://``."""
    keys: Path | None = None
    """File of hashed API keys (``unicuco keys add``); without one everybody who reaches the port may ask."""
    limits: LimitsConfig = LimitsConfig()
    watch_seconds: float = Field(default=2.0, gt=0)
    """How often a gateway looks whether a policy's folder holds a new version; at a URI at most every 15 seconds."""
    gateways: int | tuple[int, int] = 1
    """Gateway replicas, or fewest and most of them (scaled by load)."""

    @field_validator("policies")
    @classmethod
    def _one_folder_each(cls, policies: dict[str, PolicyConfig]) -> dict[str, PolicyConfig]:
        for name, policy in policies.items():
            if isinstance(policy.path, str):  # a URI is looked up when the service starts
                continue
            if not any((policy.path / part / "policy.json").is_file() for part in ("", "policy")):
                raise ValueError(f"{name}: no policy at {policy.path}")
        return policies

    @field_validator("gateways")
    @classmethod
    def _counts(cls, gateways: int | tuple[int, int]) -> int | tuple[int, int]:
        low, high = gateways if isinstance(gateways, tuple) else (gateways, gateways)
        if not 1 <= low <= high <= 64:
            raise ValueError("1 to 64 gateways, the fewest first")
        return gateways

    @field_validator("database")
    @classmethod
    def _known_database(cls, url: str) -> str:
        if not url.startswith(("sqlite:///", "postgresql")):
            raise ValueError("the database is sqlite:///FILE or a postgresql URL")
        if url.startswith("postgresql"):
            import sqlalchemy as sa

            try:
                sa.make_url(url).get_dialect().import_dbapi()
            except ImportError as error:
                raise ValueError(f"no driver for it here ({error}): pip install 'unicuco[postgres]'") from error
            except sa.exc.ArgumentError as error:
                raise ValueError("it cannot be read as a database URL") from error  # it may hold a password
        return url


def make_config(values: dict[str, Any]) -> ServiceConfig:
    """A checked configuration.

    Raises:
        ServiceError: naming each wrong field and what is allowed.
    """
    try:
        return ServiceConfig.model_validate(values)
    except ValidationError as error:
        raise ServiceError(f"The service's configuration: {explain_validation(error)}.") from error


def refuse_open(host: str, keys: Path | None) -> None:
    """Listening beyond this machine needs keys.

    Raises:
        ServiceError: there are none.
    """
    if host not in LOOPBACK and keys is None:
        raise ServiceError(
            f"Listening on {host} without API keys would let everybody build checkpoints here: make some by "
            "'unicuco keys add NAME --file keys.json' and give --keys keys.json, or listen on 127.0.0.1."
        )
