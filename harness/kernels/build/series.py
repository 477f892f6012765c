# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a series of patches: a folder with its order, or an mbox as `b4 am` writes it."""

from __future__ import annotations

import email
import email.policy
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email.message import EmailMessage
from itertools import groupby
from pathlib import Path

import msgspec

from harness.core.errors import UsageError
from harness.core.files import read_text
from harness.scenario.scenario import Policy
from harness.scenario.yaml_document import read_document

GUIDE = "docs/scenarios.md"
_DESCRIPTION = "series.yaml"
_QUILT = "series"
_FETCH_HINT = "fetch the series again with b4 am, which takes it from the list's archive"
_HINT = (
    "a series is a folder with series.yaml, a quilt series file or numbered .patch files, or an "
    "mbox such as b4 am writes"
)
# The version of -v need not be a number alone (git 2.33): v4.1-0002-x.patch, v3rev2-0002-x.patch.
_FILE = re.compile(r"(?:v(\d[^-]*)-)?(\d+)(.*)\.patch", re.S)
_DIFF = re.compile(rb"^(diff --git |--- a/|--- /dev/null)", re.M)
_TAG = re.compile(r"\s*\[([^\]]*)\]")
_NUMBER = re.compile(r"(?:^|[\s,])0*(\d+)/0*(\d+)\s*$")
_VERSION = re.compile(r"(?:^|[\s,])v(\d+)(?=[\s,]|$)", re.I)
_REPLY = re.compile(r"\s*(?:re|fwd?|aw)\s*:", re.I)


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The failure that a series with a known bug must cause.

    Attributes:
        scenario: it must FAIL.
        rule: the rule that is broken.
        finding: a regular expression of that finding's text.
        rules: all rules that are broken in each run.
        ci: tests/guest/test_mutants.py boots it; ci/mutants runs all.
    """

    scenario: str
    rule: str
    finding: str
    rules: tuple[str, ...]
    ci: bool = False


class SeriesDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file series.yaml of a folder of patches, as docs/scenarios.md describes it.

    Attributes:
        order: the names of the patch files, in order.
        base: the kernel that the patches are for, as text; may be empty.
        policy: the policy whose rules it implements.
        posted: the address of the posting.
        mutant: for a series that contains a known bug.
        repair_whitespace: apply patches whose context lines a mailer has changed.
    """

    order: tuple[str, ...]
    base: str = ""
    policy: Policy | None = None
    summary: str = ""
    why: str = ""
    posted: str = ""
    mutant: Mutant | None = None
    repair_whitespace: bool = False


@dataclass(frozen=True)
class Patch:
    """One patch, as `git mailinfo` reads it.

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
        path: as the user named it.
        patches: in order.
        base: the kernel that it is for, as text, or None.
        policy: the policy that it implements, or None where it does not name one.
        repair_whitespace: apply patches whose context lines a mailer has changed.
        left_out: the patches of an mbox that are not in it, as text; empty when all are.
    """

    path: Path
    patches: tuple[Patch, ...]
    base: str | None = None
    policy: Policy | None = None
    repair_whitespace: bool = False
    left_out: str = ""

    def upto(self, count: int | None) -> Series:
        """Return the series with only its first patches.

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
        """The hash of the patches and their order, hexadecimal."""
        digest = hashlib.sha256(b"repaired" if self.repair_whitespace else b"")
        for patch in self.patches:
            digest.update(hashlib.sha256(patch.data).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Mail:
    """A mail that has a diff."""

    subject: str
    data: bytes

    @property
    def is_reply(self) -> bool:
        """True if it answers another mail."""
        return _REPLY.match(self.subject) is not None

    @property
    def version(self) -> int:
        """The version of its series, 1 where the subject has none."""
        match = _VERSION.search(self._tag)
        return int(match[1]) if match else 1

    @property
    def number(self) -> tuple[int, int] | None:
        """Its number in the series, and the number of patches in that."""
        match = _NUMBER.search(self._tag)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def title(self) -> str:
        """The subject without the brackets in front of it."""
        return _TAG.sub("", self.subject, count=1).strip()

    @property
    def _tag(self) -> str:
        match = _TAG.match(self.subject)
        return match[1] if match else ""


def read_series(path: Path) -> Series:
    """Read a series, and check its patches; none is applied.

    Raises:
        UsageError: it is not a series, it is empty, or a mailer has mangled it.
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
        raise UsageError("the series has no patch", where=str(path), hint=_HINT)
    return series


