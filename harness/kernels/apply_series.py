# SPDX-License-Identifier: GPL-2.0-or-later
"""Applying a series to the harness's copy of a source, patch by patch, each a commit."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from harness.errors import UnbuildableError
from harness.kernels.patch_series import Patch, Series
from harness.kernels.source_tree import SourceState, SourceTree
from harness.process import Completed
from harness.progress import Progress

_REF = "refs/heads/series"


def series_commit(
    source: SourceTree, state: SourceState, series: Series | None, progress: Progress
) -> str:
    """The commit of a source with a series on it; applied once, then remembered.

    Hold the source's `claimed` around it. What `files` has afterwards is one of the two states.

    Raises:
        UnbuildableError: a patch does not apply; the files are as they were without the series.
    """
    base = source.base_commit(state)
    if series is None or not series.patches:
        return base
    reference = _reference(base, series)
    known = source.repository.line("rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
    if known is not None:
        return known
    source.check_out(base, progress)
    progress.note(f"applying {len(series.patches)} patches of {series.path.name}")
    _forget_unfinished(source)
    error = None
    with source.changing():
        for number, patch in enumerate(series.patches, start=1):
            done = _git(source, "am", "--3way", "--quiet", "--keep-non-patch", patch=patch)
            if done.status == 0:
                # From one of its states to another only what differs is written, and compiled.
                source.repository.git("update-ref", _reference(base, series.upto(number)), "HEAD")
            else:
                error = _failure(source, state, series, number, patch, done)
                _forget_unfinished(source)
                source.restore(base)
                break
    if error is not None:
        raise error
    return source.repository.git("rev-parse", "HEAD").stdout.strip()


def _reference(base: str, series: Series) -> str:
    key = hashlib.sha256(f"{base} {series.digest}".encode()).hexdigest()[:20]
    return f"{_REF}/{key}"


def _git(source: SourceTree, *words: str, patch: Patch) -> Completed:
    mail = source.folder / "applying.patch"
    mail.write_bytes(patch.data)
    try:
        return source.repository.git(
            *words, str(mail), files=source.files, index=source.index, check=False
        )
    finally:
        mail.unlink()


def _forget_unfinished(source: SourceTree) -> None:
    source.repository.git("am", "--quit", files=source.files, index=source.index, check=False)


def _failure(
    source: SourceTree,
    state: SourceState,
    series: Series,
    number: int,
    patch: Patch,
    done: Completed,
) -> UnbuildableError:
    source.repository.git("am", "--quit", files=source.files, index=source.index, check=False)
    source.repository.git("reset", "--hard", "--quiet", files=source.files, index=source.index)
    tried = _git(source, "apply", "--check", "--verbose", patch=patch)
    said = f"{done.stderr}\n{done.stdout}\n{tried.stderr}"
    lines = [f"patch {number} of {len(series.patches)} does not apply: {patch.name}"]
    corrupt = re.search(r"corrupt patch at (?:\S+:)?line \d+|patch fragment without header", said)
    places = [*dict.fromkeys(re.findall(r"error: patch failed: (\S+?):(\d+)", tried.stderr))]
    for file, line in places:
        lines.append(f"  {file}, {_hunk_of(patch, file, int(line))}")
    for file in dict.fromkeys(re.findall(r"error: (\S+): No such file or directory", said)):
        lines.append(f"  {file} is not in this source")
    for file in dict.fromkeys(re.findall(r"error: (\S+): already exists", said)):
        lines.append(f"  {file} is in this source already")
    if corrupt:
        lines.append(f"  {corrupt[0]}: a mailer has wrapped or cut lines")
    if len(lines) == 1:
        words = [line for line in said.splitlines() if line.startswith(("error:", "fatal:"))]
        lines += [f"  {line}" for line in words[:4]]
    lines.append(f"  tried on {state.origin}, tree {state.tree[:12]}")
    if corrupt:
        hint = "fetch the series again with b4 am"
    elif series.base:
        hint = f"the series is for {series.base}: take that as the base, or rebase the series"
    else:
        hint = "find the base that it is for (b4 am says it), or rebase the series"
    if not corrupt and _is_applied(source, patch):
        hint = "this source has the patch already: take an older one, or drop the patch"
    return UnbuildableError("\n".join(lines), where=f"--series {series.path}", hint=hint)


def _is_applied(source: SourceTree, patch: Patch) -> bool:
    return _git(source, "apply", "--check", "--reverse", patch=patch).status == 0


def _hunk_of(patch: Patch, file: str, line: int) -> str:
    """The header of the hunk that begins at a line of a file."""
    inside = False
    for row in patch.data.decode(errors="replace").splitlines():
        if row.startswith("--- "):
            inside = Path(row[4:].split("\t")[0].strip()).parts[1:] == Path(file).parts
        match = re.match(r"@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@.*", row)
        if inside and match and int(match[1]) == line:
            return f"hunk {match[0]}"
    return f"the hunk at line {line}"
