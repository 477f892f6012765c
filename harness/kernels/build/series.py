# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a series of patches: a folder with its order, or an mbox as `b4 am` writes it."""

from __future__ import annotations

import email
import email.policy
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email.message import EmailMessage
from pathlib import Path

from harness.core.errors import UsageError
from harness.kernels.build.mail_thread import FETCH_HINT, Mail, choose_series, told
from harness.kernels.build.series_description import GUIDE, SeriesDescription
from harness.scenario.scenario import Policy
from harness.scenario.yaml_document import read_document

_DESCRIPTION = "series.yaml"
_QUILT = "series"
_HINT = (
    "a series is a folder with series.yaml, a quilt series file or numbered .patch files, or an "
    "mbox such as b4 am writes"
)
# The version of -v need not be a number alone (git 2.33): v4.1-0002-x.patch, v3rev2-0002-x.patch.
_FILE = re.compile(r"(?:v(\d[^-]*)-)?(\d+)(.*)\.patch", re.S)
_DIFF = re.compile(rb"^(diff --git |--- a/|--- /dev/null)", re.M)


@dataclass(frozen=True)
class Patch:
    """One patch, as it will be given to `git mailinfo`.

    Attributes:
        name: its file, or its subject.
        data: a mail message.
    """

    name: str
    data: bytes


@dataclass(frozen=True)
class Series:
    """An ordered set of patches.

    Attributes:
        path: what the user named.
        patches: in order.
        base: what it says that it is for, or None.
        policy: the policy that it implements, or None where it does not say.
        repair_whitespace: apply patches of which a mailer has changed the context lines.
        left_out: which patches of an mbox are not in it, for people; empty when all are.
    """

    path: Path
    patches: tuple[Patch, ...]
    base: str | None = None
    policy: Policy | None = None
    repair_whitespace: bool = False
    left_out: str = ""

    def upto(self, count: int | None) -> Series:
        """The first patches of it.

        Raises:
            UsageError: it has fewer.
        """
        if count is None:
            return self
        if not 0 <= count <= len(self.patches):
            raise UsageError(
                f"the series has {len(self.patches)} patches",
                where=f"--upto {count}",
                hint=f"name a number from 0 to {len(self.patches)}",
            )
        return replace(self, patches=self.patches[:count])

    @property
    def digest(self) -> str:
        """Hash of the patches and their order, hexadecimal."""
        digest = hashlib.sha256(b"repaired" if self.repair_whitespace else b"")
        for patch in self.patches:
            digest.update(hashlib.sha256(patch.data).digest())
        return digest.hexdigest()


def read_series(path: Path) -> Series:
    """Read a series; nothing of it is applied.

    Raises:
        UsageError: it is not one, it is empty, or a mailer has mangled it.
    """
    path = path.expanduser().absolute()
    file, version = _split_version(path)
    if path.is_dir():
        series = _read_folder(path)
    elif file.is_file():
        series = replace(_read_mbox(file, version), path=path)
    else:
        raise UsageError("there is no such file or folder", where=str(path), hint=_HINT)
    if not series.patches:
        raise UsageError("there is no patch in it", where=str(path), hint=_HINT)
    return series


def _split_version(path: Path) -> tuple[Path, int | None]:
    """The path of an mbox and the version of `MBOX@vN`."""
    match = None if path.exists() else re.fullmatch(r"(.+)@v(\d+)", str(path))
    return (Path(match[1]), int(match[2])) if match else (path, None)


def subject_of(patch: Patch) -> str:
    """The subject of a patch, or the name of its file."""
    return _subject(patch.data) or patch.name


def _read_folder(folder: Path) -> Series:
    described, quilt = folder / _DESCRIPTION, folder / _QUILT
    about = SeriesDescription(order=())
    if described.is_file():
        about = _read_description(described)
        names: Sequence[str] = about.order
        listed = str(described)
    elif quilt.is_file():
        names, listed = _read_quilt(quilt), str(quilt)
    else:
        names, listed = _numbered_files(folder), str(folder)
    patches = []
    for name in names:
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            hint = "name a file in the folder, without .. in its path"
            raise UsageError(f"a patch outside the series' folder: {name}", where=listed, hint=hint)
        if not file.is_file():
            raise UsageError(f"there is no patch {name}", where=listed, hint=_listing(folder))
        patches.append(_checked(name, file.read_bytes(), str(file)))
    return Series(folder, tuple(patches), about.base or None, about.policy, about.repair_whitespace)


