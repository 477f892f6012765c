# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from fake_sources import HMEM, Builder, Listener, builder, edit, format_patch, git, git_fake
from series_fixtures import applied, commit_of, one, patches, refused, store, tree

from harness.core.cache import Store
from harness.core.errors import UnbuildableError, UsageError
from harness.core.paths import PROJECT
from harness.kernels.build.apply_series import series_commit
from harness.kernels.build.series import Series, read_series
from harness.kernels.build.tree import look

__all__ = ["builder", "patches", "store", "tree"]
KMEM = "drivers/dax/kmem.c"


def test_a_folder_with_numbers(
    tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store
) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "0000-cover-letter.patch").write_text("From: A\nSubject: [PATCH 0/3] all\n\nwords\n")
    for number, patch in enumerate(patches, start=1):
        (folder / f"{number:04}-x.patch").write_bytes(patch)
    files = applied(tree, folder, store)
    assert "return 111;" in files[HMEM] and "return 22;" in files[KMEM]
    files = applied(tree, folder, store, upto=2)
    assert "return 11;" in files[HMEM]
    assert "return 1;" in applied(tree, folder, store, upto=0)[HMEM]
    with pytest.raises(UsageError, match="has 3 patches"):
        read_series(folder).upto(4)


@pytest.mark.parametrize("version", ["", "v3-", "v12-", "v4.1-", "v3rev2-"])
def test_names_of_format_patch(patches: tuple[bytes, ...], tmp_path: Path, version: str) -> None:
    cover = "From: A\nSubject: [PATCH 0/12] all\n\nwords\n"
    (tmp_path / f"{version}0000-cover-letter.patch").write_text(cover)
    (tmp_path / "notes.patch").write_text("private notes")
    numbers = ("0001", "0002", "0010", "9999", "10000")  # git writes four digits, or more
    for number in numbers:
        (tmp_path / f"{version}{number}-cxl-x.patch").write_bytes(patches[0])
    series = read_series(tmp_path)
    assert [patch.name for patch in series.patches] == [
        f"{version}{number}-cxl-x.patch" for number in numbers
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("v3-0001-x.patch", "more than one version of a series: v2, v3"),
        ("0001-x.patch", "more than one version .* one without a version, v2"),
        ("v2-0001-y.patch", r"more than one patch 1: v2-0001-x\.patch, v2-0001-y\.patch"),
    ],
)
def test_two_series_in_one_folder(
    patches: tuple[bytes, ...], tmp_path: Path, other: str, message: str
) -> None:
    for name in ("v2-0001-x.patch", other):
        (tmp_path / name).write_bytes(patches[0])
    with pytest.raises(UsageError, match=message) as caught:
        read_series(tmp_path)
    assert "in order in a file 'series'" in caught.value.hint
    (tmp_path / "series").write_text("v2-0001-x.patch\n")
    assert len(read_series(tmp_path).patches) == 1


def test_each_patch_becomes_a_commit_once(
    tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store
) -> None:
    mbox = tmp_path / "series.mbx"
    mbox.write_bytes(b"".join(patches))
    source, commit = commit_of(tree, mbox, store)
    log = source.repository.git("log", "--format=%s", commit).stdout.splitlines()
    assert log[:3] == ["hmem: one more", "kmem: ümläut", "hmem: one"]
    assert len(log) == 4
    source.check_out(source.base_commit(look(str(tree), store, Listener(), "")[1]), Listener())
    progress = Listener()
    state = look(str(tree), store, progress, "")[1]
    assert series_commit(source, state, read_series(mbox), progress) == commit
    assert progress.notes == []


def test_series_yaml(tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "b.patch").write_bytes(patches[0])
    (folder / "a.patch").write_bytes(patches[1])
    described = folder / "series.yaml"
    described.write_text(
        "base: v7.2\nwhy: to try\nposted: a list\npolicy: all_or_nothing\norder:\n- b.patch\n"
    )
    series = read_series(folder)
    assert (series.base, series.policy, len(series.patches)) == ("v7.2", "all_or_nothing", 1)
    assert "return 2;" in applied(tree, folder, store)[KMEM]
    for text, words in (
        ("order: [c.patch]", r"there is no patch c\.patch"),
        ("order: no", "order: expected"),
        ("order: [b.patch]\npatch: [b.patch]", "unknown.*patch"),
        ("order: [b.patch]\npolicy: mine", "mine"),
        ("order: [b.patch]\nbase: 7.2", "base: expected"),
        ("why: not in any order", "order"),
        ("a: [", "not valid YAML"),
        ("- b.patch", "not a mapping"),
        ("order: &a [b.patch]\nposted: *a", r"aliases are not supported"),
        ("order: " + "[" * 20000, "not valid YAML|nested too deep"),
        ("order: []", "has no patch"),
    ):
        described.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_series(folder)


def test_the_projects_series() -> None:
    folders = sorted(path.parent for path in (PROJECT / "patches").rglob("series.yaml"))
    assert folders
    for folder in folders:
        series = read_series(folder)
        assert series.base and series.policy, folder
        assert len(series.patches) == len(list(folder.glob("*.patch"))), folder


