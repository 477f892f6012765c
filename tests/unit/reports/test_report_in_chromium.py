# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTML report in a real Chromium: opened from a file, with no network at all."""

from __future__ import annotations

import http.server
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chromium_fixtures import Open, Report, browser, open_report, runs
from evidence_fixtures import stored
from html_fixtures import HOSTILE, NOW, hostile

from harness.reports.html.page import html_report
from harness.runs.result_files import StoredRun

__all__ = ["browser", "open_report", "runs"]

pytestmark = pytest.mark.chromium
# A name that is looked up, a colour as Chromium gives it, and its contrast (WCAG 2.2, 1.4.3).
_CONTRAST = """
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const back = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0] : [255, 255, 255];
};
const light = (colour) => {
  const [r, g, b] = colour.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
  if (!own || !element.checkVisibility() || element.closest("svg, script, option")) continue;
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(back(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) found.push(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
}
return found;
"""


def test_a_run_shows_everything_that_explains_it(
    open_report: Open, runs: tuple[StoredRun, ...]
) -> None:
    report = open_report(*runs)
    text = report.open_run(1)
    for words in (
        "nobody (stranded)",
        "110000000-14fffffff : region0",
        "a region where sr0 should belong to dax_hmem/system_ram",
        "- missing",
        "could not reserve region",
        "harness run partial_region --kernel debian:7.2",
        "rule 1: every byte",
        "boot",
        "2.500 s",
    ):
        assert words in text, words
    assert report.js("return document.querySelectorAll('#run .lines .wrong').length") == 5
    drawn = (
        "return [...document.querySelectorAll('#run svg .as-wrong')].map((one) => one.textContent)"
    )
    assert any("STRANDED" in one for one in report.js(drawn))
    assert report.js("return document.title").startswith("✗ FAIL partial_region")


def test_steps_guests_notes_and_known_issues_are_shown(open_report: Open, tmp_path: Path) -> None:
    def more(result: dict[str, Any]) -> None:
        held = {"step": "load dax_hmem", "outcome": "held", "owners": result["owners"]}
        finding = {"rule": "7", "text": "not as before", "phase": "step 2", "dmesg": ["a line"]}
        broke = {"step": "reload kmem", "outcome": "broke", "findings": [finding]}
        result["steps"] = [held, broke, {"step": "unbind", "outcome": "not_done"}]
        load = {"how": "in_order", "modules": ["kmem", "dax_hmem"]}
        guest = {"load": load, "verdict": "FAIL", "outcome": "sr0 nobody"}
        result["attempts"] = [{**guest, "start": "warm", "seconds": 1.25}]
        result.update(notes=["a note"], known_issue="why it is known", hint="do this")

    report = open_report(*stored(tmp_path, "partial_region-7.2", change=more))
    text = report.open_run()
    for words in (
        *("✓ held: load dax_hmem", "✗ broke: reload kmem", "not done: unbind"),
        *("not as before", "(step 2)", "a line", "kmem, dax_hmem", "warm", "1.3", "a note"),
        *("why it is known", "do this", "✗ known FAIL"),
    ):
        assert words in text, words


def test_boxes_are_drawn_where_their_ranges_are(
    open_report: Open, runs: tuple[StoredRun, ...]
) -> None:
    report = open_report(*runs)
    report.open_run(1)
    places = report.js("""
        const of = (kind) => [...document.querySelectorAll(`#run svg .as-${kind}`)]
          .map((one) => one.querySelector("rect").getBoundingClientRect())
          .map((one) => [one.left, one.right, one.top]);
        return {window: of("window"), region: of("region"), owner: of("owner")};""")
    (window,), (region,), (expected, observed) = places["window"], places["region"], places["owner"]
    assert window[:2] == pytest.approx(observed[:2], abs=1)
    assert region[1] == pytest.approx((window[0] + window[1]) / 2, abs=2)
    assert window[2] < expected[2] < observed[2] < region[2], "expected above, observed below"


def test_hostile_text_stays_text(open_report: Open, tmp_path: Path) -> None:
    dmesg = f"<4>[    1.000000] cxl {HOSTILE}\n"
    report = open_report(*stored(tmp_path, "partial_region-7.2", change=hostile, dmesg=dmesg))
    text = report.open_run()
    assert text.count(HOSTILE) > 5
    assert "owned" not in report.js("return document.title").replace(HOSTILE, "")
    assert report.js("return document.querySelectorAll('#run script, img').length") == 0


