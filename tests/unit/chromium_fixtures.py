# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the HTML report in a real Chromium share: a browser, and a report in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from evidence_fixtures import stored, unjudged
from html_fixtures import NOW

from harness.contract.result import Verdict
from harness.reports.html.page import html_report, run_names
from harness.runs.result_files import StoredRun

SECONDS = 60.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that can look up no name."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        missing = "Chromium is missing; on Debian: apt-get install chromium chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--window-size=1400,900", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_page_load_timeout(SECONDS)
    yield browser
    browser.quit()


class Report:
    """A report that is open in a browser."""

    def __init__(self, browser: Any, runs: tuple[StoredRun, ...], address: str) -> None:
        self.browser = browser
        self.names = run_names(runs)
        self.address = address
        self.browser.get("about:blank")
        self.go()

    def go(self, fragment: str = "") -> None:
        self.browser.get(f"{self.address}{fragment}")

    def js(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def until(self, script: str) -> Any:
        """Wait until a script returns something."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, SECONDS, 0.05).until(lambda _: self.js(script), script)

    def find(self, selector: str) -> list[Any]:
        """The elements of a CSS selector."""
        found: list[Any] = self.browser.find_elements("css selector", selector)
        return found

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def chips(self) -> list[str]:
        """The texts of the chips that can be seen in the grid."""
        found: list[str] = self.js(
            "return [...document.querySelectorAll('#grid a.chip')]"
            ".filter((one) => one.checkVisibility()).map((one) => one.textContent)"
        )
        return found

    def open_run(self, number: int = 0) -> str:
        """Open a run, and return all text of its view."""
        self.go(f"#run-{self.names[number]}")
        self.until("return document.querySelector('#run h1')")
        return str(self.js("return document.querySelector('#run').innerText"))

    def errors(self) -> list[str]:
        return [one["message"] for one in self.browser.get_log("browser")]


Open = Callable[..., Report]


@pytest.fixture
def open_report(browser: Any, tmp_path: Path) -> Iterator[Open]:
    opened: list[Report] = []

    def open_it(*runs: StoredRun) -> Report:
        page = tmp_path / "report.html"
        page.write_text(html_report(runs, "Nightly", NOW))
        opened.append(Report(browser, runs, page.as_uri()))
        return opened[-1]

    yield open_it
    for one in opened:
        assert one.errors() == [], "what the browser complained about"


@pytest.fixture
def runs(tmp_path: Path) -> tuple[StoredRun, ...]:
    """On 7.2: PASS, FAIL and INCONCLUSIVE; on 6.12: PASS and FAIL."""
    lost = unjudged(Verdict.INCONCLUSIVE, "the guest was lost")
    return (
        *stored(tmp_path / "a", "exact_cover-7.2", "partial_region-7.2"),
        *stored(tmp_path / "b", "exact_cover-6.12", "partial_region-6.12"),
        *stored(tmp_path / "c", "sr_outside_window-7.2", change=lost),
    )
