# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that start a night: the systemd service and the hosted CI workflow."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import yaml

from harness.cli.nightly import nightly
from harness.core.paths import PROJECT

SYSTEMD = PROJECT / "ci" / "systemd"
HOSTED = PROJECT / "ci" / "hosted" / "github-nightly.yml"


def job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(HOSTED.read_text())["jobs"]["night"]
    return found


def step(name: str) -> dict[str, Any]:
    (found,) = [one for one in job()["steps"] if name in (one.get("name"), one.get("uses"))]
    assert isinstance(found, dict)
    return found


def test_nights_are_started_with_options_that_exist() -> None:
    with click.Context(nightly) as context:
        known = {option for one in nightly.get_params(context) for option in one.opts}
    service = (SYSTEMD / "cxl-ownership-nightly.service").read_text()
    (command,) = re.findall(r"^ExecStart=.*$", service, re.M)
    settings = dict(
        line.split("=", 1)
        for line in (SYSTEMD / "cxl-ownership-nightly.conf").read_text().splitlines()
        if not line.startswith("#")
    )
    for text in (command, settings["OPTIONS"], step("Night")["run"]):
        assert re.findall(r"(?<=\s)--\S+", f" {text}") != []
        assert set(re.findall(r"(?<=\s)--[a-z-]+", f" {text}")) <= known
    assert set(re.findall(r"\$([A-Z]+)", command)) == set(settings)


def test_a_night_that_cannot_judge_anything_is_not_started_again_all_day() -> None:
    """Each start is a separate night, and replaces a kept one."""
    service = (SYSTEMD / "cxl-ownership-nightly.service").read_text()
    settings = dict(re.findall(r"^(\w+)=(.*)$", service, re.M))
    assert settings["Restart"] == "on-failure"
    hours, starts = settings["StartLimitIntervalSec"], int(settings["StartLimitBurst"])
    assert 12 <= int(hours.removesuffix("h")) < 24
    assert 3 <= starts <= 12
    assert service.index("StartLimitBurst") < service.index("[Service]")


def test_a_hosted_night_is_cut_short_before_what_is_kept_of_it_is_lost() -> None:
    assert step("Night")["timeout-minutes"] + 15 <= job()["timeout-minutes"]
    later = job()["steps"][job()["steps"].index(step("Night")) + 1 :]
    assert [one["if"] for one in later] == ["always()"] * len(later)


def test_the_report_of_a_hosted_night_is_uploaded() -> None:
    """Since 4.4 the action skips hidden folders by default."""
    upload = step("actions/upload-artifact@v4")["with"]
    hidden = [path for path in upload["path"].split() if re.search(r"(^|/)\.", path)]
    assert not hidden or upload["include-hidden-files"] is True


def summed_up(folder: Path) -> tuple[str, str]:
    """Run the summary step of a hosted night; returns its output and the name of the artifact."""
    files = {name: folder / name for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
    for file in files.values():
        file.write_text("")
    subprocess.run(
        ["sh", "-e", "-c", step("Summary")["run"]],
        cwd=folder,
        env=os.environ | {name: str(file) for name, file in files.items()},
        check=True,
        timeout=60,
    )
    said, output = (file.read_text() for file in files.values())
    assert step("actions/upload-artifact@v4")["with"]["name"].startswith(
        "${{ steps.summary.outputs.artifact "
    )
    return said, dict(line.split("=") for line in output.splitlines())["artifact"]


def test_the_summary_of_a_hosted_night_says_whose_it_is(tmp_path: Path) -> None:
    began = tmp_path / ".night" / "began"
    summary = tmp_path / ".night" / "state" / "nights" / "latest" / "summary.txt"
    summary.parent.mkdir(parents=True)

    def night(written: int | None) -> tuple[str, str]:
        """Make a night whose summary was written this many seconds after its start."""
        began.touch()
        os.utime(began, (1_000_000, 1_000_000))
        if written is not None:
            summary.write_text("night 7 of next\n")
            os.utime(summary, (1_000_000 + written, 1_000_000 + written))
        return summed_up(tmp_path)

    said, artifact = night(None)
    assert "was not completed" in said and "earlier-night" not in said
    said, artifact = night(60)
    assert (said, artifact) == ("```\nnight 7 of next\n```\n", "night")
    said, artifact = night(-60)
    assert said.startswith("**This night was not completed**")
    assert said.endswith("`earlier-night`:\n```\nnight 7 of next\n```\n")
    assert artifact == "earlier-night"
    # Not even begun: nothing is left of the one before that could be taken for this one's.
    assert summed_up(tmp_path)[0].startswith("**This night was not completed**")
    assert "touch .night/began" in step("Night")["run"]
