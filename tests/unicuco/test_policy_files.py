"""Policies on disk: they come back as they were, and what is broken is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unicuco.known_policy import MODEL, SOURCE, folder, mixed, policy, within_bounds
from tests.unicuco.synthetic import make_learner, search
from unicuco.errors import PolicyError
from unicuco.policy import Policy

__all__ = ["folder", "policy"]  # fixtures


def test_answers_survive_the_disk(policy: Policy, folder: Path) -> None:
    requests = mixed()
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".parquet", ".safetensors", ".safetensors"]
    for place in (folder, folder.parent):  # the run's folder will do
        again = Policy.load(place)
        assert again.parts.provenance == SOURCE and again.parts.version == policy.parts.version
        for one, two in zip(policy.answer(requests), again.answer(requests), strict=True):
            assert (one.id, one.levels, one.feasible, one.origin) == (two.id, two.levels, two.feasible, two.origin)
            assert (one.kl, one.kl_low, one.kl_high) == pytest.approx((two.kl, two.kl_low, two.kl_high), rel=1e-6)


def test_the_plain_form_survives_the_disk(tmp_path: Path) -> None:
    from unicuco.surrogate import SurrogateConfig

    learner = make_learner(tmp_path / "log", MODEL, evaluations=16, surrogate=SurrogateConfig(mean="plain"))
    before = search(learner, MODEL).policy()
    before.save(tmp_path / "policy")
    after = Policy.load(tmp_path / "policy")
    for one, two in zip(before.answer(mixed()), after.answer(mixed()), strict=True):
        assert one.levels == two.levels and one.kl == pytest.approx(two.kl, rel=1e-6)
        assert within_bounds(one)


def test_saving_replaces_and_a_full_disk_keeps_the_old(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unicuco.errors import DiskFullError

    policy.save(tmp_path / "policy")
    policy.save(tmp_path / "policy")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("unicuco.policy_parts.save_file", full)
        with pytest.raises(DiskFullError):
            policy.save(tmp_path / "policy")
    assert Policy.load(tmp_path / "policy").parts.version == policy.parts.version
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize(
    "name", ["policy.json", "stratnet.safetensors", "surrogate.safetensors", "evaluations.parquet"]
)
@pytest.mark.parametrize("how", ["missing", "truncated", "garbage"])
def test_a_broken_folder_is_refused_in_one_sentence(name: str, how: str, folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "policy")
    file = broken / name
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if how == "truncated" else b"\x07" * 64)
    with pytest.raises(PolicyError, match="policy at") as caught:
        Policy.load(broken)
    assert str(broken) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "null", "3", "{}", '{"format": 99}'])
def test_a_strange_description_is_refused(content: str, folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "policy")
    (broken / "policy.json").write_text(content)
    with pytest.raises(PolicyError, match="policy at"):
        Policy.load(broken)


def test_parts_of_two_policies_do_not_mix(folder: Path, tmp_path: Path) -> None:
    """A network or a space of another size is noticed when the policy is read, not when it answers."""
    broken = shutil.copytree(folder, tmp_path / "policy")
    about = json.loads((broken / "policy.json").read_text())
    about["space"]["config"]["sites"] = "block"
    (broken / "policy.json").write_text(json.dumps(about))
    with pytest.raises(PolicyError, match="policy at"):
        Policy.load(broken)


def test_no_policy_at_all_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="No readable policy"):
        Policy.load(tmp_path)
