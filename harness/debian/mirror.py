# SPDX-License-Identifier: GPL-2.0-or-later
"""Which Debian mirror this machine uses, and whose signatures it trusts there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from harness.core.deadline import Deadline
from harness.core.errors import UsageError
from harness.core.process import find_program, run

MIRROR_VARIABLE = "HARNESS_DEBIAN_MIRROR"
MIRROR_HINT = (
    f"set {MIRROR_VARIABLE} to the base URL of a Debian mirror (the folder that has dists/ and "
    "pool/), and install debian-archive-keyring"
)
_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
_DEBIAN_SUITES = (
    "bullseye", "bookworm", "trixie", "forky", "sid",
    "oldoldstable", "oldstable", "stable", "testing", "unstable",
)  # fmt: skip
_SECONDS = 60.0


@dataclass(frozen=True)
class Mirror:
    """Where Debian packages come from.

    Attributes:
        uri: the folder that has `dists/` and `pool/`, ending in a slash.
        keyrings: files of keys that may sign its suites; none means those that apt trusts anyway.
    """

    uri: str
    keyrings: tuple[Path, ...]


def find_mirror() -> Mirror:
    """The mirror that HARNESS_DEBIAN_MIRROR names, else the one this machine's apt uses.

    Raises:
        UsageError: this machine has no apt, or its apt is not Debian's.
    """
    find_program(
        "apt-get",
        hint="packages of Debian need apt; on another distribution name a kernel of your own "
        "with image:PATH",
    )
    debian_keys = tuple(path for path in _KEYRINGS if path.exists())[:1]
    chosen = os.environ.get(MIRROR_VARIABLE)
    if chosen:
        if re.fullmatch(r"[a-z][a-z0-9+-]*:\S+", chosen) is None:
            raise UsageError(f"not a URL: {chosen!r}", where=MIRROR_VARIABLE, hint=MIRROR_HINT)
        return Mirror(chosen.rstrip("/") + "/", debian_keys)
    found = _machine_mirror()
    if found is None:
        raise UsageError(
            "the apt of this machine does not use Debian's main archive", hint=MIRROR_HINT
        )
    uri, sources = found
    own = tuple(key for key in signing_keys(sources, uri) if key.exists())
    return Mirror(uri, tuple(dict.fromkeys((*own, *debian_keys))))


def parse_index_targets(output: str) -> tuple[str, str] | None:
    """The address of Debian's main archive and the file that names it.

    Args:
        output: lines `REPO_URI|LABEL|COMPONENT|SOURCESENTRY` of `apt-get indextargets`.
    """
    for line in output.splitlines():
        uri, label, component, entry = (line.split("|") + [""] * 4)[:4]
        if label == "Debian" and component == "main":
            return uri.rstrip("/") + "/", entry.rpartition(":")[0]
    return None


def parse_update_uris(output: str) -> str | None:
    """The address of Debian's main archive in what `apt-get update --print-uris` prints."""
    for uri, suite in re.findall(r"^'(\S+?/)dists/([^/\s]+)/main/binary-\S+'", output, re.M):
        if suite.removesuffix("-updates").removesuffix("-backports") in _DEBIAN_SUITES:
            return str(uri)
    return None


def signing_keys(sources: str, uri: str) -> tuple[Path, ...]:
    """The key files that a sources file, of either format, names for an archive.

    Args:
        sources: the file's text.
        uri: the archive's address.
    """
    address = uri.rstrip("/")
    if re.search(r"^URIs:", sources, re.M | re.I):
        blocks = re.split(r"\n\s*\n", sources)
        pattern = r"^Signed-By:[ \t]*(/.*)$"
    else:
        blocks = sources.splitlines()
        pattern = r"^deb\s+\[[^\]]*\bsigned-by=(/[^\s\]]+)"
    found = [
        name
        for block in blocks
        if address in block
        for names in re.findall(pattern, block, re.M | re.I)
        for name in re.split(r"[,\s]+", names.strip())
    ]
    return tuple(Path(name) for name in dict.fromkeys(found) if name.startswith("/"))


def _machine_mirror() -> tuple[str, str] | None:
    """The archive's address, and the text of the sources file that names it where known."""
    template = "$(REPO_URI)|$(LABEL)|$(COMPONENT)|$(SOURCESENTRY)"
    listed = run(
        ["apt-get", "indextargets", "--format", template, "Created-By: Packages"],
        deadline=Deadline(_SECONDS, "apt-get indextargets", hint=MIRROR_HINT),
    ).stdout
    found = parse_index_targets(listed)
    if found is not None:
        uri, entry = found
        path = Path(entry)
        return uri, path.read_text() if path.is_file() and os.access(path, os.R_OK) else ""
    # Without package lists (a fresh container) apt knows addresses but not what is there.
    planned = run(
        ["apt-get", "update", "--print-uris"],
        deadline=Deadline(_SECONDS, "apt-get update --print-uris", hint=MIRROR_HINT),
    ).stdout
    bare = parse_update_uris(planned)
    return None if bare is None else (bare, "")
