# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTML report as a file: what is in it, and that nothing of a guest's becomes markup."""

from __future__ import annotations

import base64
import json
import re
import tomllib
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from evidence_fixtures import stored, unjudged
from html_fixtures import HOSTILE, NOW, difference, hostile

from harness.contract.result import Verdict
from harness.core.paths import PROJECT
from harness.reports.html.details import Strings
from harness.reports.html.page import html_report, run_names
from harness.runs.result_files import StoredRun


class Page(HTMLParser):
    """The tags of a page, the text of its scripts, and the links in its grid."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)

    def packed(self) -> dict[str, Any]:
        unpacked = zlib.decompress(base64.b64decode(self.scripts[0]))
        content: dict[str, Any] = json.loads(unpacked)
        return content


def log_lines(content: dict[str, Any], run: dict[str, Any]) -> list[tuple[str, int]]:
    lines, number, micros = [], 0, 0
    for at in range(0, len(run["log"]), 2):
        number += run["log"][at]
        micros += run["log"][at + 1]
        lines.append((content["strings"][number], micros))
    return lines


def test_nothing_comes_from_anywhere_else(tmp_path: Path) -> None:
    text = html_report(stored(tmp_path, "partial_region-7.2"), "t", NOW)
    for tag, attributes in Page(text).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert not {"src", "action", "srcset", "data"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert "http" not in re.sub(r"http-equiv|http://www\.w3\.org/2000/svg", "", text)


def test_only_the_pages_own_script_and_style_may_run(tmp_path: Path) -> None:
    import hashlib

    text = html_report(stored(tmp_path, "exact_cover-7.2"), "t", NOW)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)[-1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    dmesg = f"<4>[    1.000000] cxl {HOSTILE}\n"
    tame = html_report(stored(tmp_path / "a", "partial_region-7.2"), "t", NOW)
    runs = stored(tmp_path / "b", "partial_region-7.2", change=hostile, dmesg=dmesg)
    text = html_report(runs, HOSTILE, NOW)
    names = [tag for tag, _ in Page(text).tags]
    assert names.count("script") == 2 and "img" not in names
    assert "<script>document" not in text
    assert set(names) - {tag for tag, _ in Page(tame).tags} <= {"details", "summary", "p"}
    content = Page(text).packed()
    assert content["runs"][0]["scenario"] == HOSTILE
    assert content["runs"][0]["differences"][0][1:3] == [HOSTILE, HOSTILE]
    assert log_lines(content, content["runs"][0]) == [(f"4cxl {HOSTILE}", 1_000_000)]


def test_a_run_is_packed_with_all_that_the_page_shows(tmp_path: Path) -> None:
    (run,) = stored(tmp_path, "partial_region-7.2")
    content = Page(html_report([run], "t", NOW)).packed()
    (packed,) = content["runs"]
    strings = content["strings"]
    assert packed["owners"][0][:3] == ["sr0", "110000000-18fffffff", "dax_hmem/system_ram"]
    assert packed["owners"][0][3][0][3] == 1, "wrong"
    assert "STRANDED" in strings[packed["picture"]]
    lines = [strings[number] for number in packed["iomem"][3::5]]
    assert "110000000-18fffffff : daxN.N" in lines
    assert dict(packed["timings"])["boot"] == 2.5
    assert packed["command"].startswith("harness run partial_region --kernel debian:7.2")
    assert str(run.folder) not in strings[packed["argv"]]
    assert run.observation is not None
    log = log_lines(content, packed)
    records = run.observation.dmesg
    assert [text for text, _ in log] == [f"{one.level}{one.text}" for one in records]
    assert [micros for _, micros in log] == [round(one.time * 1e6) for one in records]
    offending = [log[at][0] for at in packed["offending"]]
    assert len(offending) == 4 and all("kmem" in one or "dax" in one for one in offending)


def test_differences_between_guests_are_packed_but_not_without_end(tmp_path: Path) -> None:
    def more(result: dict[str, Any]) -> None:
        result.update(compared=3, differences=[difference("a line"), *[difference("b")] * 60])

    (run,) = stored(tmp_path, "exact_cover-7.2", change=more)
    content = Page(html_report([run], "t", NOW)).packed()
    (packed,) = content["runs"]
    here, there = (content["strings"].index(one) for one in ("a line", "not a line"))
    assert packed["compared"] == 3
    assert packed["differences"][0] == [2, "a line", "a line", 2, [here], [there]]
    assert (len(packed["differences"]), packed["more_differences"]) == (50, 11)
    (plain,) = Page(html_report(stored(tmp_path / "b", "exact_cover-7.2"), "t", NOW)).packed()[
        "runs"
    ]
    assert (plain["compared"], plain["differences"], plain["more_differences"]) == (0, [], 0)


def test_the_lines_of_a_trace_are_marked_with_it(tmp_path: Path) -> None:
    log = (
        "<4>[    1.000000] ------------[ cut here ]------------\n"
        "<4>[    1.000001] WARNING: CPU: 0 PID: 1 at drivers/cxl/core/region.c:1 x+0x1/0x2\n"
        "<4>[    1.000002] Call Trace:\n"
        "<4>[    1.000003]  devm_cxl_add_region+0x1/0x2\n"
        "<4>[    1.000004] ---[ end trace 0000000000000000 ]---\n"
        "<6>[    1.000005] all is well again\n"
    )
    (run,) = stored(tmp_path, "exact_cover-7.2", dmesg=log)
    assert run.record.verdict is Verdict.FAIL
    (packed,) = Page(html_report([run], "t", NOW)).packed()["runs"]
    assert 1 in packed["offending"] and 3 in packed["offending"]
    assert 5 not in packed["offending"]


def test_texts_that_runs_share_are_kept_once() -> None:
    strings = Strings()
    assert [strings.number(text) for text in ("a", "b", "a")] == [0, 1, 0]
    assert strings.listed == ["a", "b"]


def test_many_runs_of_one_scenario_take_little_room(tmp_path: Path) -> None:
    runs = stored(tmp_path, "partial_region-7.2")
    one = len(html_report(runs, "t", NOW))
    hundred = len(html_report(runs * 100, "t", NOW))
    assert (hundred - one) / 99 < 3000, "bytes for each further run"


def test_a_link_to_a_run_stays_the_same_and_is_its_own(tmp_path: Path) -> None:
    first, second = stored(tmp_path, "exact_cover-7.2", "partial_region-7.2")
    assert run_names([first, second]) == tuple(reversed(run_names([second, first])))
    assert len(set(run_names([first, first, second]))) == 3


def test_the_grid_can_be_read_without_a_script(tmp_path: Path) -> None:
    runs = (
        *stored(tmp_path / "a", "exact_cover-7.2", "partial_region-7.2", "exact_cover-6.12"),
        *stored(tmp_path / "b", "exact_cover-7.2", change=unjudged(Verdict.INCONCLUSIVE, "lost")),
    )
    text = html_report(runs, "My nightly", NOW)
    for words in ("✓ PASS", "✗ FAIL", "? INCONCLUSIVE", "My nightly", "partial_region", "not run"):
        assert words in text
    assert '<th scope="row">exact_cover</th>' in text
    assert "2027-01-15" in text


@pytest.mark.parametrize("verdict", [Verdict.INCONCLUSIVE, Verdict.UNBUILDABLE])
def test_a_run_without_an_observation(tmp_path: Path, verdict: Verdict) -> None:
    (run,) = stored(tmp_path, "exact_cover-7.2", change=unjudged(verdict, "why"))
    bare = StoredRun(run.record)
    (packed,) = Page(html_report([bare], "t", NOW)).packed()["runs"]
    assert (packed["iomem"], packed["log"], packed["reason"]) == ([], [], "why")


def test_every_file_that_is_no_module_is_part_of_the_package() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    declared = settings["tool"]["setuptools"]["package-data"]
    for path in (PROJECT / "harness").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            package = ".".join(path.parent.relative_to(PROJECT).parts)
            assert any(path.match(pattern) for pattern in declared.get(package, ())), path
