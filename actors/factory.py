"""Naming a class instead of shipping it: what an actor is to build, as an import path and arguments.

An actor that received the object itself would get a pickle of model weights, and one that received the class would
import torch before its threads are set. A path is neither: the actor imports it when it is ready for it, and tests put
a small evaluator of their own in the same place.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Factory:
    """Something callable, by name, with its keyword arguments.

    Attributes:
        path: ``package.module:name``, importable on every node.
        arguments: small picklable values; no tensors, no models.
    """

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """Imports the callable and calls it."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)(**self.arguments)
