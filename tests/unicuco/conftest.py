"""One scratch cache, one tiny model per family and one text for all tests of ``unicuco``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.unicuco import tiny
from unicuco.evaluator import Evaluator
from unicuco.models.load import BaseModel, load_base_model
from unicuco.preparation import Preparation, prepare
from unicuco.space import SpaceConfig

USERS_CACHE = os.environ.get("UNICUCO_CACHE")
# The same examples on every run and no deadline: a busy machine is no failure.
settings.register_profile("unicuco", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("unicuco")


@pytest.fixture(scope="session", autouse=True)
def scratch_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing that a test converts or prepares lands in the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at these sizes more only wait for each other
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNICUCO_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny model of a family, written once."""
    root = tmp_path_factory.mktemp("models")

    def folder(family: str) -> Path:
        if not (root / family).is_dir():
            tiny.save_model(root / family, family)
        return root / family

    return folder


@pytest.fixture(scope="session")
def load(model_folder: Callable[[str], Path]) -> Callable[..., BaseModel]:
    """A freshly loaded, untouched base model of a family; pruners permute what they get, so nobody shares one."""
    return lambda family, dtype="float32": load_base_model(str(model_folder(family)), dtype)


@pytest.fixture(scope="session")
def prepared(load: Callable[..., BaseModel], text_file: Path) -> Callable[..., Preparation]:
    """The preparation of a family for a space, from the session's text."""

    def find(family: str, space: SpaceConfig | None = None) -> Preparation:
        base = load(family)
        return prepare(base, tiny.tokenizer(), tiny.preparation_config(text_file, space=space))

    return find


@pytest.fixture(scope="module")
def llama(model_folder: Callable[[str], Path], prepared: Callable[..., Preparation]) -> Evaluator:
    return Evaluator(str(model_folder("llama")), prepared("llama").folder, tiny.FLOAT32)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the sequences that went through the attention by blocks, one entry per call."""
    from unicuco.models.hetero import attention_unicuco

    lengths: list[int] = []
    decide = attention_unicuco._plain_causal

    def noting(module: Any, query: Any, *rest: Any) -> bool:
        found = decide(module, query, *rest)
        if found:
            lengths.append(query.shape[2])
        return found

    monkeypatch.setattr(attention_unicuco, "_plain_causal", noting)
    return lengths
