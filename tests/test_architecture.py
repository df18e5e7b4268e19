"""The house's one rule: imports go cluster -> actors -> unicuco, never back, and unicuco knows no Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "unicuco": {"ray", "actors", "cluster", "tests", "benchmarks"},
    "actors": {"cluster", "tests", "benchmarks"},
    "cluster": {"tests", "benchmarks"},
}


def imported(source: str) -> Iterator[str]:
    """Top-level packages that ``source`` imports anywhere, functions and ``if TYPE_CHECKING`` included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_never_go_back(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported(path.read_text(encoding="utf-8"))
        if name in FORBIDDEN[package]
    ]
    assert not wrong


def test_the_rule_sees_hidden_imports() -> None:
    assert set(imported("def f():\n    import ray.util\n    from cluster.train import x\n")) == {"ray", "cluster"}


def test_the_command_lines_import_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'ray', 'matplotlib', 'botorch', 'gpytorch', 'datasets', 'pyarrow'}"
    code = f"import sys, cluster.train; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
