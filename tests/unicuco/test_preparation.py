"""Preparations: named by content, built once, whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unicuco import tiny
from unicuco import preparation as module
from unicuco.calibration import draw_windows
from unicuco.errors import CalibrationError, DiskFullError, PreparationError
from unicuco.models.load import BaseModel, load_base_model
from unicuco.preparation import Preparation, PreparationConfig, prepare
from unicuco.space import SpaceConfig
from unicuco.statistics import collect_statistics

Load = Callable[..., BaseModel]


def build(load: Load, text_file: Path, root: Path, family: str = "llama", **changes: Any) -> Preparation:
    config = tiny.preparation_config(text_file, **changes)
    return prepare(load(family), tiny.tokenizer(), config, root=root)


def left_in(root: Path) -> list[str]:
    """What lies in ``root`` besides locks."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock") if root.exists() else []


def test_the_same_inputs_have_the_same_name_and_others_another(load: Load, text_file: Path, tmp_path: Path) -> None:
    first = build(load, text_file, tmp_path)
    assert build(load, text_file, tmp_path).folder == first.folder
    copied = shutil.copytree(load("llama").source.folder, tmp_path / "renamed")
    renamed = prepare(
        load_base_model(str(copied)), tiny.tokenizer(), tiny.preparation_config(text_file), root=tmp_path / "p"
    )
    assert renamed.digest == first.digest, "the name of the model's folder is not its content"
    elsewhere = tmp_path / "other-name.txt"
    shutil.copy(text_file, elsewhere)
    others = [
        build(load, text_file, tmp_path, seed=1),
        build(load, text_file, tmp_path, search_windows=5),
        build(load, text_file, tmp_path, family="qwen3"),
        build(load, text_file, tmp_path, space=SpaceConfig(pruner="depth")),
        prepare(
            load("llama"),
            tiny.tokenizer(),
            tiny.preparation_config(text_file).model_copy(update={"ridge": 0.1}),
            root=tmp_path,
        ),
    ]
    names = {preparation.digest for preparation in [first, *others]}
    assert len(names) == 6 and len({p.folder for p in [first, *others]}) == 6


def test_what_windows_start_with_is_recorded(load: Load, text_file: Path, tmp_path: Path) -> None:
    config = tiny.preparation_config(text_file)
    for bos, start in ((False, []), (True, [1])):
        found = prepare(load("llama"), tiny.tokenizer(bos), config, root=tmp_path / str(bos))
        assert json.loads((found.folder / "preparation.json").read_text())["starts_with"] == start
        windows = (found.calibration_windows, found.search_windows, found.margin_windows(0))
        assert all((w.tokens[:, 0] == 1).all() == bos for w in windows)


