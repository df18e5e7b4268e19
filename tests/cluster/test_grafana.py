"""The Grafana dashboard draws what the code exports, and all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from actors.metrics import GAUGES

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "cluster" / "grafana" / "unicuco.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
DRAWN = {name for text in EXPRESSIONS for name in re.findall(r"ray_(unicuco_\w+)", text)}


def exported() -> set[str]:
    """Names of metrics in the code; a histogram's series end in ``_bucket``."""
    sources = [path.read_text(encoding="utf-8") for path in (*ROOT.glob("actors/*.py"), *ROOT.glob("cluster/**/*.py"))]
    found = {(kind, name) for text in sources for kind, name in re.findall(r'(\w+)\(\s*f?"(unicuco_[\w{}]+)"', text)}
    names = {f"{name}_bucket" if kind == "Histogram" else name for kind, name in found}
    return names - {"unicuco_run_{name}"} | {f"unicuco_run_{name}" for name in GAUGES}


def test_every_drawn_metric_is_exported_and_every_exported_one_drawn() -> None:
    assert exported() == DRAWN


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_panels_do_not_overlap_and_say_where_they_get_it(panel: dict) -> None:
    place = panel["gridPos"]
    others = [other["gridPos"] for other in DASHBOARD["panels"] if other is not panel]
    assert place["x"] + place["w"] <= 24 and all(other != place for other in others)
    assert panel["datasource"]["uid"] == "${datasource}" and panel["targets"]
    for target in panel["targets"]:
        assert target["expr"].count("(") == target["expr"].count(")") and target["legendFormat"]


def test_runs_are_chosen_by_their_label() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert "ray_unicuco_run_spent, run" in variables["run"]["definition"]
    assert all('run=~"$run"' in text for text in EXPRESSIONS if "unicuco_run_" in text)
