"""A filesystem of real files in which writes fail half-way: ``faulty:///folder``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem


class FaultyFileSystem(LocalFileSystem):
    """Not ``LocalFileSystem`` itself, so that files are written in place, as on stores without a rename."""

    protocol = ("faulty",)
    failing: ClassVar[str] = ""
    """Writes to paths with this in them fail, after half of the bytes; '' for none."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:  # type: ignore[override]
        return str(LocalFileSystem._strip_protocol(str(path).removeprefix("faulty://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if self.failing and self.failing in path:
            super().pipe_file(path, value[: len(value) // 2])
            raise ConnectionError("the network is gone")
        super().pipe_file(path, value)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


@contextmanager
def writes_fail(where: str) -> Iterator[None]:
    """Within the block, writes to paths that contain ``where`` fail half-way."""
    FaultyFileSystem.failing = where
    try:
        yield
    finally:
        FaultyFileSystem.failing = ""
