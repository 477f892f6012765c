# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages from the machine's own mirror, through an apt state of the harness's own.

Nothing is installed and nothing of the machine's apt changes: lists, cache and an empty package
database live in the store. Signatures and hashes are apt's to verify.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.core.cache import Store
from harness.core.deadline import Deadline
from harness.core.errors import UsageError
from harness.core.process import CommandError, Completed, ending, run, spawn
from harness.core.progress import Progress
from harness.debian.mirror import MIRROR_HINT, Mirror, find_mirror

SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid", "experimental")

_ONLINE_HINT = f"check the network and the proxy settings, or {MIRROR_HINT}"
_SOURCE_WORDS = ("source", "--download-only", "--only-source")
_FOLDER, _SOURCE_FOLDER = "apt", "apt-sources"
# What one update took at most, and what a package takes with all that is unpacked from it.
_LISTS_SIZE = 300_000_000
_UNPACKED_FACTOR = 4
_METADATA_SECONDS = 120.0
_UPDATE_SECONDS = 900.0
_DOWNLOAD_SECONDS = 3600.0
_WATCH_SECONDS = 0.1

_CONFIG = """\
#clear APT::Architectures;
#clear Acquire::Languages;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::Languages {{ "none"; }};
Acquire::GzipIndexes "true";
Acquire::PDiffs "false";
Acquire::Retries "3";
Acquire::http::Timeout "60";
Acquire::https::Timeout "60";
Dir::State "{root}/state";
Dir::State::lists "{root}/state/lists";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
Dir::Cache::archives "{root}/cache/archives";
Dir::Cache::pkgcache "{root}/cache/pkgcache.bin";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""


@dataclass(frozen=True, order=True)
class Package:
    """One version of a binary package in one suite.

    Attributes:
        size: of the package file, in bytes.
        sha256: of the package file, hexadecimal, from the signed package list.
    """

    name: str
    version: str
    suite: str
    size: int
    sha256: str


@dataclass(frozen=True)
class SourcePackage:
    """One version of a source package, of which the upstream tarball is what counts here.

    Attributes:
        tarball: name of the upstream tarball.
        size: of all files of the package, in bytes.
        sha256: of the tarball, hexadecimal, from the signed list.
    """

    name: str
    version: str
    tarball: str
    size: int
    sha256: str


class Apt:
    """An open session with the harness's own apt; `open_apt` makes one.

    Args:
        store: where lists and cache are.
        progress: hears of downloads.
        folder: the name of this apt's state in the store.
    """

    def __init__(self, store: Store, progress: Progress, folder: str = _FOLDER) -> None:
        self._store = store
        self._root = store.folder(folder)
        self._progress = progress
        self._stamp = self._root / "updated"

    def refresh(self, max_age: float) -> bool:
        """Fetch the package lists, unless they are younger than `max_age` seconds.

        A suite that the mirror lacks is reported and left out.

        Returns:
            Whether newer lists were fetched.

        Raises:
            UsageError: there are no lists and none could be fetched, or there is no room.
        """
        with suppress(FileNotFoundError):
            if time.time() - self._stamp.stat().st_mtime < max_age:
                return False
        self._store.require_space(_LISTS_SIZE, "the package lists of Debian")
        self._progress.note("fetching Debian's package lists")
        done = self._apt("apt-get", "update", check=False, seconds=_UPDATE_SECONDS)
        fresh = updated_suites(done.stdout)
        lacking = [suite for suite in SUITES if suite not in fresh]
        why = next((line for line in done.stderr.splitlines() if line[:2] in ("E:", "W:")), "")
        if not fresh:
            if not self._stamp.exists():
                raise UsageError(f"no Debian package list can be had: {why}", hint=_ONLINE_HINT)
            self._progress.note(
                f"Debian's package lists cannot be refreshed, using old ones: {why}"
            )
            return False
        if lacking:
            self._progress.note(f"the mirror gives no package list of {', '.join(lacking)}: {why}")
        self._stamp.touch()
        return True

    def search(self, pattern: str) -> tuple[Package, ...]:
        """Every version, in every suite, of the packages whose whole name matches a pattern."""
        listed = self._apt("apt-cache", "pkgnames").stdout.split()
        wanted = re.compile(pattern)
        return self.versions(sorted(name for name in listed if wanted.fullmatch(name)))

    def versions(self, names: Sequence[str]) -> tuple[Package, ...]:
        """Every version of the named packages in every suite, ordered by name."""
        if not names:
            return ()
        rows = parse_madison(self._apt("apt-cache", "madison", *names).stdout)
        exact = sorted({f"{name}={version}" for name, version, _ in rows})
        if not exact:
            return ()
        files = parse_show(self._apt("apt-cache", "show", *exact).stdout)
        return tuple(
            Package(name, version, suite, *files[name, version])
            for name, version, suite in sorted(rows)
            if (name, version) in files
        )

    def closure(self, names: Sequence[str], suite: str) -> tuple[Package, ...]:
        """The named packages and all that they depend on, from one suite alone.

        Raises:
            UsageError: the suite does not have them all.
        """
        done = self._apt(
            "apt-get", "install", "--simulate", "--no-install-recommends",
            "-o", f"Dir::Etc::sourcelist={self._root}/{suite}.list",
            "-o", "Dir::Cache::pkgcache=",
            *names,
            check=False,
        )  # fmt: skip
        if done.status != 0:
            why = next((line for line in done.stderr.splitlines() if line[:2] == "E:"), "")
            raise UsageError(
                f"{', '.join(names)}: not installable from {suite}: {why}",
                hint=f"the mirror must carry the whole suite; {MIRROR_HINT}",
            )
        chosen = set(parse_simulation(done.stdout))
        found = self.versions(sorted(name for name, _ in chosen))
        return tuple(
            one for one in found if one.suite == suite and (one.name, one.version) in chosen
        )

    def source_versions(self, name: str) -> tuple[SourcePackage, ...]:
        """Every version of a source package in every suite; needs `open_apt(sources=True)`."""
        listed = self._apt("apt-cache", "showsrc", "--only-source", name, check=False)
        return parse_showsrc(listed.stdout)

    def addresses(self, packages: Sequence[Package | SourcePackage]) -> dict[str, str]:
        """Where the lists say that the files of packages of one kind are, by their SHA-256."""
        verb = _SOURCE_WORDS if isinstance(packages[0], SourcePackage) else ("download",)
        exact = sorted({f"{one.name}={one.version}" for one in packages})
        done = self._apt("apt-get", *verb, "--print-uris", *exact, check=False)
        return {sha: uri for uri, sha in re.findall(r"^'(\S+)' .*SHA256:(\w+)", done.stdout, re.M)}

    def download(self, packages: Sequence[Package], into: Path, what: str) -> tuple[Path, ...]:
        """Fetch packages into an empty folder of the store; apt verifies their hashes.

        Returns:
            The package files, in the order of `packages`.

        Raises:
            CommandError: a package cannot be had, for example because the lists are old.
            UsageError: there is no room for the packages and what is unpacked from them.
        """
        words = ("download", *(f"{one.name}={one.version}" for one in packages))
        self._fetch(words, sum(one.size for one in packages), into, what)
        return tuple(_package_file(one, into) for one in packages)

    def download_source(self, package: SourcePackage, into: Path, what: str) -> Path:
        """Fetch the upstream tarball of a source package into an empty folder of the store.

        Mirrors exist that have it without the rest of the package: that will do.

        Raises:
            CommandError: it cannot be had, for example because the lists are old.
            UsageError: there is no room for it and what is unpacked from it.
        """
        words = (*_SOURCE_WORDS, f"{package.name}={package.version}")
        path = into / package.tarball
        try:
            self._fetch(words, package.size, into, what)
        except CommandError:
            if not path.is_file():
                raise
        with path.open("rb") as tarball:
            found = hashlib.file_digest(tarball, "sha256").hexdigest()
        if found != package.sha256:
            raise CommandError(
                f"{package.tarball} is not what the signed list says",
                where=str(path),
                hint="the mirror is out of step with itself: try later, or another mirror",
            )
        return path

    def _fetch(self, words: Sequence[str], total: int, into: Path, what: str) -> None:
        """Run apt-get in a folder that it fills, and report how far it is."""
        argv = ["apt-get", "--config-file", f"{self._root}/apt.conf", "--quiet", *words]
        deadline = Deadline(_DOWNLOAD_SECONDS, f"the download of {what}", hint=_ONLINE_HINT)
        self._store.require_space(_UNPACKED_FACTOR * total, what)
        with (
            tempfile.TemporaryFile() as output,
            self._progress.download(what, total) as report,
            spawn(argv, cwd=into, stdout=output, stderr=output) as child,
        ):
            while child.poll() is None:
                report(min(_bytes_in(into), total))
                time.sleep(min(_WATCH_SECONDS, deadline.check()))
            report(min(_bytes_in(into), total))
            output.seek(0)
            said = output.read().decode(errors="replace")
        if child.returncode != 0:
            lines = said.splitlines() or [f"apt-get {ending(child.returncode)}"]
            errors = [line for line in lines if line[:2] == "E:"] or lines
            raise CommandError(
                f"{what} cannot be fetched:\n" + "\n".join(errors[-4:]),
                where=shlex.join(argv),
                hint=_ONLINE_HINT,
            )

    def _apt(
        self, program: str, *words: str, check: bool = True, seconds: float = _METADATA_SECONDS
    ) -> Completed:
        argv = [program, "--config-file", f"{self._root}/apt.conf", "--quiet", *words]
        deadline = Deadline(seconds, f"{program} {words[0]}", hint=_ONLINE_HINT)
        return run(argv, deadline=deadline, check=check)


@contextmanager
def open_apt(store: Store, progress: Progress, *, sources: bool = False) -> Iterator[Apt]:
    """The harness's own apt, with package lists; one process at a time has it.

    Args:
        store: where lists and cache are.
        progress: hears of downloads and of waits for other processes.
        sources: have the lists of source packages, and not those of binary packages.

    Raises:
        UsageError: this machine has no Debian mirror to offer, or it cannot be reached.
    """
    mirror = find_mirror()
    folder = _SOURCE_FOLDER if sources else _FOLDER
    root = store.folder(folder)
    with store.lock(folder, what="using Debian's package lists", progress=progress):
        apt = Apt(store, progress, folder)
        _set_up(root, mirror, sources)
        apt.refresh(max_age=float("inf"))
        yield apt


def unpack(package: Path, into: Path) -> None:
    """Unpack a package file's content into a folder, without running any of its scripts."""
    deadline = Deadline(600, f"{package.name} to be unpacked", hint="is the disk very slow?")
    run(["dpkg-deb", "--extract", package, into], deadline=deadline)