def test_quilt(tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    diff = b"--- a/" + patches[0].partition(b"\n--- a/")[2]
    (folder / "bare.diff").write_bytes(b"Words about it.\n\n" + diff)
    listed = folder / "series"
    listed.write_text("# comment\n\nbare.diff -p1  # why\n")
    assert "return 11;" in applied(tree, folder, store)[HMEM]
    listed.write_text("bare.diff -p0\n")
    with pytest.raises(UsageError, match="not applied with -p1") as caught:
        read_series(folder)
    assert caught.value.where == f"{listed}:1"


def test_a_series_for_another_base(
    tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store
) -> None:
    edit(tree, "return 1;", "return 99;")
    mbox = tmp_path / "series.mbx"
    mbox.write_bytes(patches[1] + patches[0])
    error, state = refused(tree, mbox, store)
    lines = error.message.splitlines()
    assert lines[0].startswith("patch 2 of 2 does not apply: ")
    assert lines[0].endswith("hmem: one")
    assert lines[1] == f"  {HMEM}, hunk @@ -2,7 +2,7 @@"
    assert lines[2] == f"  tried on {tree}, tree {state.tree[:12]}"
    assert "b4 am" in error.hint
    edit(tree, "return 99;", "return 1;")
    assert "return 11;" in applied(tree, mbox, store)[HMEM]


def test_the_base_that_a_series_names(
    tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store
) -> None:
    edit(tree, "return 1;", "return 99;")
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "a.patch").write_bytes(patches[0])
    (folder / "series.yaml").write_text("base: v6.19\norder: [a.patch]\n")
    assert refused(tree, folder, store)[0].hint.startswith("the series is for v6.19")


def test_a_file_that_is_not_there(tree: Path, tmp_path: Path, store: Store) -> None:
    work = git_fake(tmp_path / "work")
    patch = format_patch(work, {"init/main.c": ("return 0", "return 1")}, "main")
    (tree / "init/main.c").unlink()
    error, _ = refused(tree, one(tmp_path, patch), store)
    assert "init/main.c is not in this source" in error.message


def test_a_patch_that_is_there_already(
    tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store
) -> None:
    edit(tree, "return 1;", "return 11;")
    edit(tree, "/* Three. */", "/* three */")
    data = patches[0]
    source, state = look(str(tree), store, Listener(), "build:x")
    series = read_series(one(tmp_path, data))
    try:
        commit = series_commit(source, state, series, Listener())
    except UnbuildableError as error:
        assert "has the patch already" in error.hint
    else:  # git am -3 sees that nothing is left to do
        assert commit == source.base_commit(state)


def test_a_patch_with_lines_cut(
    tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store
) -> None:
    error, _ = refused(tree, one(tmp_path, patches[0].replace(b"\n int hmem_one", b"")), store)
    assert "a mailer has wrapped or cut lines" in error.message
    assert "b4 am" in error.hint


def test_a_series_that_does_not_apply_is_refused_before_a_wait_for_another_build(
    builder: Builder,
    tree: Path,
    patches: tuple[bytes, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builder(f"build:{tree}")
    edit(tree, "return 1;", "return 99;")
    source, _ = look(str(tree), builder.store, Listener(), "build:x")
    folder = one(tmp_path, patches[0])

    def note(text: str) -> None:
        assert "waiting for it" not in text

    with source.claimed(builder.store, Listener()):
        monkeypatch.setattr(builder.progress, "note", note)
        with pytest.raises(UnbuildableError, match="does not apply"):
            builder(f"build:{tree}", series=folder)


def test_three_ways(tree: Path, tmp_path: Path, store: Store) -> None:
    work = git_fake(tmp_path / "work")
    patch = format_patch(work, {HMEM: ("return 2", "return 22")}, "two")
    # The context of the patch is gone, the blobs it names are known.
    edit(tree, "/* Two. */", "/* 2 */")
    git(tree, "commit", "-q", "-a", "-m", "other")
    assert "return 22;" in applied(tree, one(tmp_path, patch), store)[HMEM]


def test_no_way_out_of_the_tree(tree: Path, tmp_path: Path, store: Store) -> None:
    patch = b"From: A\nSubject: x\n\ndiff --git a/../out b/../out\nnew file mode 100644\n"
    patch += b"--- /dev/null\n+++ b/../out\n@@ -0,0 +1 @@\n+out\n"
    error, _ = refused(tree, one(tmp_path, patch), store)
    assert "invalid path" in error.message


def test_a_build_with_a_series(
    builder: Builder, tree: Path, patches: tuple[bytes, ...], tmp_path: Path
) -> None:
    path = one(tmp_path, b"".join(patches))
    plain = builder(f"build:{tree}")
    patched = builder(f"build:{tree}", series=path)
    first = builder(f"build:{tree}", series=path, upto=1)
    assert len({plain.identity, patched.identity, first.identity}) == 3
    assert patched.modules is not None
    assert "return 111;" in (patched.modules / "kernel/drivers/dax/hmem/hmem.ko").read_text()
    builder.progress.notes.clear()
    assert builder(f"build:{tree}", series=path) == patched
    assert builder.progress.notes == []
    with pytest.raises(UsageError, match="--upto needs a series"):
        builder(f"build:{tree}", upto=1)
    with pytest.raises(UsageError, match="for kernels that are built"):
        builder("debian:7.2", series=path)


def test_the_digest_depends_on_the_patches(tmp_path: Path, patches: tuple[bytes, ...]) -> None:
    series = read_series(one(tmp_path, patches[0]))
    same = Series(Path("/elsewhere"), series.patches)
    assert series.digest == same.digest
    assert series.digest != read_series(one(tmp_path, patches[1])).digest
