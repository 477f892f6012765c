# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_sources import HMEM, Listener, builder, edit, format_patch, git_fake
from series_fixtures import applied, one, patches, refused, store, tree

from harness.core.cache import Store
from harness.core.errors import UnbuildableError, UsageError
from harness.kernels.build.apply_series import series_commit
from harness.kernels.build.series import Series, read_series
from harness.kernels.build.tree import look

__all__ = ["builder", "patches", "store", "tree"]
KMEM = "drivers/dax/kmem.c"


def numbered(subjects: tuple[bytes, ...], total: int | None = None) -> list[bytes]:
    total = total or len(subjects)
    return [
        patch.replace(b"[PATCH]", b"[PATCH v3 %d/%d]" % (number, total))
        for number, patch in enumerate(subjects, start=1)
    ]


def test_an_mbox_of_b4(
    tree: Path, patches: tuple[bytes, ...], tmp_path: Path, store: Store
) -> None:
    cover = b"From A Mon Sep 17 00:00:00 2001\nFrom: A\nSubject: [PATCH v3 0/3] all\n\n a | 2\n\n"
    first, second, third = numbered(patches)
    mbox = tmp_path / "v3_series.mbx"
    mbox.write_bytes(cover + third + second + first)
    assert "return 111;" in applied(tree, mbox, store)[HMEM]
    mbox.write_bytes(first + third)
    with pytest.raises(UsageError, match="lacks patch 2 of 3") as caught:
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
    assert [patch.name for patch in newest.patches] == [
        "[RFC PATCH v10 1/2] a",
        "[PATCH v10 2/2] b",
    ]
    assert newest.left_out.splitlines() == [
        "taken from the mails:", "  [RFC PATCH v10 1/2] a", "  [PATCH v10 2/2] b",
        "left out:", "  v9: [PATCH v9 1/1] old", "  a reply: Re: [PATCH v10 1/2] a",
    ]  # fmt: skip
    older = read_series(tmp_path / "thread.mbox@v9")
    assert [patch.name for patch in older.patches] == ["[PATCH v9 1/1] old"]
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


def test_an_empty_mbox(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the file is empty") as caught:
        read_series(one(tmp_path, b"\n"))
    assert "b4 am" in caught.value.hint
    with pytest.raises(UsageError, match="has no patch"):
        read_series(one(tmp_path, b"From A Mon Sep 17 00:00:00 2001\nSubject: x\n\nhello\n"))
    with pytest.raises(UsageError, match="no such file or folder"):
        read_series(tmp_path / "none")
    with pytest.raises(UsageError, match="has no patch"):
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


def flowed(patch: bytes) -> bytes:
    """A patch as a mail program of format=flowed sends it."""
    head, at, hunks = patch.partition(b"\n@@")
    return head + at + hunks.replace(b"\n ", b"\n  ")


def expanded(patch: bytes) -> bytes:
    head, at, hunks = patch.partition(b"\n@@")
    return head + at + hunks.replace(b"\n \t", b"\n         ")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(flowed, "format=flowed, RFC 3676"), (expanded, "changed the white space")],
)
def test_white_space_that_a_mailer_changed_is_repaired_on_request_only(
    damage: Callable[[bytes], bytes], message: str, tree: Path, tmp_path: Path, store: Store
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
    assert message in error.message
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


def test_a_patch_without_a_number_beside_a_series_is_left_out(
    patches: tuple[bytes, ...], tmp_path: Path
) -> None:
    first, second, third = patches
    thread = tmp_path / "thread.mbox"
    stray = mail("[PATCH] other", third)
    last, begin = mail("[PATCH v4 2/2] b", second), mail("[PATCH v4 1/2] a", first)
    thread.write_bytes(last + begin + stray)
    series = read_series(thread)
    assert [patch.name for patch in series.patches] == ["[PATCH v4 1/2] a", "[PATCH v4 2/2] b"]
    assert "[PATCH] other" in series.left_out
    thread.write_bytes(begin + stray)
    with pytest.raises(UsageError, match="lacks patch 2 of 2"):
        read_series(thread)
