# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fake_sources import Listener

from harness.core.cache import Store
from harness.core.errors import UsageError
from harness.core.progress import SilentProgress
from harness.kernels.resolve import resolve_kernel
from harness.kernels.spec import KernelSpec, parse_kernel_spec
from harness.kernels.store import KIND
from harness.scenario.kernel_request import KernelRequest, as_request, request_of_options


def test_specs() -> None:
    assert parse_kernel_spec("debian:7.2") == KernelSpec("debian", "7.2")
    assert parse_kernel_spec(" image:/a b:c ") == KernelSpec("image", "/a b:c")
    assert str(KernelSpec("debian", "7.2")) == "debian:7.2"


def test_texts_that_are_not_specs() -> None:
    for text in ("", "7.2", "debian", "debian:", "image: ", "fedora:40", "build", "build:debian:"):
        with pytest.raises(UsageError, match="does not name a kernel") as caught:
            parse_kernel_spec(text)
        assert "debian:VERSION" in caught.value.hint


def test_specs_of_builds() -> None:
    assert parse_kernel_spec("build:debian:7.2") == KernelSpec("build:debian", "7.2")
    assert parse_kernel_spec("build:~/linux@v7.1") == KernelSpec("build", "~/linux@v7.1")
    assert str(parse_kernel_spec("build:debian:7.2")) == "build:debian:7.2"


def test_options_of_a_build_are_for_builds(tmp_path: Path) -> None:
    request = KernelRequest("debian:7.2", ("no_kmem",), Path("a series"), 2, "clang")
    words = "debian:7.2 --config no_kmem --series 'a series' --upto 2 --llvm"
    assert (str(request), request.shapes_build) == (words, True)
    with pytest.raises(UsageError, match="for kernels that are built") as caught:
        resolve_kernel(request, stored(tmp_path), SilentProgress())
    assert "build:debian:VERSION" in caught.value.hint
    plain = KernelRequest("debian:7.2")
    assert as_request("debian:7.2") == plain and not plain.shapes_build
    assert resolve_kernel(plain, stored(tmp_path), SilentProgress()).spec == "debian:7.2"


def stored(root: Path) -> Store:
    store = Store(root)

    def make(folder: Path) -> None:
        (folder / "manifest.json").write_text('{"release": "7.2.1-x"}')
        for name in ("vmlinuz", "config"):
            (folder / name).write_text(name)

    store.build(KIND, "0123", make)
    store.set_alias(KIND, "debian:7.2", "0123")
    return store


def test_a_known_spec_needs_nothing_but_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    kernel = resolve_kernel("debian:7.2", stored(tmp_path), SilentProgress())
    entry = tmp_path / KIND / "0123"
    assert (kernel.spec, kernel.release, kernel.identity) == ("debian:7.2", "7.2.1-x", "0123")
    assert (kernel.image, kernel.modules, kernel.config) == (
        entry / "vmlinuz", entry / "modules", entry / "config",
    )  # fmt: skip


def test_a_known_spec_imports_nothing_heavy(tmp_path: Path) -> None:
    stored(tmp_path)
    script = """
import sys
from pathlib import Path
from harness.kernels.resolve import resolve_kernel
from harness.core.progress import SilentProgress
from harness.core.cache import Store
resolve_kernel("debian:7.2", Store(Path(sys.argv[1])), SilentProgress())
heavy = {"rich", "elftools", "zstandard", "subprocess", "harness.debian.apt"}
sys.exit(", ".join(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stderr.strip() == ""


def test_a_damaged_entry_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, entry = stored(tmp_path), tmp_path / KIND / "0123"
    (entry / "manifest.json").write_text("{")

    def fetch(*_words: object, **_named: object) -> Path:
        stored(tmp_path)
        return entry

    monkeypatch.setattr("harness.kernels.debian.packages.fetch_debian_kernel", fetch)
    progress = Listener()
    assert resolve_kernel("debian:7.2", store, progress).release == "7.2.1-x"
    assert [note.partition(":")[0] for note in progress.notes] == [
        f"{KIND}/0123 is damaged in the store"
    ]


def test_the_request_of_options() -> None:
    request = request_of_options("build:x", " debug, ,mixed ", Path("s"), llvm=True, upto=2)
    assert request == KernelRequest("build:x", ("debug", "mixed"), Path("s"), 2, "clang")
    assert request_of_options("debian:7.2", "", None, llvm=False) == KernelRequest("debian:7.2")
