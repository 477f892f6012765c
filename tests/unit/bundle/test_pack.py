# SPDX-License-Identifier: GPL-2.0-or-later
"""Bundles: evidence comes out as it went in, and nothing is written from a file that is not one."""

from __future__ import annotations

import errno
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from evidence_fixtures import make_evidence

from harness.bundle import pack as pack_module
from harness.bundle.pack import pack, unpack
from harness.core.errors import UsageError
from harness.core.files import SUMS

Contents = dict[str, bytes]


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    return make_evidence(tmp_path / "evidence", "exact_cover-7.2")


@pytest.fixture
def bundle(evidence: Path, tmp_path: Path) -> Path:
    return pack(evidence, tmp_path / "run.zip").path


def contents_of(bundle: Path) -> Contents:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def files_below(folder: Path) -> Contents:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def with_sums(contents: Contents) -> Contents:
    """The same with a list that names all of them rightly."""
    files = {name: data for name, data in contents.items() if name != SUMS}
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    return {SUMS: "".join(lines).encode(), **files}


def written(path: Path, contents: Contents, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def assert_refused(bundle: Path, words: str) -> None:
    """It is refused with these words, and nothing is written."""
    folder = bundle.parent / "out"
    before = set(bundle.parent.rglob("*"))
    with pytest.raises(UsageError) as caught:
        unpack(bundle, folder)
    assert words in str(caught.value)
    assert caught.value.where == str(bundle)
    assert set(bundle.parent.rglob("*")) == before


def test_evidence_comes_out_as_it_went_in(evidence: Path, bundle: Path, tmp_path: Path) -> None:
    unpack(bundle, tmp_path / "out")
    assert files_below(tmp_path / "out") == files_below(evidence)
    again = pack(evidence, tmp_path / "again.zip").path
    assert again.read_bytes() == bundle.read_bytes(), "the same evidence is the same bytes"


def test_the_first_member_names_all_others(bundle: Path) -> None:
    contents = contents_of(bundle)
    assert next(iter(contents)) == SUMS
    assert contents == with_sums(contents)


def test_links_are_not_packed(evidence: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (evidence / "link").symlink_to(tmp_path / "secret")
    assert "link" not in contents_of(pack(evidence, tmp_path / "a.zip").path)


@pytest.mark.parametrize("name", ["verdict.json", "scenario.yaml", "profile.yaml", "layout.json"])
def test_evidence_that_cannot_be_replayed_is_refused(
    evidence: Path, bundle: Path, tmp_path: Path, name: str
) -> None:
    contents = contents_of(bundle)
    del contents[name]
    assert_refused(written(tmp_path / "b.zip", with_sums(contents)), f"files are missing: {name}")
    (evidence / name).unlink()
    with pytest.raises(UsageError, match=f"files are missing: {name}"):
        pack(evidence, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_no_file_is_overwritten(evidence: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("mine")
    with pytest.raises(UsageError, match="the file exists"):
        pack(evidence, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_text() == "mine"


def test_a_full_disk_leaves_no_file(
    evidence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_words: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    before = set(tmp_path.iterdir())
    with pytest.raises(UsageError, match="cannot be written: No space left"):
        pack(evidence, tmp_path / "a.zip")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "name",
    [
        "../escaped",
        "/tmp/escaped",
        "a/../../escaped",
        "a\\..\\escaped",
        ".hidden",
        "a//b",
        "é",
        "a\n",
    ],
)
def test_no_file_is_written_outside_the_folder(bundle: Path, name: str) -> None:
    contents = with_sums({**contents_of(bundle), name: b"x"})
    assert_refused(written(bundle.with_name("b.zip"), contents), "invalid name")


def edited(name: str, data: bytes | None) -> Callable[[Contents], Contents]:
    """Change, add or (None) remove a file, with the sums as they were."""

    def edit(contents: Contents) -> Contents:
        files = {**contents, name: data}
        return {key: value for key, value in files.items() if value is not None}

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (edited("verdict.json", b"{}"), "verdict.json is damaged"),
        (edited("more", b"x"), "other files than SHA256SUMS names"),
        (edited("qemu.argv", None), "other files than SHA256SUMS names"),
        (edited(SUMS, None), "other files than SHA256SUMS names"),
        (edited(SUMS, b"sums\n"), "other files than SHA256SUMS names"),
        (edited(SUMS, b"\xff"), "not a bundle"),
        (lambda files: with_sums({}), "other files than SHA256SUMS names"),
        (lambda files: {**files, **{f"f{n}": b"" for n in range(2001)}}, "larger than"),
    ],
)
def test_a_bundle_that_was_edited_is_refused(
    bundle: Path, edit: Callable[[Contents], Contents], words: str
) -> None:
    assert_refused(written(bundle.with_name("b.zip"), edit(contents_of(bundle))), words)


def test_a_bundle_that_is_too_large_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(map(len, contents_of(bundle).values()))
    monkeypatch.setattr(pack_module, "_MOST_BYTES", total - 1)
    assert_refused(bundle, "larger than")
    monkeypatch.setattr(pack_module, "_MOST_BYTES", total)
    unpack(bundle, bundle.parent / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_compression_is_refused(bundle: Path, method: int) -> None:
    copy = written(bundle.with_name("b.zip"), contents_of(bundle), method)
    assert_refused(copy, "compressed by an unknown method")


def test_a_name_that_occurs_twice_is_refused(bundle: Path) -> None:
    with (
        zipfile.ZipFile(bundle, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("verdict.json", archive.read("verdict.json"))
    assert_refused(bundle, "invalid name 'verdict.json'")


def test_a_member_that_decompresses_to_more_than_it_states_is_refused(bundle: Path) -> None:
    data = b"0" * (8 << 20)
    lie = with_sums({**contents_of(bundle), "bomb": data[:10]})
    path = written(bundle.with_name("b.zip"), {**lie, "bomb": data})
    stated = len(data).to_bytes(4, "little")
    content = path.read_bytes()
    assert content.count(stated) == 2, "the size in both headers"
    path.write_bytes(content.replace(stated, (10).to_bytes(4, "little")))
    assert_refused(path, "not a bundle: Bad CRC-32")


def test_a_link_in_a_bundle_becomes_a_file(bundle: Path) -> None:
    contents = with_sums({**contents_of(bundle), "link": b"/etc/passwd"})
    path = bundle.with_name("b.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = 0o120777 << 16 if name == "link" else 0o644 << 16
            archive.writestr(member, data)
    unpack(path, path.parent / "out")
    link = path.parent / "out" / "link"
    assert not link.is_symlink() and link.read_bytes() == b"/etc/passwd"


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"text", b"\0" * 10_000])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    assert_refused(tmp_path / "x.zip", "not a bundle")


def test_a_truncated_or_damaged_bundle_is_noticed(
    evidence: Path, bundle: Path, tmp_path: Path
) -> None:
    whole = bundle.read_bytes()
    for share in range(1, 8):
        bundle.write_bytes(whole[: len(whole) * share // 8])
        assert_refused(bundle, "not a bundle")
    for place in range(200, len(whole) - 4000, 997):
        bundle.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            unpack(bundle, tmp_path / "out")
        except UsageError:
            continue
        # The byte has no meaning for the contents, such as a date.
        assert files_below(tmp_path / "out") == files_below(evidence)