def _split_version(path: Path) -> tuple[Path, int | None]:
    """Return the path of an mbox and the version of `MBOX@vN`."""
    match = None if path.exists() else re.fullmatch(r"(.+)@v(\d+)", str(path))
    return (Path(match[1]), int(match[2])) if match else (path, None)


def subject_of(patch: Patch) -> str:
    """Return the subject of a patch, or the name of its file."""
    return _subject(patch.data) or patch.name


def _read_folder(folder: Path) -> Series:
    described, quilt = folder / _DESCRIPTION, folder / _QUILT
    about = SeriesDescription(order=())
    if described.is_file():
        text = read_text(described)
        about = read_document(text, str(described), SeriesDescription, GUIDE).value
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
    """Return the names of patches as `git format-patch` gives them, also with -v, in order."""
    found: dict[str | None, dict[int, list[str]]] = {}
    for name in sorted(path.name for path in folder.glob("*.patch")):
        match = _FILE.fullmatch(name)
        if match is not None and not match[3].startswith("-cover-letter"):
            found.setdefault(match[1], {}).setdefault(int(match[2]), []).append(name)
    if len(found) > 1:
        versions = (f"v{version}" if version else "one without a version" for version in found)
        raise UsageError(
            f"the folder has more than one version of a series: {', '.join(versions)}",
            where=str(folder),
            hint="name a folder with the patches of one version, or list them in order in a "
            f"file {_QUILT!r} there",
        )
    numbered = next(iter(found.values()), {})
    for number, names in numbered.items():
        if len(names) > 1:
            raise UsageError(
                f"the folder has more than one patch {number}: {', '.join(names)}",
                where=str(folder),
                hint=f"remove old patches, or list the patches in order in a file {_QUILT!r} there",
            )
    return [numbered[number][0] for number in sorted(numbered)]


def _read_quilt(path: Path) -> list[str]:
    names = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        words = line.partition("#")[0].split()
        if len(words) > 1 and words[1:] != ["-p1"]:
            raise UsageError(
                f"a patch that is not applied with -p1: {line.strip()}",
                where=f"{path}:{number}",
                hint="refresh it with quilt refresh -p ab",
            )
        names += words[:1]
    return names


def _read_mbox(path: Path, version: int | None) -> Series:
    data = path.read_bytes()
    if not data.strip():
        hint = f"the mail program wrote nothing; {_FETCH_HINT}"
        raise UsageError("the file is empty", where=str(path), hint=hint)
    parts = re.split(rb"^(?=From \S+ .*\d{4}\r?$)", data, flags=re.M)
    mails = [
        Mail(_subject(part) or f"message {number}", part)
        for number, part in enumerate((part for part in parts if part.strip()), start=1)
        if b"\0" in part[:400] or _has_diff(part)
    ]
    taken, left = choose_series(mails, version, path)
    patches = [_checked(mail.subject, mail.data, f"{path}, {mail.subject}") for mail in taken]
    return Series(path, tuple(patches), left_out=_left_out(taken, left))


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
    """Return the text of a message as bytes, with its transfer encoding decoded."""
    parsed = _parsed(message)
    if not parsed.keys():
        return message
    parts = [part for part in parsed.walk() if part.get_content_maintype() == "text"]
    return b"\n".join(bytes(part.get_payload(decode=True) or b"") for part in parts)