def _set_up(root: Path, mirror: Mirror, sources: bool) -> None:
    lines = {suite: _source_line(mirror, suite, sources) for suite in SUITES}
    wanted = {f"{suite}.list": line for suite, line in lines.items()}
    wanted |= {"sources.list": "".join(lines.values()), "apt.conf": _CONFIG.format(root=root)}
    for name in ("state/lists/partial", "cache/archives/partial"):
        (root / name).mkdir(parents=True, exist_ok=True)
    # Written only when it differs: apt rebuilds its cache when any of these is younger than that.
    wanted["state/status"] = ""
    for name, text in wanted.items():
        path = root / name
        if not path.exists() or path.read_text() != text:
            (root / "updated").unlink(missing_ok=True)
            path.write_text(text)


def _source_line(mirror: Mirror, suite: str, sources: bool) -> str:
    options = "target=Sources" if sources else "arch=amd64 target=Packages"
    if mirror.keyrings:
        options += f" signed-by={','.join(map(str, mirror.keyrings))}"
    kind = "deb-src" if sources else "deb"
    return f"{kind} [{options}] {mirror.uri} {suite} main\n"


def _bytes_in(folder: Path) -> int:
    count = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # apt renames what is complete
            count += path.stat().st_size if path.is_file() else 0
    return count


