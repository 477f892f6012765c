# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_sources import HMEM, Builder, Listener, builder, edit, format_patch, git, git_fake

from harness.errors import UnbuildableError, UsageError
from harness.kernels.apply_series import series_commit
from harness.kernels.patch_series import Series, read_series
from harness.kernels.source_tree import SourceState, SourceTree, look
from harness.paths import PROJECT
from harness.store import Store

__all__ = ["builder"]
KMEM = "drivers/dax/kmem.c"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return git_fake(tmp_path / "linux")


@pytest.fixture
def patches(tmp_path: Path) -> tuple[bytes, ...]:
    """Three patches to the fake kernel, the third on top of the first."""
    work = git_fake(tmp_path / "work")
    return (
        format_patch(work, {HMEM: ("return 1", "return 11")}, "hmem: one"),
        format_patch(work, {KMEM: ("return 2", "return 22")}, "kmem: ümläut"),
        format_patch(work, {HMEM: ("return 11", "return 111")}, "hmem: one more"),
    )


def applied(tree: Path, path: Path, store: Store, upto: int | None = None) -> dict[str, str]:
    """The files of a tree with a series."""
    source, commit = commit_of(tree, path, store, upto)
    source.check_out(commit, Listener())
    return {name: (source.files / name).read_text() for name in (HMEM, KMEM)}


def commit_of(
    tree: Path, path: Path, store: Store, upto: int | None = None
) -> tuple[SourceTree, str]:
    source, state = look(str(tree), store, Listener(), "build:x")
    series = read_series(path).upto(upto)
    return source, series_commit(source, state, series, Listener())


def numbered(subjects: tuple[bytes, ...], total: int | None = None) -> list[bytes]:
    total = total or len(subjects)
    return [
        patch.replace(b"[PATCH]", b"[PATCH v3 %d/%d]" % (number, total))
        for number, patch in enumerate(subjects, start=1)
    ]


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
    (tmp_path / "notes.patch").write_text("of somebody's own")
    numbers = ("0001", "0002", "0010", "9999", "10000")  # git writes four digits, or more
    for number in numbers:
        (tmp_path / f"{version}{number}-cxl-x.patch").write_bytes(patches[0])
    series = read_series(tmp_path)
    assert [one.name for one in series.patches] == [
        f"{version}{one}-cxl-x.patch" for one in numbers
    ]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("v3-0001-x.patch", "more than one version of a series is in it: v2, v3"),
        ("0001-x.patch", "more than one version .* one without a version, v2"),
        ("v2-0001-y.patch", r"more than one patch 1 is in it: v2-0001-x\.patch, v2-0001-y\.patch"),
    ],
)
def test_two_series_in_one_folder(
    patches: tuple[bytes, ...], tmp_path: Path, other: str, said: str
) -> None:
    for name in ("v2-0001-x.patch", other):
        (tmp_path / name).write_bytes(patches[0])
    with pytest.raises(UsageError, match=said) as caught:
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
        ("order: &a [b.patch]\nposted: *a", r"the alias \*a is used"),
        ("order: " + "[" * 20000, "not valid YAML|nested too deep"),
        ("order: []", "no patch in it"),
    ):
        described.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_series(folder)


def test_the_projects_series() -> None:
    folders = sorted(path.parent for path in (PROJECT / "patches").glob("*/series.yaml"))
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
    with pytest.raises(UsageError, match="otherwise than with -p1") as caught:
        read_series(folder)
    assert caught.value.where == f"{listed}:1"


def test_an_mbox_of_b4(
    tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store
) -> None:
    cover = b"From A Mon Sep 17 00:00:00 2001\nFrom: A\nSubject: [PATCH v3 0/3] all\n\n a | 2\n\n"
    first, second, third = numbered(patches)
    mbox = tmp_path / "v3_series.mbx"
    mbox.write_bytes(cover + third + second + first)
    assert "return 111;" in applied(tree, mbox, store)[HMEM]
    mbox.write_bytes(first + third)
    with pytest.raises(UsageError, match="patch 2 of 3 is not in it") as caught:
        read_series(mbox)
    assert "b4 am" in caught.value.hint
    mbox.write_bytes(first + second + third + first)
    assert len(read_series(mbox).patches) == 3
    mbox.write_bytes(first + second + third + first.replace(b"return 11;", b"return 12;"))
    with pytest.raises(UsageError, match="more than one series"):
        read_series(mbox)