def _checked(name: str, data: bytes, where: str) -> Patch:
    """Check a patch for changes that mailers and editors make.

    Raises:
        UsageError: it was mangled, or is no patch.
    """
    if not data.strip():
        raise UsageError("the patch is empty", where=where, hint=_FETCH_HINT)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        hint = "it was written as UTF-16, perhaps by a shell's redirection; save it as UTF-8"
        raise UsageError("the patch is not text in UTF-8", where=where, hint=hint)
    content = _content(data)
    diff = _DIFF.search(content)
    if diff is None:
        raise UsageError("the patch has no diff", where=where, hint=_FETCH_HINT)
    body = content[diff.start() :]
    if b"\r\n" in body:
        raise UsageError(
            "the patch has CRLF line ends, the kernel's files do not",
            where=where,
            hint=f"a mailer or an editor added them: dos2unix, or {_FETCH_HINT}",
        )
    _require_encoding(data, body, where)
    if not re.search(rb"^(From|Subject): ", data, re.M):
        # git mailinfo reads mails; patches of quilt have no headers.
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
            hint=_FETCH_HINT,
        ) from None
    quoted = re.search(r"^[-+ ].*(=3D|=20$|=09\w)", text, re.M)
    if "�" in text or (quoted and "Content-Transfer-Encoding" not in parsed):
        what = "has replacement characters" if "�" in text else "is quoted-printable, undeclared"
        raise UsageError(
            f"the encoding of the patch is mangled: it {what}", where=where, hint=_FETCH_HINT
        )


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.patch"))
    return f"there are {', '.join(names) or 'no .patch files'}"


def choose_series(
    mails: Sequence[Mail], version: int | None, path: Path
) -> tuple[tuple[Mail, ...], tuple[Mail, ...]]:
    """Return the patches of one series, in order, and the other mails with a diff.

    Args:
        mails: the mails of an mbox with a diff that is not quoted.
        version: the requested version; None for the newest.
        path: of the mbox, for messages.

    Raises:
        UsageError: there is no such version, several series have it, or a patch is missing.
    """
    patches = [mail for mail in dict.fromkeys(mails) if not mail.is_reply] or list(mails)
    numbered = [mail for mail in patches if mail.number is not None]
    versions = sorted({mail.version for mail in numbered or patches})
    if version is not None and version not in versions:
        hint = f"versions that it has: {', '.join(f'v{number}' for number in versions) or 'none'}"
        text = f"the mbox has no series of version {version}"
        raise UsageError(text, where=str(path), hint=hint)
    if version is not None or len({mail.version for mail in numbered}) > 1:
        chosen = versions[-1] if version is None else version
        patches = [mail for mail in numbered or patches if mail.version == chosen]
    elif not numbered:
        newest = {mail.title: mail.version for mail in sorted(patches, key=_by_version)}
        patches = [mail for mail in patches if newest[mail.title] == mail.version]
    else:
        patches = numbered
    if all(mail.number is not None for mail in patches):
        patches.sort(key=lambda mail: mail.number or (0, 0))
        _require_complete(patches, path)
    return tuple(patches), tuple(mail for mail in mails if mail not in patches)


def _left_out(taken: Sequence[Mail], left: Sequence[Mail]) -> str:
    """List the mails that were taken and those that were left out; empty when all were taken."""
    if not left:
        return ""
    lines = ["taken from the mails:", *(f"  {mail.subject}" for mail in taken), "left out:"]
    series = [mail for mail in left if not mail.is_reply]
    for version, group in groupby(sorted(series, key=_by_version), key=_by_version):
        subjects = [mail.subject for mail in group]
        more = f" and {len(subjects) - 1} more" if len(subjects) > 1 else ""
        lines.append(f"  v{version}: {subjects[0]}{more}")
    lines += [f"  a reply: {mail.subject}" for mail in left if mail.is_reply]
    return "\n".join(lines)


def _by_version(mail: Mail) -> int:
    return mail.version


def _require_complete(patches: Sequence[Mail], path: Path) -> None:
    numbers = [mail.number for mail in patches if mail.number is not None]
    totals = {total for _, total in numbers}
    present = {number for number, _ in numbers}
    if len(totals) > 1 or len(present) != len(numbers):
        subjects = "".join(f"\n  {mail.subject}" for mail in patches)
        raise UsageError(
            f"the mbox has more than one series of version {patches[0].version}:{subjects}",
            where=str(path),
            hint="save the mails of one series to a file of their own",
        )
    lacking = [str(n) for n in range(1, max(totals, default=0) + 1) if n not in present]
    if lacking:
        text = f"the mbox lacks patch {', '.join(lacking)} of {max(totals)}"
        raise UsageError(text, where=str(path), hint=_FETCH_HINT)
