"""The benchmark of families: it can fail, and the table in the docs is of the families in the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import families
from benchmarks.tiny_families import CONFIGS
from unicuco.models.hetero import FAMILIES

DOCS = Path(__file__).resolve().parents[2] / "docs" / "families.md"


def rows(text: str) -> dict[str, list[str]]:
    """Cells of the table between the markers, by family."""
    lines = text.split(families.BEGIN)[1].split(families.END)[0].strip().splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_the_docs_have_every_family_of_the_code_and_none_failed() -> None:
    found = rows(DOCS.read_text(encoding="utf-8"))
    assert set(FAMILIES) == set(CONFIGS) == set(families.ABOUT)
    assert list(found) == [*CONFIGS, *families.REFUSED]
    assert all(found[family][2:5] == ["ok"] * 3 for family in CONFIGS)
    assert all(found[family][2:5] == ["refused"] * 3 for family in families.REFUSED)


def test_a_family_passes_and_lands_in_the_table(tmp_path: Path) -> None:
    found = families.check_family("olmo2", 5)
    assert found.strategies == 5 and not found.failed and 0 < max(found.differences.values()) < families.TOLERANCE
    docs = tmp_path / "families.md"
    docs.write_text(f"Before\n{families.BEGIN}\nold\n{families.END}\nAfter\n", encoding="utf-8")
    families.write_table(docs, families.table([found]))
    text = docs.read_text(encoding="utf-8")
    assert text.startswith("Before\n") and text.endswith("\nAfter\n") and "old" not in text
    assert rows(text)["olmo2"][2:5] == ["ok"] * 3


def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's matrix is a little off by the time the padded layout is written."""
    right = families.write_checkpoint

    def wrong(base: Any, tokenizer: Any, pruner: Any, shape: Any, target: Path, layout: str, **options: Any) -> Any:
        if layout == "padded":
            base.model.lm_head.weight.data.mul_(1.01)
        return right(base, tokenizer, pruner, shape, target, layout, verify=False)

    monkeypatch.setattr(families, "write_checkpoint", wrong)
    found = families.check_family("olmo2", 5)
    assert [found.state(what) for what in ("hetero", "padded", "memory")] == ["ok", "failed", "ok"]
    assert any("logits differ" in reason for reason in found.failed)
    nothing = families.Found("llama")
    families._compare(nothing, "memory", None, torch.tensor([torch.nan]), torch.zeros(1))  # type: ignore[arg-type]
    assert nothing.failed


@pytest.mark.parametrize("family", families.REFUSED)
def test_mixtures_of_experts_are_refused_in_one_sentence(family: str) -> None:
    sentence = families.refusal(family)
    assert sentence.startswith(f"'{family}' is a mixture of experts") and sentence.count(". ") == 0
    with pytest.raises(AssertionError, match="not refused"):
        families.refusal("llama")