def _package_file(package: Package, folder: Path) -> Path:
    stem = f"{package.name}_{package.version.replace(':', '%3a')}"
    found = [path for path in folder.glob("*.deb") if path.name.rpartition("_")[0] == stem]
    if len(found) != 1:
        raise CommandError(
            f"apt-get download left no file of {package.name} {package.version}",
            where=str(folder),
            hint="run it again with HARNESS_STORE set to an empty folder",
        )
    return found[0]


def updated_suites(output: str) -> frozenset[str]:
    """The suites whose lists `apt-get update` has fetched, or found unchanged, and verified."""

    def suites(verbs: str, file: str) -> set[str]:
        return set(re.findall(rf"^(?:{verbs}):\d+ \S+ (\S+) {file}(?: |$)", output, re.M))

    # Of a file: address, apt first says that it gets what is not there.
    inline = suites("Hit|Get", "InRelease") - suites("Ign", "InRelease")
    detached = suites("Hit|Get", "Release") - suites("Ign", r"Release\.gpg")
    refused = re.findall(r"^Err:\d+ \S+ ([^\s/]+)", output, re.M)
    return frozenset((inline | detached) - set(refused))


def parse_madison(output: str) -> frozenset[tuple[str, str, str]]:
    """Name, version and suite of each row that `apt-cache madison` prints."""
    rows = re.findall(r"^\s*(\S+) \|\s*(\S+) \| \S+ ([^\s/]+)/\S+ \S+ Packages$", output, re.M)
    return frozenset(rows)


def parse_show(output: str) -> dict[tuple[str, str], tuple[int, str]]:
    """Size in bytes and SHA-256 of each name and version that `apt-cache show` prints."""
    files = {}
    for stanza in output.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Size|SHA256): (.*)$", stanza, re.M))
        if len(fields) == 4:
            key = fields["Package"], fields["Version"]
            files[key] = int(fields["Size"]), fields["SHA256"]
    return files


def parse_showsrc(output: str) -> tuple[SourcePackage, ...]:
    """The source packages that `apt-cache showsrc` prints, each version once."""
    found = {}
    for stanza in output.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version): (.*)$", stanza, re.M))
        listed = re.search(r"^Checksums-Sha256:[ \t]*\n((?:[ \t].*\n?)+)", stanza, re.M)
        rows = [line.split() for line in listed[1].splitlines()] if listed else []
        for digest, _, name in rows:
            if len(fields) == 2 and re.search(r"\.orig\.tar\.\w+$", name):
                size = sum(int(row[1]) for row in rows)
                found[fields["Version"]] = SourcePackage(
                    fields["Package"], fields["Version"], name, size, digest
                )
    return tuple(found.values())


def parse_simulation(output: str) -> tuple[tuple[str, str], ...]:
    """Name and version of each package that `apt-get install --simulate` would install."""
    return tuple(re.findall(r"^Inst (\S+) \((\S+) ", output, re.M))