def mail(subject: str, body: bytes) -> bytes:
    head = f"From A Mon Sep 17 00:00:00 2001\nFrom: A\nSubject: {subject}\n\n"
    return head.encode() + body.partition(b"\n\n")[2] + b"\n"


def quoted(body: bytes) -> bytes:
    return b"\n\n> " + body.partition(b"\n\n")[2].replace(b"\n", b"\n> ")


def test_a_thread_with_several_series(patches: tuple[bytes, ...], tmp_path: Path) -> None:
    first, second, third = patches
    thread = tmp_path / "thread.mbox"
    thread.write_bytes(
        mail("[PATCH v10 2/2] b", second) + mail("[PATCH v9 1/1] old", third)
        + mail("Re: [PATCH v10 2/2] b", quoted(second)) + mail("[RFC PATCH v10 1/2] a", first)
        + mail("Re: [PATCH v10 1/2] a", third)
    )  # fmt: skip
    newest = read_series(thread)
    assert [one.name for one in newest.patches] == ["[RFC PATCH v10 1/2] a", "[PATCH v10 2/2] b"]
    assert newest.left_out.splitlines() == [
        "taken from the mails:", "  [RFC PATCH v10 1/2] a", "  [PATCH v10 2/2] b",
        "left out:", "  v9: [PATCH v9 1/1] old", "  a reply: Re: [PATCH v10 1/2] a",
    ]  # fmt: skip
    older = read_series(tmp_path / "thread.mbox@v9")
    assert [one.name for one in older.patches] == ["[PATCH v9 1/1] old"]
    with pytest.raises(UsageError, match="no series of version 8") as caught:
        read_series(tmp_path / "thread.mbox@v8")
    assert caught.value.hint == "versions that it has: v9, v10"


def test_a_diff_in_a_reply_is_taken_when_there_is_no_other(
    patches: tuple[bytes, ...], tmp_path: Path
) -> None:
    reply = mail("Re: [PATCH v10 1/2] a", patches[0])
    path = one(tmp_path, mail("Re: [PATCH v10 1/2] a", quoted(patches[1])) + reply)
    series = read_series(path)
    assert [patch.name for patch in series.patches] == ["Re: [PATCH v10 1/2] a"]
    assert b"\n> diff" not in series.patches[0].data
    assert series.left_out == ""


def test_single_patches_of_several_versions(patches: tuple[bytes, ...], tmp_path: Path) -> None:
    subjects = ("[PATCH] a", "[PATCH v2] a", "[PATCH] b")
    path = one(tmp_path, b"".join(map(mail, subjects, patches)))
    series = read_series(path)
    assert [patch.name for patch in series.patches] == ["[PATCH v2] a", "[PATCH] b"]
    assert "v1: [PATCH] a" in series.left_out