def test_search_and_filters(open_report: Open, runs: tuple[StoredRun, ...]) -> None:
    report = open_report(*runs)
    assert len(report.chips()) == 5

    def search(words: str, *expected: str) -> None:
        report.js(
            "const box = document.getElementById('query'); box.value = arguments[0];"
            "box.dispatchEvent(new Event('input', {bubbles: true}))",
            words,
        )
        said = "return document.getElementById('shown').textContent"
        report.until(f"{said} === '{len(expected)} of 5 runs shown'")
        assert report.chips() == list(expected)

    search("partial STRANDED", "✗ FAIL", "✗ FAIL")
    search("partial region 6.12", "✗ FAIL")
    search("", "✓ PASS", "✓ PASS", "✗ FAIL", "✗ FAIL", "? INCONCLUSIVE")
    search("guest was lost", "? INCONCLUSIVE")
    search("no such thing")
    assert report.js("return document.getElementById('nothing').checkVisibility()")
    search("exact_cover", "✓ PASS", "✓ PASS")
    search("BIOS-e820")  # not in the findings
    report.js("document.getElementById('deep').click()")
    report.until("return document.getElementById('shown').textContent[0] !== '0'")
    report.js("document.getElementById('clear').click()")
    report.until("return document.getElementById('shown').textContent[0] === '5'")
    report.js("document.querySelector('[name=outcome][value=FAIL]').click()")
    report.until("return document.getElementById('shown').textContent[0] === '3'")
    assert "✗ FAIL" not in report.chips()
    report.js(
        "const box = document.getElementById('kernel'); box.value = '0';"
        "box.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    report.until("return document.getElementById('shown').textContent[0] === '1'")
    assert report.chips() == ["✓ PASS"]


def test_by_keyboard_alone(open_report: Open, runs: tuple[StoredRun, ...]) -> None:
    from selenium.webdriver.common.keys import Keys

    report = open_report(*runs)
    report.until("return document.documentElement.dataset.open")
    focus = "document.activeElement"
    report.keys("/")
    assert report.js(f"return {focus}.id") == "query"
    for _ in range(40):
        report.keys(Keys.TAB)
        if report.js(f"return {focus}.matches('#grid a.chip')"):
            break
    assert report.js(f"return {focus}.closest('tr').textContent").strip().startswith("exact_cover")
    outline = report.js(f"return getComputedStyle({focus}).outlineStyle")
    assert outline == "solid", "one sees where the focus is"
    report.keys(Keys.ARROW_DOWN)
    assert report.js(f"return {focus}.textContent") == "✗ FAIL"
    report.keys(Keys.ARROW_RIGHT, Keys.ARROW_UP)
    assert report.js(f"return {focus}.closest('td').dataset.column") == "1"
    report.keys(Keys.ARROW_DOWN, Keys.ENTER)
    report.until("return document.querySelector('#run h1')")
    assert report.js(f"return {focus}.tagName") == "H1"
    first = report.js("return location.hash")
    report.keys("k")
    report.until(f"return location.hash !== '{first}'")
    report.keys("f")
    report.until("return /FAIL|INCONCLUSIVE/.test(document.querySelector('#run h1').textContent)")
    report.keys(Keys.ESCAPE)
    report.until("return !document.getElementById('overview').hidden")
    assert report.js(f"return {focus}.matches('#grid a.chip')"), "back where one was"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(
    open_report: Open, runs: tuple[StoredRun, ...], scheme: str
) -> None:
    report = open_report(*runs)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    report.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    back = report.js("return getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") is (scheme == "light")
    assert report.js(_CONTRAST) == []
    report.open_run(1)
    assert report.js(_CONTRAST) == []
    report.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("sight", ["achromatopsia", "deuteranopia", "protanopia", "tritanopia"])
def test_owners_and_verdicts_differ_without_colours(
    open_report: Open, runs: tuple[StoredRun, ...], sight: str
) -> None:
    """By words and patterns: these do not change with anybody's sight."""
    report = open_report(*runs)
    report.browser.execute_cdp_cmd("Emulation.setEmulatedVisionDeficiency", {"type": sight})
    assert {one.split()[0] for one in report.chips()} == {"✓", "✗", "?"}
    report.open_run(1)
    fills = report.js("""
        return [...document.querySelectorAll("#run svg .as-owner")].map((one) => [
          (one.querySelector(".as-hatch") || one).getAttribute("fill"),
          getComputedStyle(one.querySelector(".as-fill")).strokeDasharray,
          [...one.querySelectorAll("text")].map((text) => text.textContent).join(" ")]);""")
    report.browser.execute_cdp_cmd("Emulation.setEmulatedVisionDeficiency", {"type": "none"})
    (expected, observed) = fills
    assert expected[0] == "url(#as-dax_hmem)" and observed[0] == "url(#as-nobody)"
    assert expected[1] == "none" and observed[1] != "none"
    assert observed[2] == "✗ STRANDED nobody"


def test_links_back_and_forth(open_report: Open, runs: tuple[StoredRun, ...]) -> None:
    report = open_report(*runs)
    report.js("document.querySelector('#grid a.chip').click()")
    report.until("return document.querySelector('#run h1')")
    report.browser.back()
    report.until("return !document.getElementById('overview').hidden")
    report.browser.forward()
    report.until("return document.getElementById('overview').hidden")
    report.go("#run-0123456789")
    report.until("return /no such run/.test(document.getElementById('run').innerText)")


def test_it_works_from_a_web_server(browser: Any, tmp_path: Path) -> None:
    runs = stored(tmp_path, "partial_region-7.2")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "report.html").write_text(html_report(runs, "Nightly", NOW))
    asked: list[str] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, _format: str, *_arguments: object) -> None:
            asked.append(self.path)

    handler = partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}/report.html"
            text = Report(browser, runs, address).open_run()
        finally:
            server.shutdown()
            thread.join()
    assert "nobody (stranded)" in text
    assert set(asked) <= {"/report.html", "/favicon.ico"}, "nothing else is fetched"
