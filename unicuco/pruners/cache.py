"""Tensors that pruners work out once and keep while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

CACHE_BYTES = 2 << 30


class TensorCache:
    """What was used last stays, up to so many bytes; one tensor stays however large it is."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most, self._held = most_bytes, 0
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        return self._held

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor under ``key``, from ``make`` where it is not there (any more)."""
        if key in self._tensors:
            self._tensors.move_to_end(key)
            return self._tensors[key]
        made = self._tensors[key] = make()
        self._held += made.nbytes
        while self._held > self._most and len(self._tensors) > 1:
            _, old = self._tensors.popitem(last=False)
            self._held -= old.nbytes
        return made