def one(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "one.mbx"
    path.write_bytes(data)
    return path


def test_an_empty_mbox(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the file is empty") as caught:
        read_series(one(tmp_path, b"\n"))
    assert "b4 am" in caught.value.hint
    with pytest.raises(UsageError, match="no patch in it"):
        read_series(one(tmp_path, b"From A Mon Sep 17 00:00:00 2001\nSubject: x\n\nhello\n"))
    with pytest.raises(UsageError, match="no such file or folder"):
        read_series(tmp_path / "none")
    with pytest.raises(UsageError, match="no patch in it"):
        read_series(tmp_path)


def test_crlf(patches: tuple[bytes, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CRLF line ends") as caught:
        read_series(one(tmp_path, patches[0].replace(b"\n", b"\r\n")))
    assert "dos2unix" in caught.value.hint
    assert "hmem: one" in (caught.value.where or "")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"return 11;", b"return 11; // \xfc", "it is not utf-8"),
        (b"return 11;", b"return 11; // \xef\xbf\xbd", "replacement characters"),
        (b"+\treturn 11;", b"+=09return 11;", "quoted-printable, undeclared"),
    ],
)
def test_a_mangled_encoding(
    old: bytes, new: bytes, words: str, patches: tuple[bytes, ...], tmp_path: Path
) -> None:
    assert old in patches[0]
    with pytest.raises(UsageError, match="encoding of the patch is mangled") as caught:
        read_series(one(tmp_path, patches[0].replace(old, new)))
    assert words in caught.value.message


def test_utf_16(patches: tuple[bytes, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not text in UTF-8"):
        read_series(one(tmp_path, patches[0].decode().encode("utf-16")))


def test_encodings_that_are_declared(
    tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store
) -> None:
    import base64
    import quopri

    head, _, body = patches[0].partition(b"\n\n")
    for name, encoded in (("quoted-printable", quopri.encodestring(body)), ("base64", b"")):
        text = encoded or base64.encodebytes(body)
        declared = (
            b"\nMIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\n"
            b"Content-Transfer-Encoding: " + name.encode()
        )
        path = one(tmp_path, head + declared + b"\n\n" + text)
        assert "return 11;" in applied(tree, path, store)[HMEM]


def refused(tree: Path, path: Path, store: Store) -> tuple[UnbuildableError, SourceState]:
    source, state = look(str(tree), store, Listener(), "build:x")
    with pytest.raises(UnbuildableError) as caught:
        series_commit(source, state, read_series(path), Listener())
    assert not source.files.exists()  # no file is written for a series that does not apply
    assert not (source.folder / "applying").exists()
    return caught.value, state


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


def flowed(patch: bytes) -> bytes:
    """A patch as a mail program of format=flowed sends it."""
    head, at, hunks = patch.partition(b"\n@@")
    return head + at + hunks.replace(b"\n ", b"\n  ")


def expanded(patch: bytes) -> bytes:
    head, at, hunks = patch.partition(b"\n@@")
    return head + at + hunks.replace(b"\n \t", b"\n         ")


@pytest.mark.parametrize(
    ("damage", "said"),
    [(flowed, "format=flowed, RFC 3676"), (expanded, "in white space alone")],
)
def test_white_space_that_a_mailer_changed_is_repaired_on_request_only(
    damage: Callable[[bytes], bytes], said: str, tree: Path, tmp_path: Path, store: Store
) -> None:
    work = git_fake(tmp_path / "work")
    patch = format_patch(work, {HMEM: ("/* Two. */", "/* 2. */")}, "two")
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "a.patch").write_bytes(damage(patch))
    assert damage(patch) != patch
    described = folder / "series.yaml"
    described.write_text("base: v1\norder: [a.patch]\n")
    error, _ = refused(tree, folder, store)
    assert said in error.message
    assert "repair_whitespace: true" in error.hint
    unrepaired = read_series(folder)
    described.write_text("order: [a.patch]\nrepair_whitespace: true\n")
    text = (work / HMEM).read_text()
    assert applied(tree, folder, store)[HMEM] == text
    # A kernel that was built from the repaired patch is not one of the patch as it is.
    assert read_series(folder).digest != unrepaired.digest
    assert refused_message(tree, unrepaired, store) == error.message


def refused_message(tree: Path, series: Series, store: Store) -> str:
    source, state = look(str(tree), store, Listener(), "build:x")
    with pytest.raises(UnbuildableError) as caught:
        series_commit(source, state, series, Listener())
    return caught.value.message


def test_a_flowed_patch_for_another_base(
    tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store
) -> None:
    edit(tree, "return 1;", "return 99;")
    error, _ = refused(tree, one(tmp_path, flowed(patches[0])), store)
    assert "format=flowed, RFC 3676" in error.message
    assert "without it the patch does not apply either" in error.message
    assert "find the base" in error.hint
    error, _ = refused(tree, one(tmp_path, patches[0]), store)
    assert "RFC 3676" not in error.message


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


def test_what_a_series_is_made_of(tmp_path: Path, patches: tuple[bytes, ...]) -> None:
    series = read_series(one(tmp_path, patches[0]))
    same = Series(Path("/elsewhere"), series.patches)
    assert series.digest == same.digest
    assert series.digest != read_series(one(tmp_path, patches[1])).digest
