"""The page in a real headless Chromium: sliders, pictures, a checkpoint from the button to its files, the keyboard."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.service.app import create_app
from cluster.service.config import ServiceConfig
from cluster.service.gateway import Gateway
from cluster.service.keys import KeyFile
from tests.cluster.service.conftest import Bridge, config_of, jobs_in_a_loop, listening, threaded
from tests.cluster.service.tiny_run import learn_latency
from tests.unicuco.tables import made_up_table
from unicuco.policy import Policy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt install chromium)")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def served(config: ServiceConfig) -> Iterator[str]:
    yield from serve(config)


def serve(config: ServiceConfig) -> Iterator[str]:
    """The service on a port of its own, without Ray; yields its address."""
    with (
        jobs_in_a_loop(config, threaded(config)) as (jobs, loop),
        listening(create_app(Gateway(config, Bridge(jobs, loop)))) as address,
    ):
        yield address


@pytest.fixture
def page(browser: Any, served: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    trouble: list[str] = []
    foreign: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((served, "data:", "blob:")) else foreign.append(r.url))
    page.goto(served)
    page.wait_for_selector("#answer dd")
    yield page
    page.close()
    assert not trouble and not foreign  # it works offline


def test_a_speed_can_be_asked_for_where_the_policy_has_a_table(browser: Any, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    made_up_table(Policy.load(run).space.geometry).save(run / "latency" / "box.json")
    page = browser.new_page()
    for address in serve(config_of(run, tmp_path)):
        page.goto(address)
        page.wait_for_selector("#answer dd")
        assert "ms" in promised(page) and "box: decode after 512" in page.inner_text("#table")
        page.check("input[value=max_latency_ms]")
        page.wait_for_function("() => document.querySelector('#amount-shown').textContent.endsWith(' ms')")
        page.wait_for_timeout(500)
        assert page.inner_text("#amount-name") == "Longest time, milliseconds" and "Impossible" not in promised(page)
        page.close()


def test_speed_is_weighed_where_the_policy_learned_it(browser: Any, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    learn_latency(run)
    page = browser.new_page()
    for address in serve(config_of(run, tmp_path)):
        page.goto(address)
        page.wait_for_selector("#answer dd")
        with page.expect_response("**/v1/answers") as reply:
            page.check("input[value=latency]")
        (request,) = json.loads(reply.value.request.post_data)["requests"]
        assert request == {"preference": {"latency": 0.5, "mean": 0.5}, "latency": "box"} and reply.value.status == 200
        assert page.inner_text("#amount-name") == "How much speed counts against quality" and page.is_hidden("#problem")
        page.close()


def test_without_a_table_no_speed_is_offered(page: Any) -> None:
    assert not any(page.is_visible(part) for part in ("#speed", "#balance", "#table-part"))
    assert "Latency" not in promised(page)


def promised(page: Any) -> str:
    return str(page.inner_text("#answer"))


def test_the_answer_follows_the_slider_and_the_keyboard(page: Any) -> None:
    assert "Predicted KL" in promised(page) and "tiny" in page.inner_text("#policy")
    assert page.locator("#front circle.mine").count() == 1 and page.locator("#front circle.measured").count() > 0
    assert page.locator("#blocks rect.mlp").count() == 3
    heights = "all => all.map(r => r.getAttribute('height'))"
    before, tall = promised(page), page.locator("#blocks rect.mlp").evaluate_all(heights)
    page.focus("#amount")
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("before => document.querySelector('#answer').innerText !== before", arg=before)
    page.wait_for_function("() => document.querySelector('#amount-shown').textContent === '0.58'")
    page.wait_for_timeout(500)
    after = page.locator("#blocks rect.mlp").evaluate_all(heights)
    assert sum(map(float, after)) < sum(map(float, tall))
    if os.environ.get("UNICUCO_PICTURES"):
        page.screenshot(path=str(Path(os.environ["UNICUCO_PICTURES"]) / "page.png"), full_page=True)


def test_quality_and_balance_are_asked_for_too(page: Any) -> None:
    for way, words in (("max_kl", "KL"), ("preference", "counts")):
        with page.expect_response("**/v1/answers") as reply:
            page.check(f"input[value={way}]")
        assert words in page.inner_text("#amount-name")
        (request,) = json.loads(reply.value.request.post_data)["requests"]
        assert list(request) == [way] and reply.value.status == 200
        answer = reply.value.json()["answers"][0]
        page.wait_for_function(
            "kl => document.querySelector('#answer').innerText.includes(kl)", arg=f"{answer['kl']:.3f}"
        )
        assert page.is_hidden("#problem")


def test_every_control_is_reached_by_tab(page: Any) -> None:
    page.evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {"policy", "key", "way", "amount", "layout", "build"} <= seen


def test_a_checkpoint_is_built_watched_and_fetched(page: Any) -> None:
    page.focus("#build")
    page.keyboard.press("Enter")
    page.wait_for_selector("#made li")
    page.wait_for_selector("#made li details", timeout=120_000)
    assert "done" in page.inner_text("#made li") and "measured on fresh text" in page.inner_text("#made li")
    page.click("#made li summary")
    with page.expect_download() as coming:
        page.click("#made a[download='config.json']")
    assert '"architectures"' in Path(coming.value.path()).read_text()
    page.reload()
    page.wait_for_selector("#made li details")  # what was built is still there


def test_a_wrong_key_is_said_and_a_right_one_helps(browser: Any, tiny_run: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("me")
    for address in serve(config_of(tiny_run, tmp_path, keys=file.path)):
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#problem:not([hidden])")
        assert "API key" in page.inner_text("#problem")
        page.fill("#key", key)
        page.keyboard.press("Tab")
        page.wait_for_selector("#answer dd")
        assert page.is_hidden("#problem")
        page.close()
