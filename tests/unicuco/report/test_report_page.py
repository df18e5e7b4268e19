"""The report of finished, running, torn and wrong folders."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.unicuco.report.made_up import SIZES, MadeUpRun
from unicuco.errors import EvaluationLogError, UniCuCoError
from unicuco.report import write_report
from unicuco.storage import write_json

PICTURES = ("front", "strategies", "accuracy", "progress")


class Page(HTMLParser):
    """Tags with their attributes, and the text of every table cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(finished_run, tmp_path_factory.mktemp("report"))


def test_writes_every_picture_beside_the_page(report: Path) -> None:
    assert report.name == "index.html"
    names = {path.name for path in report.parent.iterdir()}
    assert names == {"index.html", *(f"{name}.png" for name in PICTURES)}
    for name in PICTURES:
        assert (report.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_page_asks_nothing_of_any_network(report: Path) -> None:
    page = Page(report.read_text(encoding="utf-8"))
    sources = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert sources and all(value and value.startswith(("#", "data:image/png;base64,")) for value in sources)
    assert not page.attributes("script") and not page.attributes("link")
    assert "url(" not in report.read_text(encoding="utf-8") and "@import" not in report.read_text(encoding="utf-8")


def test_pictures_are_embedded_whole_with_alt_texts(report: Path) -> None:
    images = Page(report.read_text(encoding="utf-8")).attributes("img")
    assert len(images) == len(PICTURES)
    for name, image in zip(PICTURES, images, strict=True):
        data = base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,"))
        assert data == (report.parent / f"{name}.png").read_bytes()
        assert len(image["alt"] or "") > 40


def test_links_lead_to_parts_that_exist(report: Path) -> None:
    page = Page(report.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in page.attributes("a")} <= {f"#{name}" for name in ids}


def test_sizes_table_holds_exact_sizes_and_measurements(report: Path, finished_run: Path, made_up: MadeUpRun) -> None:
    rows = Page(report.read_text(encoding="utf-8")).rows
    heads = next(row for row in rows if "policy ÷ uniform" in row)
    start = rows.index(heads) + 1
    saved = json.loads((finished_run / "heldout.json").read_text())
    for row, point, bound in zip(rows[start : start + len(SIZES)], saved, SIZES, strict=True):
        cells = dict(zip(heads, row, strict=True))
        size = made_up.space.size(point["levels"])
        assert float(cells["kept"]) <= bound
        assert cells["parameters"] == f"{size.params:,}"
        assert cells["KL held out"] == f"{point['kl_heldout']:.3f}"
        assert cells["policy ÷ uniform"] == f"{point['kl_heldout'] / point['kl_uniform_heldout']:.3f}"


def test_header_says_what_was_measured_and_escapes_what_users_typed(report: Path) -> None:
    html = report.read_text(encoding="utf-8")
    for fact in ("smollm2", "sotu", "2,048", "bfloat16", "torch 2.13.0", "--run &#x27;runs/&lt;demo&gt;&#x27;"):
        assert fact in html, fact
    assert "runs/<demo>" not in html


def test_default_target_and_a_second_report(tmp_path: Path) -> None:
    run = MadeUpRun(blocks=4).write(tmp_path / "run", rounds=1)
    first = write_report(run)
    assert first == run / "report" / "index.html"
    (first.parent / "notes.txt").write_text("mine")
    (run / "policy" / "policy.json").unlink()
    assert write_report(run) == first
    assert (first.parent / "notes.txt").read_text() == "mine"
    assert not (first.parent / "strategies.png").exists(), "an old picture must not outlive what it shows"


def test_a_run_still_going_says_what_is_missing(tmp_path: Path) -> None:
    run = MadeUpRun(blocks=4).write(tmp_path / "run", finished=False, rounds=0)
    html = write_report(run).read_text(encoding="utf-8")
    assert "no held-out measurements yet" in html
    assert "saved no policy yet" in html
    assert "predicted nothing yet" in html
    assert len(Page(html).attributes("img")) == 2


def test_a_run_without_any_evaluation(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"model": "smollm2"})
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "no finished evaluation yet" in html and not Page(html).attributes("img")


def test_only_the_dense_model_measured(tmp_path: Path, made_up: MadeUpRun) -> None:
    from unicuco.evaluations import EvaluationLog

    write_json(tmp_path / "run.json", {})
    EvaluationLog(tmp_path / "evaluations").append(made_up.evaluations(0)[0])
    assert len(Page(write_report(tmp_path).read_text(encoding="utf-8")).attributes("img")) == 2


def test_a_torn_progress_line_is_left_out_and_said(tmp_path: Path) -> None:
    run = MadeUpRun(blocks=4).write(tmp_path / "run", rounds=1)
    with open(run / "progress.jsonl", "a", encoding="utf-8") as file:
        file.write('{"time": 3, "elap')
    assert "1 torn line of progress.jsonl left out." in write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["run.json", "heldout.json", "policy/policy.json"])
def test_a_broken_file_is_named_in_one_sentence(finished_run: Path, tmp_path: Path, name: str) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / name).write_text('{"model": ')
    with pytest.raises(EvaluationLogError, match=re.escape(f"{run / name} is broken")):
        write_report(run)
    assert not (run / "report").exists()


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_that_is_no_run(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "other"
    if make:
        folder.mkdir()
    with pytest.raises(UniCuCoError, match=r"is not a training run: it holds no run\.json"):
        write_report(folder)


def test_importing_the_report_loads_no_matplotlib() -> None:
    code = "import sys, unicuco.report; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
