"""The command line of a sweep: help, and one sentence for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.tune import main

ROOT = Path(__file__).resolve().parents[2]


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tune", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_help_shows_examples_and_imports_nothing_heavy() -> None:
    code = "import sys, cluster.tune; print(sorted({'torch', 'ray', 'botorch', 'pyarrow'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
    alone = subprocess.run(
        [sys.executable, "-m", "cluster.tune", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "python -m cluster.tune runs/first" in alone.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["RUN"], "holds no evaluations"),
        (["RUN", "--vary", "stratnet.width"], "write NAME=VALUE,VALUE or NAME=LOW..HIGH"),
        (["RUN", "--sweep", "/nowhere.json"], "/nowhere.json cannot be read as JSON"),
        (["RUN", "--settings", "1"], "settings: Input should be greater than or equal to 2"),
        (["RUN", "--seeds", "1"], "seeds: Input should be greater than or equal to 3"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
) -> None:
    code = run_main(monkeypatch, *[str(tmp_path / "run") if a == "RUN" else a for a in arguments])
    error = capsys.readouterr().err
    assert code == 2
    assert sentence in error and error.startswith("Error: ") and "Traceback" not in error
    assert not (tmp_path / "run").exists()
