# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose rules are judged, and what a kernel is good for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import FIT_QEMU, Harness
from fake_sources import Builder, builder, copy_fake
from layouts import layout_of

from harness.contract.result import RunResult, Verdict
from harness.core.cache import Store
from harness.core.errors import NotConfigurableError, UnbuildableError, UsageError
from harness.core.kernel import Kernel
from harness.core.progress import SilentProgress
from harness.guest.initramfs import SharedInitramfs
from harness.runs.guest_run import Judging
from harness.runs.prepare import Bootable, Host, policy_for, prepare_case
from harness.runs.requirements import NotApplicableError
from harness.runs.session import Session, Skipped
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import load_case

__all__ = ["builder"]

PATCH = "Subject: one\n\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"


def series(folder: Path, fields: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "1.patch").write_text(PATCH)
    (folder / "series.yaml").write_text(f"order: [1.patch]\n{fields}")
    return folder


def test_the_policy_that_is_judged(tmp_path: Path) -> None:
    plain = KernelRequest("build:x")
    named = KernelRequest("build:x", series=series(tmp_path / "a", "policy: all_or_nothing\n"))
    silent = KernelRequest("build:x", series=series(tmp_path / "b", ""))
    nowhere = KernelRequest("build:x", series=tmp_path / "c")
    assert policy_for(None, plain) == policy_for(None, silent) == "per_range"
    assert policy_for(None, named) == "all_or_nothing"
    assert policy_for("per_range", named) == "per_range"
    assert policy_for("all_or_nothing", plain) == "all_or_nothing"
    with pytest.raises(UsageError, match="no such file or folder"):
        policy_for(None, nowhere)


@pytest.mark.usefixtures("no_guest")
@pytest.mark.parametrize(
    ("words", "policy"),
    [((), "all_or_nothing"), (("--policy", "per_range"), "per_range")],
)
def test_a_run_is_judged_by_the_policy_of_its_series(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], policy: str
) -> None:
    seen = []

    class Judged(Session):
        def __init__(self, host: Host, judging: Judging, _options: object) -> None:
            seen.append(judging.policy)
            super().__init__(host, judging)

        def run_all(self, *_arguments: Any) -> Iterator[RunResult | Skipped]:
            yield RunResult("x", KernelRequest("x"), "per_range", verdict=Verdict.PASS)

    monkeypatch.setattr("harness.runs.session.Session", Judged)
    folder = series(Path("mine"), "policy: all_or_nothing\n")
    assert harness("run", "exact_cover", "--series", folder, *words).code == 0
    assert seen == [policy]


def prepare(name: str, error: UnbuildableError, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(
        "harness.runs.prepare.machine_layout", lambda _qemu, profile, _remember: layout_of(profile)
    )
    monkeypatch.setattr("harness.runs.prepare.prepare_kernel", fail)
    host = Host(FIT_QEMU, Store(Path("nowhere")), SilentProgress(), "tcg")
    prepare_case(host, load_case(name), KernelRequest("build:x"))


def refused(*fragments: str) -> NotConfigurableError:
    error = NotConfigurableError("DEV_DAX_HMEM: depends on CXL_ACPI || !CXL_ACPI", hint="h")
    error.fragments = frozenset(fragments)
    return error


def test_a_source_that_forbids_what_a_scenario_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused("hmem_builtin_cxl_module.config")
    with pytest.raises(NotApplicableError, match="does not allow") as caught:
        prepare("hmem_builtin_cxl_module", error, monkeypatch)
    assert "depends on CXL_ACPI || !CXL_ACPI" in caught.value.message


@pytest.mark.parametrize(
    "fragments", [("mine.config",), ("hmem_builtin_cxl_module.config", "base.config")]
)
def test_a_source_that_forbids_what_else_was_asked(
    monkeypatch: pytest.MonkeyPatch, fragments: tuple[str, ...]
) -> None:
    error = refused(*fragments)
    with pytest.raises(NotConfigurableError) as caught:
        prepare("hmem_builtin_cxl_module", error, monkeypatch)
    assert caught.value is error


def test_a_refused_configuration_takes_no_room(builder: Builder, tmp_path: Path) -> None:
    tree = copy_fake(tmp_path / "linux")
    builder(f"build:{tree}")
    for _ in range(2):
        with pytest.raises(NotConfigurableError) as caught:
            builder(f"build:{tree}", "hmem_builtin")
        assert caught.value.fragments == {"hmem_builtin.config"}
    assert len(list((builder.store.root / "outputs").iterdir())) == 1


@pytest.mark.parametrize(
    ("config", "finds", "slow"),
    [
        ("CONFIG_A=y\nCONFIG_DEBUG_KMEMLEAK=y\n", True, True),
        ("CONFIG_A=y\n# CONFIG_DEBUG_KMEMLEAK is not set\n", False, False),
        ("CONFIG_A=y\nCONFIG_KASAN=y\n", False, True),
        ("CONFIG_A=y\nCONFIG_PROVE_LOCKING=y\n", False, True),
        (None, False, False),
    ],
)
def test_a_kernel_with_checks_of_its_own(
    config: str | None, finds: bool, slow: bool, tmp_path: Path
) -> None:
    path = None
    if config is not None:
        path = tmp_path / "config"
        path.write_text(config)
    kernel = Kernel("x", "7.2", tmp_path / "vmlinuz", None, path, "id")
    bootable = Bootable(kernel, SharedInitramfs(tmp_path, {}, {}), "tcg")
    assert bootable.finds_leaks is finds
    assert (bootable.timeout_scale > 1) is slow
    assert bootable.parameters == (("no5lvl",) if "KASAN" in (config or "") else ())
    assert (bootable.config_sha256 is None) == (config is None)


@pytest.mark.parametrize(
    ("lines", "parameters"),
    [
        ("KASAN PROVE_LOCKING", ("no5lvl",)),
        (
            "PROVE_LOCKING SOFTLOCKUP_DETECTOR WQ_WATCHDOG",
            ("watchdog_thresh=60", "workqueue.watchdog_thresh=120"),
        ),
        ("KASAN WQ_WATCHDOG", ("no5lvl", "workqueue.watchdog_thresh=120")),
        ("SOFTLOCKUP_DETECTOR WQ_WATCHDOG", ()),
    ],
)
def test_a_slow_kernel_is_not_taken_for_one_that_hangs(
    lines: str, parameters: tuple[str, ...], tmp_path: Path
) -> None:
    """By itself: a kernel that is as fast as any keeps its own limits."""
    path = tmp_path / "config"
    path.write_text("CONFIG_A=y\n" + "".join(f"CONFIG_{one}=y\n" for one in lines.split()))
    kernel = Kernel("x", "7.2", tmp_path / "vmlinuz", None, path, "id")
    bootable = Bootable(kernel, SharedInitramfs(tmp_path, {}, {}), "tcg")
    assert bootable.parameters == parameters
