# SPDX-License-Identifier: GPL-2.0-or-later
"""Apply a series to a source, each patch a commit; no file of the source is written."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UnbuildableError
from harness.core.process import Completed
from harness.core.progress import Progress
from harness.kernels.build.series import Series
from harness.kernels.build.tree import SourceState, SourceTree

_REF = "refs/heads/series"
_STUFFED = "a mailer has put a space in front of each context line (format=flowed, RFC 3676)"
_WHITESPACE = "a mailer has changed the white space of its context lines"
_REPAIR_HINT = (
    "take a copy that was sent with git send-email, or repair this one: list it in the "
    "series.yaml of a folder, with repair_whitespace: true"
)
_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
# Text that a kernel source has at the start of a line, or an empty line, after two spaces.
_SURE = re.compile(rb"  (?:[\t}].*)?", re.S)


def series_commit(
    source: SourceTree, state: SourceState, series: Series | None, progress: Progress
) -> str:
    """Return the commit of a source with a series on it; it is applied once and kept.

    The caller holds the source's `looked_at`. A build from this source may run meanwhile.

    Raises:
        UnbuildableError: a patch does not apply.
    """
    commit = base = source.base_commit(state)
    if series is None or not series.patches:
        return base
    reference = _reference(base, series)
    known = source.repository.line("rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
    if known is not None:
        return known
    progress.note(f"applying {len(series.patches)} patches of {series.path.name}")
    desk = _Desk(source, source.folder / "applying")
    shutil.rmtree(desk.folder, ignore_errors=True)
    (desk.folder / "files").mkdir(parents=True)
    try:
        for number, patch in enumerate(series.patches, start=1):
            desk.git("read-tree", commit)
            commit, repaired = _apply(desk, state, series, number, commit)
            source.repository.git("update-ref", _reference(base, series.upto(number)), commit)
            if repaired:
                progress.note(f"{patch.name}: {', '.join(repaired)}: repaired")
    finally:
        shutil.rmtree(desk.folder, ignore_errors=True)
    return commit


def _reference(base: str, series: Series) -> str:
    key = hashlib.sha256(f"{base} {series.digest}".encode()).hexdigest()[:20]
    return f"{_REF}/{key}"


@dataclass(frozen=True)
class _Desk:
    """An index, and an empty folder of files, to apply patches in."""

    source: SourceTree
    folder: Path

    def git(self, *words: str, stdin: bytes | None = None, check: bool = True) -> Completed:
        return self.source.repository.git(
            *words,
            files=self.folder / "files",
            index=self.folder / "index",
            stdin=stdin,
            check=check,
        )

    def apply(self, diff: bytes, *words: str) -> Completed:
        file = self.folder / "diff"
        file.write_bytes(diff)
        return self.git("apply", "--cached", "--verbose", *words, str(file), check=False)

    def fits(self, diff: bytes, *words: str) -> bool:
        return self.apply(diff, "--check", *words).status == 0


def _apply(
    desk: _Desk, state: SourceState, series: Series, number: int, parent: str
) -> tuple[str, tuple[str, ...]]:
    """Apply one patch.

    Returns:
        The commit, the parent where the patch changes nothing, and the damage that was repaired.
    """
    patch = series.patches[number - 1]
    message, mailed = desk.folder / "message", desk.folder / "mailed"
    info = desk.git("mailinfo", "-b", "--encoding=UTF-8", str(message), str(mailed),
                    stdin=patch.data)  # fmt: skip
    diff = mailed.read_bytes()
    repaired: tuple[str, ...] = ()
    if desk.apply(diff).status != 0 and desk.apply(diff, "--3way").status != 0:
        desk.git("read-tree", parent)
        damage = _whitespace_damage(desk, diff)
        if not (damage and series.repair_whitespace):
            raise _failure(desk, state, series, number, damage)
        desk.apply(_unstuffed(diff), "--ignore-whitespace")
        repaired = damage
    tree = desk.git("write-tree").stdout.strip()
    if tree == desk.git("rev-parse", f"{parent}^{{tree}}").stdout.strip():
        return parent, repaired
    subject = re.search(r"^Subject: (.*)$", info.stdout, re.M)
    text = f"{subject[1] if subject else patch.name}\n\n".encode() + message.read_bytes()
    message.write_bytes(text)
    commit = desk.git("commit-tree", tree, "-p", parent, "-F", str(message)).stdout.strip()
    return commit, repaired


def _whitespace_damage(desk: _Desk, diff: bytes) -> tuple[str, ...]:
    """Return the damage of a mailer that keeps a diff from applying."""
    plain = _unstuffed(diff)
    stuffed = (_STUFFED,) if plain != diff else ()
    if stuffed and desk.fits(plain):
        return stuffed
    return (*stuffed, _WHITESPACE) if desk.fits(plain, "--ignore-whitespace") else ()


def _failure(
    desk: _Desk, state: SourceState, series: Series, number: int, damage: tuple[str, ...]
) -> UnbuildableError:
    patch = series.patches[number - 1]
    diff = (desk.folder / "mailed").read_bytes()
    output = desk.apply(diff, "--check").stderr
    lines = [f"patch {number} of {len(series.patches)} does not apply: {patch.name}"]
    places = dict.fromkeys(re.findall(r"error: patch failed: (\S+?):(\d+)", output))
    lines += [f"  {file}, {_hunk_of(diff, file, int(line))}" for file, line in places]
    for words, what in (("No such file or directory", "is not in this source"),
                        ("does not exist in index", "is not in this source"),
                        ("already exists in index", "is in this source already")):  # fmt: skip
        files = dict.fromkeys(re.findall(rf"error: (\S+): {words}", output))
        lines += [f"  {file} {what}" for file in files]
    corrupt = re.search(r"corrupt patch at (?:\S+:)?line \d+|patch fragment without header", output)
    if corrupt:
        flowed = ", in a mail of format=flowed" * (b"format=flowed" in patch.data)
        lines.append(f"  {corrupt[0]}: a mailer has wrapped or cut lines{flowed}")
    if len(lines) == 1:
        errors = [line for line in output.splitlines() if line.startswith(("error:", "fatal:"))]
        lines += [f"  {line}" for line in errors[:4]]
    if _is_stuffed(diff) and _STUFFED not in damage:
        lines.append(f"  {_STUFFED}, and without it the patch does not apply either")
    lines += [f"  {problem}" for problem in damage]
    lines.append(f"  tried on {state.origin}, tree {state.tree[:12]}")
    hint = "find the base that it is for (b4 am prints it), or rebase the series"
    if damage:
        hint = _REPAIR_HINT
    elif corrupt:
        hint = "fetch the series again with b4 am"
    elif desk.fits(diff, "--reverse"):
        hint = "this source has the patch already: take an older one, or drop the patch"
    elif series.base:
        hint = f"the series is for {series.base}: name a tree of that, or rebase the series"
    return UnbuildableError("\n".join(lines), where=f"--series {series.path}", hint=hint)


def _hunk_of(diff: bytes, file: str, line: int) -> str:
    """Return the header of the hunk that begins at a line of a file."""
    inside = False
    for row in diff.decode(errors="replace").splitlines():
        if row.startswith("--- "):
            inside = Path(row[4:].split("\t")[0].strip()).parts[1:] == Path(file).parts
        match = re.match(r"@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@.*", row)
        if inside and match and int(match[1]) == line:
            return f"hunk {match[0]}"
    return f"the hunk at line {line}"


def _unstuffed(diff: bytes) -> bytes:
    """Remove the space that format=flowed (RFC 3676) puts in front of context lines.

    A diff is returned as it is unless all its context lines begin with two spaces. Context lines of
    a few intact patches do too, for files that are indented by spaces.
    """
    lines = diff.split(b"\n")
    context = [number for number in _context(lines) if lines[number].strip()]
    if not context or not all(lines[number].startswith(b"  ") for number in context):
        return diff
    for number in _context(lines):
        lines[number] = re.sub(rb"^  ", b" ", lines[number])
    return b"\n".join(lines)


def _is_stuffed(diff: bytes) -> bool:
    """Return whether a diff looks as no intact patch of a C file does after format=flowed."""
    lines = diff.split(b"\n")
    if _unstuffed(diff) == diff:
        return False
    return any(_SURE.fullmatch(lines[number]) for number in _context(lines))


def _context(lines: list[bytes]) -> Iterator[int]:
    """Yield the indexes of the context lines of all hunks."""
    old = new = 0
    for number, line in enumerate(lines):
        if old <= 0 and new <= 0:
            if match := _HUNK.match(line):
                old, new = (int(count or 1) for count in match.groups())
        elif line.startswith(b"-"):
            old -= 1
        elif line.startswith(b"+"):
            new -= 1
        elif not line.startswith(b"\\"):
            old, new = old - 1, new - 1
            yield number