def test_it_is_built_once(load: Load, text_file: Path, tmp_path: Path) -> None:
    first = build(load, text_file, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    steps: list[str] = []
    config = tiny.preparation_config(text_file)
    prepare(load("llama"), tiny.tokenizer(), config, lambda stage, *_: steps.append(stage), root=tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before and not steps


def test_two_at_once_build_one(load: Load, text_file: Path, tmp_path: Path) -> None:
    config, builders, found = tiny.preparation_config(text_file), set(), []

    def work(base: BaseModel) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            builders.add(threading.get_ident())

        found.append(prepare(base, tiny.tokenizer(), config, progress, root=tmp_path))

    threads = [threading.Thread(target=work, args=(base,)) for base in (load("llama"), load("llama"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builders) == 1 and len(found) == 2 and found[0].folder == found[1].folder


def test_progress_counts_up_to_its_total(load: Load, text_file: Path, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    config = tiny.preparation_config(text_file)
    prepare(load("llama"), tiny.tokenizer(), config, lambda s, d, t: seen.setdefault(s, []).append((d, t)), tmp_path)
    assert len(seen) == 3
    for counts in seen.values():
        assert counts == [(i, len(counts)) for i in range(1, len(counts) + 1)]


@pytest.mark.parametrize("space", [SpaceConfig(neuron_multiple=32), SpaceConfig(sites="block", neuron_multiple=32)])
def test_what_lies_in_it(space: SpaceConfig, load: Load, text_file: Path, tmp_path: Path) -> None:
    found = Preparation.open(build(load, text_file, tmp_path, space=space).folder)
    damage, geometry = found.damage, load("llama").geometry
    assert found.geometry == geometry and found.model_digest == load("llama").source.digest
    assert damage.shape == found.space.levels.shape
    assert (damage[:, 0] == 0).all() and (np.diff(damage, axis=1) >= 0).all() and (damage[:, -1] > 0).all()
    for b in range(len(geometry.blocks)):
        assert sorted(found.orders[f"attention.{b}"].tolist()) == list(range(4))
        assert sorted(found.orders[f"mlp.{b}"].tolist()) == list(range(256))
        factor = found.factors[f"mlp.{b}"]
        assert torch.equal(factor, factor.tril()) and (factor.diagonal() > 0).all()
    assert found.search_windows.tokens.shape == (4, 32)


def test_margin_windows_come_in_groups_of_every_domain(load: Load, text_file: Path, tmp_path: Path) -> None:
    other = tiny.write_text(tmp_path / "other.txt", seed=9)
    config = tiny.preparation_config(text_file, other, margin_windows=10)  # two groups of four, two windows over
    found = prepare(load("llama"), tiny.tokenizer(), config, root=tmp_path)
    assert found.margin_groups == 2
    rows: set[bytes] = {row.tobytes() for row in found.search_windows.tokens}
    for group in range(2):
        windows = found.margin_windows(group)
        assert windows.tokens.shape == (8, 32) and windows.domain.tolist() == [0] * 4 + [1] * 4
        new = {row.tobytes() for row in windows.tokens}
        assert len(new) == 8 and not new & rows, "a window serves twice"
        rows |= new


def test_damage_is_half_the_trace_of_metric_and_residual(load: Load, text_file: Path, tmp_path: Path) -> None:
    """Of every level, from the residual of an explicit least-squares solution."""
    found, base = build(load, text_file, tmp_path), load("llama")
    windows = draw_windows(found.config.calibration, tiny.tokenizer(), "calibration")
    statistics = collect_statistics(base.model, windows, found.config.gradient_windows, lambda *_: None)
    for i, site in enumerate(found.space.sites):
        block = base.model.model.layers[site.block]
        linear = block.self_attn.o_proj if site.kind == "attention" else block.mlp.down_proj
        weight, metric = linear.weight.double(), statistics[site.block].metrics[site.kind].double()
        gram = statistics[site.block].grams[site.kind].double()
        gram = gram + found.config.ridge * gram.diagonal().median() * torch.eye(len(gram))
        order = found.orders[f"{site.kind}.{site.block}"]
        unit = weight.shape[1] // len(order)
        for j, level in enumerate(site.levels):
            units = order[: level.groups if site.kind == "attention" else level.neurons]
            stays = (units[:, None] * unit + torch.arange(unit)).flatten()
            gap = weight.clone()
            gap[:, stays] -= weight @ gram[:, stays] @ torch.linalg.inv(gram[stays][:, stays])
            expected = float((metric @ gap @ gram @ gap.T).trace()) / 2
            assert found.damage[i, j] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_depth_needs_no_factors(load: Load, text_file: Path, tmp_path: Path) -> None:
    found = build(load, text_file, tmp_path, space=SpaceConfig(pruner="depth"))
    assert found.factors == {} and found.damage.shape == (6, 2)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "null", '{"format": 1}', '{"format": 99}', '{"format": 1, "model": 3}']
)
def test_a_broken_description_is_refused(content: str, load: Load, text_file: Path, tmp_path: Path) -> None:
    folder = build(load, text_file, tmp_path).folder
    (folder / "preparation.json").write_text(content)
    with pytest.raises(PreparationError, match=r"preparation at"):
        Preparation.open(folder)
    with pytest.raises(PreparationError):
        build(load, text_file, tmp_path)


def test_a_description_with_an_impossible_setting_is_refused(load: Load, text_file: Path, tmp_path: Path) -> None:
    file = build(load, text_file, tmp_path).folder / "preparation.json"
    about = json.loads(file.read_text())
    about["config"]["ridge"] = -1
    file.write_text(json.dumps(about))
    with pytest.raises(PreparationError, match="ridge"):
        Preparation.open(file.parent)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("order", lambda p: p.orders),
        ("factors", lambda p: p.factors),
        ("damage", lambda p: p.damage),
        ("windows", lambda p: p.search_windows),
    ],
)
@pytest.mark.parametrize("how", ["truncated", "missing", "garbage"])
def test_a_broken_part_names_its_file(
    name: str, read: Callable[[Preparation], Any], how: str, load: Load, text_file: Path, tmp_path: Path
) -> None:
    found = build(load, text_file, tmp_path)
    file = found.folder / f"{name}.safetensors"
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if how == "truncated" else b"\x00" * 64)
    with pytest.raises(PreparationError, match=f"{name}.safetensors"):
        read(Preparation.open(found.folder))


def test_no_preparation_at_all_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="No readable preparation"):
        Preparation.open(tmp_path / "nowhere")


@pytest.mark.parametrize("stage", ["reading activations", "reading gradients", "ordering units"])
def test_an_interruption_leaves_nothing_half_written(stage: str, load: Load, text_file: Path, tmp_path: Path) -> None:
    def interrupt(now: str, done: int, total: int) -> None:
        if now == stage and done == 2:
            raise KeyboardInterrupt

    base = load("llama")
    with pytest.raises(KeyboardInterrupt):
        prepare(base, tiny.tokenizer(), tiny.preparation_config(text_file), interrupt, tmp_path)
    assert left_in(tmp_path) == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.model.modules())
    again = prepare(base, tiny.tokenizer(), tiny.preparation_config(text_file), root=tmp_path)
    assert left_in(tmp_path) == [again.folder.name]


def test_a_full_disk_leaves_nothing_half_written(
    load: Load, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def full(tensors: Any, path: Path) -> None:
        if written:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        path.write_bytes(b"whole")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(DiskFullError, match="disk is full"):
        build(load, text_file, tmp_path)
    assert written and left_in(tmp_path) == []


def test_a_folder_that_lost_its_description_is_built_anew(load: Load, text_file: Path, tmp_path: Path) -> None:
    found = build(load, text_file, tmp_path)
    (found.folder / "preparation.json").unlink()
    assert build(load, text_file, tmp_path).damage.shape == found.space.levels.shape


def test_a_text_too_short_fails_before_anything_is_computed(load: Load, tmp_path: Path) -> None:
    short = tiny.write_text(tmp_path / "short.txt", words=100)
    steps: list[str] = []
    with pytest.raises(CalibrationError, match="too short"):
        prepare(
            load("llama"), tiny.tokenizer(), tiny.preparation_config(short), lambda s, *_: steps.append(s), tmp_path
        )
    assert not steps and [name for name in left_in(tmp_path) if name != "short.txt"] == []


@pytest.mark.parametrize("setting", [{"ridge": 0}, {"elimination_step": 0}, {"gradient_windows": 0}, {"typo": 1}])
def test_impossible_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        PreparationConfig.model_validate(setting)
