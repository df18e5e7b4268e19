"""What strategies of a base model are compared with: the base model itself, or what it was trained to follow.

A super-network (unicuco/supernet) is a base model like any other, but quality is KL from the model that it was trained
from, so that training counts as what it costs and what it wins back. Embeddings and head of both are the same, so last
hidden states are all that is needed of the teacher. They are computed once per machine and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unicuco.checkpoint.card import PROVENANCE
from unicuco.errors import ModelError, SupernetError
from unicuco.models.hetero.attention_unicuco import use_fast_attention
from unicuco.models.load import load_model
from unicuco.models.source import ModelSource, find_model
from unicuco.storage import atomic_file, cache_dir, content_hash


def find_teacher(source: ModelSource) -> ModelSource | None:
    """The teacher of ``source`` where that is a super-network; ``None``: it is its own.

    Raises:
        SupernetError: the teacher is not there, or has other content by now.
    """
    try:
        record = json.loads((source.folder / PROVENANCE).read_text(encoding="utf-8"))
        named = (record.get("supernet") or {}).get("teacher")
    except (OSError, ValueError, AttributeError):
        return None
    if named is None:
        return None
    try:
        found = find_model(str(named["spec"]))
        digest = str(named["digest"])
    except (KeyError, TypeError, ModelError) as error:
        raise SupernetError(
            f"{source.spec} is a super-network, and the base model that it was trained from is not there: {error}"
        ) from error
    if found.digest != digest:
        raise SupernetError(
            f"{source.spec} is a super-network trained from {found.spec} (content {digest[:12]}), "
            f"which has other content now ({found.digest[:12]})."
        )
    return found


def reference_of(source: ModelSource) -> ModelSource:
    """What models pruned from ``source`` are compared with: its teacher, or itself.

    Raises:
        SupernetError: as ``find_teacher``.
    """
    return find_teacher(source) or source


def teacher_hidden(
    teacher: ModelSource, head: Tensor, tokens: Tensor, dtype: str, rows: int, trust_remote_code: bool = False
) -> Tensor:
    """Last hidden states of ``teacher`` (``tokens x hidden``), on the device of ``tokens``.

    Args:
        head: the matrix that turns the hidden states of the model under evaluation into logits (``vocab x hidden``).
        tokens: ``num_windows x window_length``.
        rows: windows that are read at once.

    Raises:
        SupernetError: the teacher has another head.
    """
    from filelock import FileLock

    content = hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()
    kind = "cpu" if tokens.device.type == "cpu" else "gpu"
    key = content_hash([1, teacher.digest, dtype, kind, list(tokens.shape), content])
    path = cache_dir() / "teachers" / f"{key[:32]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        if not path.is_file():
            found = _compute(teacher, head, tokens, dtype, rows, trust_remote_code)
            with atomic_file(path) as scratch:
                save_file({"hidden": found.cpu().contiguous()}, scratch)
    return load_file(path)["hidden"].to(tokens.device)


@torch.inference_mode()
def _compute(
    teacher: ModelSource, head: Tensor, tokens: Tensor, dtype: str, rows: int, trust_remote_code: bool
) -> Tensor:
    model: Any = load_model(teacher, dtype, str(tokens.device), trust_remote_code)
    own = model.get_output_embeddings().weight
    if own.shape != head.shape or not torch.equal(own, head.to(own.device)):
        raise SupernetError(f"{teacher.spec} has another head than the super-network that was trained from it.")
    use_fast_attention(model)
    decoder = model.get_decoder()
    return torch.cat(
        [decoder(input_ids=batch, use_cache=False).last_hidden_state for batch in tokens.split(rows)]
    ).flatten(0, 1)
