# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian mirror of this host, and the keys that may sign its suites."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from debian.deb822 import Deb822

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
    """An archive of Debian packages.

    Attributes:
        uri: the folder that has `dists/` and `pool/`, ending in a slash.
        keyrings: files of keys that may sign its suites; empty for those that apt trusts anyway.
    """

    uri: str
    keyrings: tuple[Path, ...]


def find_mirror() -> Mirror:
    """Return the mirror that HARNESS_DEBIAN_MIRROR names, else the one of this host's apt.

    Raises:
        UsageError: this host has no apt, or its apt does not use Debian's archive.
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
    uri, sources = _machine_mirror()
    own = tuple(key for key in signing_keys(sources, uri) if key.exists())
    return Mirror(uri, tuple(dict.fromkeys((*own, *debian_keys))))


def parse_index_targets(output: str) -> tuple[str, str] | None:
    """Return the address of Debian's main archive and the file that configures it.

    Args:
        output: lines `REPO_URI|LABEL|COMPONENT|SOURCESENTRY` of `apt-get indextargets`.
    """
    for line in output.splitlines():
        uri, label, component, entry = (line.split("|") + [""] * 4)[:4]
        if label == "Debian" and component == "main":
            return uri.rstrip("/") + "/", entry.rpartition(":")[0]
    return None


def parse_update_uris(output: str) -> str | None:
    """Return the address of Debian's main archive from `apt-get update --print-uris`."""
    for uri, suite in re.findall(r"^'(\S+?/)dists/([^/\s]+)/main/binary-\S+'", output, re.M):
        if suite.removesuffix("-updates").removesuffix("-backports") in _DEBIAN_SUITES:
            return str(uri)
    return None


def signing_keys(sources: str, uri: str) -> tuple[Path, ...]:
    """Return the key files that a sources file, of either format, names for an archive."""
    address = uri.rstrip("/")
    if re.search(r"^URIs:", sources, re.M | re.I):
        blocks = Deb822.iter_paragraphs(sources, use_apt_pkg=False)
        names = [b.get("Signed-By", "") for b in blocks if address in b.get("URIs", "")]
    else:
        lines = [line for line in sources.splitlines() if address in line]
        names = re.findall(r"^deb\s+\[[^\]]*\bsigned-by=([^\s\]]+)", "\n".join(lines), re.M | re.I)
    files = re.split(r"[,\s]+", " ".join(names))
    return tuple(Path(name) for name in dict.fromkeys(files) if name.startswith("/"))


def _machine_mirror() -> tuple[str, str]:
    """Return the archive's address, and the text of the sources file where it is known."""
    template = "$(REPO_URI)|$(LABEL)|$(COMPONENT)|$(SOURCESENTRY)"
    listed = _apt_get("indextargets", "--format", template, "Created-By: Packages")
    if found := parse_index_targets(listed):
        path = Path(found[1])
        return found[0], path.read_text() if path.is_file() and os.access(path, os.R_OK) else ""
    # Without package lists (a fresh container) apt has addresses, and no labels of archives.
    uri = parse_update_uris(_apt_get("update", "--print-uris"))
    if uri is None:
        raise UsageError(
            "the apt of this host does not use Debian's main archive", hint=MIRROR_HINT
        )
    return uri, ""


def _apt_get(verb: str, *words: str) -> str:
    deadline = Deadline(_SECONDS, f"apt-get {verb}", hint=MIRROR_HINT)
    return run(["apt-get", verb, *words], deadline=deadline).stdout
