# SPDX-License-Identifier: GPL-2.0-or-later
"""The patches of an mbox that are one series: a thread may have several, and replies with diffs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from harness.core.errors import UsageError

FETCH_HINT = "fetch the series again with b4 am, which takes it from the list's archive"
_TAG = re.compile(r"\s*\[([^\]]*)\]")
_NUMBER = re.compile(r"(?:^|[\s,])0*(\d+)/0*(\d+)\s*$")
_VERSION = re.compile(r"(?:^|[\s,])v(\d+)(?=[\s,]|$)", re.I)
_REPLY = re.compile(r"\s*(?:re|fwd?|aw)\s*:", re.I)


@dataclass(frozen=True)
class Mail:
    """A mail that has a diff.

    Attributes:
        subject: its subject.
        data: the message.
    """

    subject: str
    data: bytes

    @property
    def is_reply(self) -> bool:
        """Whether it answers another mail."""
        return _REPLY.match(self.subject) is not None

    @property
    def version(self) -> int:
        """The version of its series, 1 where the subject has none."""
        match = _VERSION.search(self._tag)
        return int(match[1]) if match else 1

    @property
    def number(self) -> tuple[int, int] | None:
        """Its number in its series and how many patches that has."""
        match = _NUMBER.search(self._tag)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def title(self) -> str:
        """The subject without what is in brackets in front of it."""
        return _TAG.sub("", self.subject, count=1).strip()

    @property
    def _tag(self) -> str:
        match = _TAG.match(self.subject)
        return match[1] if match else ""


def choose_series(
    mails: Sequence[Mail], version: int | None, path: Path
) -> tuple[tuple[Mail, ...], tuple[Mail, ...]]:
    """The patches of one series, in order, and the mails with a diff that are not of it.

    Args:
        mails: those with a diff that is not quoted, as the mbox has them.
        version: that is asked for; None for the newest.
        path: of the mbox, for messages.

    Raises:
        UsageError: there is no such version, several series have it, or a patch is missing.
    """
    patches = [one for one in dict.fromkeys(mails) if not one.is_reply] or list(mails)
    numbered = [one for one in patches if one.number is not None]
    versions = sorted({one.version for one in numbered or patches})
    if version is not None and version not in versions:
        have = ", ".join(f"v{one}" for one in versions) or "none"
        hint = f"versions that it has: {have}"
        raise UsageError(f"no series of version {version} is in it", where=str(path), hint=hint)
    if version is not None or len({one.version for one in numbered}) > 1:
        wanted = versions[-1] if version is None else version
        patches = [one for one in numbered or patches if one.version == wanted]
    elif not numbered:
        newest = {one.title: one.version for one in sorted(patches, key=lambda one: one.version)}
        patches = [one for one in patches if newest[one.title] == one.version]
    else:
        patches = numbered
    if all(one.number is not None for one in patches):
        patches.sort(key=lambda one: one.number or (0, 0))
        _require_complete(patches, path)
    return tuple(patches), tuple(one for one in mails if one not in patches)


def told(taken: Sequence[Mail], left: Sequence[Mail]) -> str:
    """Which mails were taken and which were left out; empty when all were taken."""
    if not left:
        return ""
    lines = ["taken from the mails:", *(f"  {one.subject}" for one in taken), "left out:"]
    series = [one for one in left if not one.is_reply]
    for version, group in groupby(sorted(series, key=_by_version), key=_by_version):
        subjects = [one.subject for one in group]
        more = f" and {len(subjects) - 1} more" if len(subjects) > 1 else ""
        lines.append(f"  v{version}: {subjects[0]}{more}")
    lines += [f"  a reply: {one.subject}" for one in left if one.is_reply]
    return "\n".join(lines)


def _by_version(mail: Mail) -> int:
    return mail.version


def _require_complete(patches: Sequence[Mail], path: Path) -> None:
    numbers = [one.number for one in patches if one.number is not None]
    totals = {total for _, total in numbers}
    present = {number for number, _ in numbers}
    if len(totals) > 1 or len(present) != len(numbers):
        subjects = "".join(f"\n  {one.subject}" for one in patches)
        raise UsageError(
            f"more than one series of version {patches[0].version} is in it:{subjects}",
            where=str(path),
            hint="save the mails of one series to a file of their own",
        )
    lacking = [str(one) for one in range(1, max(totals, default=0) + 1) if one not in present]
    if lacking:
        text = f"patch {', '.join(lacking)} of {max(totals)} is not in it"
        raise UsageError(text, where=str(path), hint=FETCH_HINT)
