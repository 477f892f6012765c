# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's modules and indexes, with a loader of the tests' own in place of kmod's.

tests/guest/test_modprobe.py uses the real one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_modules import put

from harness.core.errors import UnbuildableError
from harness.core.process import CommandError
from harness.kernels.build.depmod import guest_modules, module_indexes

# Finds its folders behind depmod's options, as depmod does.
LOADER = """\
#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
    -b) tree=$2/lib/modules ;;
    -o) output=$2/lib/modules ;;
    esac
    release=$1
    shift
done
tree=$tree/$release output=$output/$release
"""
INDEX = 'for one in "$tree"/*; do echo "${one##*/}"; done > "$output/modules.dep.bin"\n'


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    root = tmp_path / "programs"
    (root / "lib64").mkdir(parents=True)
    return root


def depmod(programs: Path, script: str) -> None:
    loader = programs / "lib64/ld-linux-x86-64.so.2"
    loader.write_text(LOADER + script)
    loader.chmod(0o755)


def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_modules_come_with_dependencies_and_indexes(tmp_path: Path, programs: Path) -> None:
    put(tmp_path / "modules/kernel/cxl_mem.ko.xz", softdep="pre: cxl-port", depends="cxl_core")
    port = put(tmp_path / "modules/kernel/cxl-port.ko")
    put(tmp_path / "modules/kernel/unused.ko")
    (tmp_path / "modules/modules.builtin").write_text("kernel/cxl_core.ko\n")
    depmod(programs, INDEX + 'cp() { while read -r line; do echo "$line"; done < "$1"; }\n' + (
        'for one in order builtin; do cp "$tree/modules.$one" > "$output/$one"; done\n'
    ))  # fmt: skip
    (tmp_path / "modules/modules.order").write_text("kernel/cxl_mem.o\nkernel/cxl-port.o\n")
    plan, files = guest_modules(tmp_path / "modules", ["cxl_mem"], programs, work(tmp_path))
    assert [module.name for module in plan.order] == ["cxl_port", "cxl_mem"]
    assert files["cxl_port.ko"] == port.read_bytes()
    assert {"cxl_mem.ko", "cxl_port.ko"} < set(files["modules.dep.bin"].decode().split())
    assert files["builtin"] == b"cxl_core.ko\n"
    assert files["order"] == b"cxl_mem.ko\ncxl_port.ko\n"


def test_a_link_that_depmod_leaves_is_not_followed(tmp_path: Path, programs: Path) -> None:
    (tmp_path / "secret").write_text("of the user")
    depmod(programs, f'/bin/ln -s {tmp_path}/secret "$output/modules.dep.bin"\n')
    with pytest.raises(UnbuildableError):
        module_indexes({"a.ko": b""}, programs, work(tmp_path))


def test_a_depmod_that_fails(tmp_path: Path, programs: Path) -> None:
    depmod(programs, "echo no >&2; exit 1\n")
    with pytest.raises(CommandError, match="no"):
        module_indexes({"a.ko": b""}, programs, work(tmp_path))
