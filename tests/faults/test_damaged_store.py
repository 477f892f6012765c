# SPDX-License-Identifier: GPL-2.0-or-later
"""Real runs on a damaged store: no damaged file is booted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from bench_fixtures import Bench

from harness.contract.result import Verdict

pytestmark = pytest.mark.guest
RUN = ("run", "exact_cover", "--start", "cold")


def own(bench: Bench, kind: str) -> list[Path]:
    """Copy the entries of a kind from the user's store."""
    entries = sorted((bench.store / kind).iterdir())
    for entry in entries:
        whole = entry.resolve()
        entry.unlink()
        shutil.copytree(whole, entry, symlinks=True)
    return entries


def used_kernel(bench: Bench) -> Path:
    """Copy the store entry that `bench.finish(*RUN)` boots."""
    alias = (bench.store / "aliases" / "kernels" / "debian:7.2").readlink()
    for entry in (bench.store / "kernels").iterdir():
        if entry.name != alias.name:
            entry.unlink()
    (entry,) = own(bench, "kernels")
    return entry


def test_a_damaged_initramfs_is_made_again(bench: Bench) -> None:
    bench.forget("initramfs")
    assert bench.finish("boot", "--print", "exact_cover").returncode == 0
    (archive,) = (bench.store / "initramfs").glob("*/initramfs.cpio")
    whole = archive.read_bytes()
    os.truncate(archive, len(whole) // 2)
    done = bench.finish(*RUN)
    assert done.returncode == Verdict.PASS.exit_code, done.stdout + done.stderr
    assert "is damaged in the store: initramfs.cpio" in done.stderr
    assert archive.read_bytes() == whole
    assert bench.leftovers() == []


@pytest.mark.parametrize("name", ["vmlinuz", "config", "manifest.json"])
def test_a_damaged_kernel_is_not_booted(bench: Bench, name: str) -> None:
    kernel = used_kernel(bench)
    path = kernel / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    # It cannot be fetched again: no server listens there.
    bench.environment["HARNESS_DEBIAN_MIRROR"] = "http://127.0.0.1:9/debian"
    done = bench.finish(*RUN)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"is damaged in the store: {name}" in done.stderr
    assert "hint: " in done.stderr and "Traceback" not in done.stderr
    assert list(bench.evidence.glob("*")) == []
    assert not kernel.exists()


def test_damaged_modules_are_not_loaded(bench: Bench) -> None:
    kernel = used_kernel(bench)
    bench.forget("initramfs")
    module = next((kernel / "modules").rglob("dax_cxl.ko*"), None) or next(
        (kernel / "modules").rglob("*.ko*")
    )
    os.truncate(module, module.stat().st_size - 1)
    bench.environment["HARNESS_DEBIAN_MIRROR"] = "http://127.0.0.1:9/debian"
    done = bench.finish(*RUN)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "is damaged in the store: modules/" in done.stderr
    assert f"/{module.name}, of " in done.stderr
    assert list(bench.evidence.glob("*")) == []


def test_an_undamaged_store(bench: Bench) -> None:
    done = bench.finish(*RUN)
    assert done.returncode == Verdict.PASS.exit_code, done.stdout + done.stderr
    assert "damaged" not in done.stderr
    (verdict,) = bench.evidence.glob("*/verdict.json")
    assert json.loads(verdict.read_text())["verdict"] == "PASS"
