# SPDX-License-Identifier: GPL-2.0-or-later
"""gcc and clang, with the fake kernel; a real kernel with clang takes minutes, see docs."""

from __future__ import annotations

import json
from pathlib import Path

from fake_sources import Builder, builder, edit, git_fake

from harness.kernels.build.build import cache_use

__all__ = ["builder"]


def test_a_kernel_with_each_compiler(builder: Builder, tmp_path: Path) -> None:
    tree = git_fake(tmp_path / "linux")
    edit(tree, "/* Two. */", "/* fake: say LLVM */\n/* fake: say CC */\n/* fake: say HOSTCC */\n")
    gcc = builder(f"build:{tree}")
    output = builder.log()
    assert "fake: LLVM=None" in output
    clang = builder(f"build:{tree}", toolchain="clang")
    assert clang.identity != gcc.identity
    output = builder.log()
    assert "fake: LLVM=1" in output
    for name in ("CC", "HOSTCC"):
        (line,) = [line for line in output.splitlines() if line.startswith(f"fake: {name}=")]
        assert line.endswith("clang")
    # Objects of one compiler are of no use to the other.
    assert "  CC      drivers/dax/kmem.o" in output
    assert len(list((builder.store.root / "outputs").iterdir())) == 2
    manifest = json.loads((clang.image.parent / "manifest.json").read_text())
    assert manifest["toolchain"] == {
        "kind": "clang",
        "version": ["clang (stub) 1.0", "ld.lld (stub) 1.0"],
    }
    assert manifest["spec"].endswith(" --llvm")
    assert builder(f"build:{tree}", toolchain="clang") == clang


def test_ccache_statistics_of_files(tmp_path: Path) -> None:
    """Kconfig and make try a compiler out a hundred times, which is no compilation."""
    log = tmp_path / "log"
    assert cache_use(log) == (0, 0)
    hit = "direct_cache_hit\nlocal_storage_hit\nlocal_storage_read_hit\n"
    log.write_text(
        f"# \nno_input_file\n# /dev/null\n{hit}# -\ncache_miss\n"
        f"# /harness/source/mm/slub.c\n{hit}# drivers/dax/kmem.mod.c\npreprocessed_cache_hit\n"
        "# /harness/source/drivers/dax/hmem/hmem.c\ndirect_cache_miss\ncache_miss\n"
    )
    assert cache_use(log) == (2, 1)