def _numbered_files(folder: Path) -> list[str]:
    """Names of patches as `git format-patch` gives them, also with -v, in their order."""
    found: dict[str | None, dict[int, list[str]]] = {}
    for name in sorted(one.name for one in folder.glob("*.patch")):
        match = _FILE.fullmatch(name)
        if match is not None and not match[3].startswith("-cover-letter"):
            found.setdefault(match[1], {}).setdefault(int(match[2]), []).append(name)
    if len(found) > 1:
        versions = (f"v{one}" if one else "one without a version" for one in found)
        raise UsageError(
            f"more than one version of a series is in it: {', '.join(versions)}",
            where=str(folder),
            hint="name a folder with the patches of one version alone, or list them in order in a "
            f"file {_QUILT!r} there",
        )
    numbered = next(iter(found.values()), {})
    for number, names in numbered.items():
        if len(names) > 1:
            raise UsageError(
                f"more than one patch {number} is in it: {', '.join(names)}",
                where=str(folder),
                hint="remove what is left of before, or list the patches in order in a file "
                f"{_QUILT!r} there",
            )
    return [numbered[number][0] for number in sorted(numbered)]


def _read_description(path: Path) -> SeriesDescription:
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise UsageError(f"not text: {error}", where=str(path), hint=_HINT) from None
    return read_document(text, str(path), SeriesDescription, GUIDE).value


def _read_quilt(path: Path) -> list[str]:
    names = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        words = line.partition("#")[0].split()
        if len(words) > 1 and words[1:] != ["-p1"]:
            raise UsageError(
                f"a patch that is applied otherwise than with -p1: {line.strip()}",
                where=f"{path}:{number}",
                hint="refresh it with quilt refresh -p ab",
            )
        names += words[:1]
    return names


def _read_mbox(path: Path, version: int | None) -> Series:
    data = path.read_bytes()
    if not data.strip():
        hint = f"nothing was written to it; {FETCH_HINT}"
        raise UsageError("the file is empty", where=str(path), hint=hint)
    parts = re.split(rb"^(?=From \S+ .*\d{4}\r?$)", data, flags=re.M)
    mails = [
        Mail(_subject(part) or f"message {number}", part)
        for number, part in enumerate((part for part in parts if part.strip()), start=1)
        if b"\0" in part[:400] or _has_diff(part)
    ]
    taken, left = choose_series(mails, version, path)
    patches = [_checked(one.subject, one.data, f"{path}, {one.subject}") for one in taken]
    return Series(path, tuple(patches), left_out=told(taken, left))


def _subject(message: bytes) -> str | None:
    parsed = _parsed(message)
    subject = parsed["Subject"]
    return " ".join(str(subject).split()) if subject else None


def _has_diff(message: bytes) -> bool:
    return _DIFF.search(_content(message)) is not None


def _parsed(message: bytes) -> EmailMessage:
    head = message.partition(b"\n")[2] if message.startswith(b"From ") else message
    parsed = email.message_from_bytes(head, policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


def _content(message: bytes) -> bytes:
    """The text of a message as bytes, its transfer encoding undone."""
    parsed = _parsed(message)
    if not parsed.keys():
        return message
    parts = [one for one in parsed.walk() if one.get_content_maintype() == "text"]
    return b"\n".join(bytes(one.get_payload(decode=True) or b"") for one in parts)


def _checked(name: str, data: bytes, where: str) -> Patch:
    """A patch of which nothing says that a mailer or an editor has changed it.

    Raises:
        UsageError: it was mangled, or is no patch.
    """
    if not data.strip():
        raise UsageError("the patch is empty", where=where, hint=FETCH_HINT)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        hint = "it was written as UTF-16, perhaps by a shell's redirection; save it as UTF-8"
        raise UsageError("the patch is not text in UTF-8", where=where, hint=hint)
    content = _content(data)
    diff = _DIFF.search(content)
    if diff is None:
        raise UsageError("there is no diff in it", where=where, hint=FETCH_HINT)
    body = content[diff.start() :]
    if b"\r\n" in body:
        raise UsageError(
            "the patch has CRLF line ends, the kernel's files do not",
            where=where,
            hint=f"a mailer or an editor added them: dos2unix, or {FETCH_HINT}",
        )
    _require_encoding(data, body, where)
    if not re.search(rb"^(From|Subject): ", data, re.M):
        # git mailinfo wants a mail; quilt's patches are none.
        head = f"From: harness <harness@localhost>\nSubject: [PATCH] {name}\n\n"
        data = head.encode() + data
    return Patch(name, data)


def _require_encoding(data: bytes, body: bytes, where: str) -> None:
    parsed = _parsed(data)
    charset = parsed.get_content_charset() or "utf-8"
    try:
        text = body.decode(charset)
    except (LookupError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the encoding of the patch is mangled: it is not {charset} ({error})",
            where=where,
            hint=FETCH_HINT,
        ) from None
    quoted = re.search(r"^[-+ ].*(=3D|=20$|=09\w)", text, re.M)
    if "�" in text or (quoted and "Content-Transfer-Encoding" not in parsed):
        what = "has replacement characters" if "�" in text else "is quoted-printable, undeclared"
        raise UsageError(
            f"the encoding of the patch is mangled: it {what}", where=where, hint=FETCH_HINT
        )


def _listing(folder: Path) -> str:
    names = sorted(one.name for one in folder.glob("*.patch"))
    return f"there are {', '.join(names) or 'no .patch files'}"
