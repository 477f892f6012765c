# SPDX-License-Identifier: GPL-2.0-or-later
"""Search and download Debian packages with a private apt state.

Nothing is installed, and the apt of this host is not changed: package lists, cache and an empty
package database are in the store. apt verifies signatures and checksums.
"""

from __future__ import annotations

import re
import shlex
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from debian.deb822 import Packages, Sources

from harness.core.cache import Store
from harness.core.deadline import Deadline
from harness.core.errors import UsageError
from harness.core.files import sha256
from harness.core.process import CommandError, Completed, ending, run, spawn
from harness.core.progress import Progress
from harness.debian.mirror import MIRROR_HINT, Mirror, find_mirror

SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid", "experimental")

_ONLINE_HINT = f"check the network and the proxy settings, or {MIRROR_HINT}"
_SOURCE_WORDS = ("source", "--download-only", "--only-source")
_FOLDER, _SOURCE_FOLDER = "apt", "apt-sources"
# The most that one update took.
_LISTS_SIZE = 300_000_000
# A package and all files that are unpacked from it, compared with the package.
_UNPACKED_FACTOR = 4
_MIRROR_SECONDS = 10.0
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
    """One version of a source package; only its upstream tarball is used.

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


AnyPackage = Package | SourcePackage


class Apt:
    """A session with the private apt; `open_apt` opens one.

    Args:
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
            True if newer lists were fetched.

        Raises:
            UsageError: there are no lists and none can be fetched, or the disk is too full.
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
                raise UsageError(f"cannot fetch Debian's package lists: {why}", hint=_ONLINE_HINT)
            self._progress.note(f"cannot refresh Debian's package lists, using the old ones: {why}")
            return False
        if lacking:
            self._progress.note(f"the mirror has no package list of {', '.join(lacking)}: {why}")
        self._stamp.touch()
        return True

    def search(self, pattern: str) -> tuple[Package, ...]:
        """Return all versions, in all suites, of packages whose full name matches a pattern."""
        matching = re.compile(pattern).fullmatch
        listed = self._apt("apt-cache", "pkgnames").stdout.split()
        return self.versions(sorted(filter(matching, listed)))

    def versions(self, names: Sequence[str]) -> tuple[Package, ...]:
        """Return all versions of the named packages in all suites, ordered by name."""
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
        """Return the named packages and all their dependencies, from one suite only.

        Raises:
            UsageError: the suite lacks one of them.
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
        chosen = set(re.findall(r"^Inst (\S+) \((\S+) ", done.stdout, re.M))
        return tuple(
            package
            for package in self.versions(sorted(name for name, _ in chosen))
            if package.suite == suite and (package.name, package.version) in chosen
        )

    def source_versions(self, name: str) -> tuple[SourcePackage, ...]:
        """Return all versions of a source package; needs `open_apt(sources=True)`."""
        listed = self._apt("apt-cache", "showsrc", "--only-source", name, check=False)
        return parse_showsrc(listed.stdout)

    def addresses(self, packages: Sequence[AnyPackage]) -> dict[str, str]:
        """Return the addresses of the files of packages of one kind, by their SHA-256."""
        verb = _SOURCE_WORDS if isinstance(packages[0], SourcePackage) else ("download",)
        exact = sorted({f"{package.name}={package.version}" for package in packages})
        done = self._apt("apt-get", *verb, "--print-uris", *exact, check=False)
        return {sha: uri for uri, sha in re.findall(r"^'(\S+)' .*SHA256:(\w+)", done.stdout, re.M)}

    def download(self, packages: Sequence[Package], into: Path, what: str) -> tuple[Path, ...]:
        """Fetch packages into an empty folder of the store; apt verifies their checksums.

        Returns:
            The package files, in the order of `packages`.

        Raises:
            CommandError: a package cannot be fetched, for example because the lists are old.
            UsageError: the disk is too full for the packages and the files in them.
        """
        words = ("download", *(f"{package.name}={package.version}" for package in packages))
        self._fetch(words, sum(package.size for package in packages), into, what)
        return tuple(_package_file(package, into) for package in packages)

    def download_source(self, package: SourcePackage, into: Path, what: str) -> Path:
        """Fetch the upstream tarball of a source package into an empty folder of the store.

        Some mirrors have the tarball and lack the rest of the package: that is enough.

        Raises:
            CommandError: it cannot be fetched, for example because the lists are old.
            UsageError: the disk is too full for the tarball and the files in it.
        """
        words = (*_SOURCE_WORDS, f"{package.name}={package.version}")
        path = into / package.tarball
        try:
            self._fetch(words, package.size, into, what)
        except CommandError:
            if not path.is_file():
                raise
        if sha256(path) != package.sha256:
            raise CommandError(
                f"{package.tarball} has another checksum than the signed list",
                where=str(path),
                hint="the files of the mirror are from different times: try later, or another one",
            )
        return path

    def _fetch(self, words: Sequence[str], total: int, into: Path, what: str) -> None:
        """Run apt-get in the folder that it fills, and report progress."""
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
            text = output.read().decode(errors="replace")
        if child.returncode != 0:
            lines = text.splitlines() or [f"apt-get {ending(child.returncode)}"]
            errors = [line for line in lines if line[:2] == "E:"] or lines
            raise CommandError(
                f"cannot fetch {what}:\n" + "\n".join(errors[-4:]),
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
    """Open the private apt with package lists, for one process at a time.

    Args:
        store: has lists and cache.
        progress: reports downloads and waits for other processes.
        sources: use the lists of source packages instead of those of binary packages.

    Raises:
        UsageError: this host has no Debian mirror, or the mirror cannot be reached.
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
    """Unpack the files of a package into a folder; none of its scripts runs."""
    deadline = Deadline(600, f"{package.name} to be unpacked", hint="is the disk very slow?")
    run(["dpkg-deb", "--extract", package, into], deadline=deadline)


def files_on_mirror(apt: Apt, packages: Sequence[AnyPackage]) -> Callable[[AnyPackage], bool]:
    """Return a predicate that queries the mirror for the file of one of these packages.

    Package lists name files that the mirror has deleted. A package counts as available when the
    mirror gives no clear answer.
    """
    addresses = apt.addresses(packages)

    def available(package: AnyPackage) -> bool:
        address = addresses.get(package.sha256)
        return address is None or _available(address)

    return available


def _available(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_MIRROR_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code not in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
    except urllib.error.URLError as error:
        return not isinstance(error.reason, FileNotFoundError)
    except (OSError, ValueError):
        return True


def _set_up(root: Path, mirror: Mirror, sources: bool) -> None:
    lines = {suite: _source_line(mirror, suite, sources) for suite in SUITES}
    texts = {f"{suite}.list": line for suite, line in lines.items()}
    texts |= {"sources.list": "".join(lines.values()), "apt.conf": _CONFIG.format(root=root)}
    texts["state/status"] = ""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (root / name).mkdir(parents=True, exist_ok=True)
    # Written only when it differs: apt rebuilds a cache that is older than one of these files.
    for name, text in texts.items():
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
        with suppress(FileNotFoundError):  # apt renames a file that is complete
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
    """Return the suites whose lists `apt-get update` has fetched or confirmed, and verified."""

    def suites(verbs: str, file: str) -> set[str]:
        return set(re.findall(rf"^(?:{verbs}):\d+ \S+ (\S+) {file}(?: |$)", output, re.M))

    # With a file: address, apt prints Get for a file that does not exist, and Ign after it.
    inline = suites("Hit|Get", "InRelease") - suites("Ign", "InRelease")
    detached = suites("Hit|Get", "Release") - suites("Ign", r"Release\.gpg")
    refused = re.findall(r"^Err:\d+ \S+ ([^\s/]+)", output, re.M)
    return frozenset((inline | detached) - set(refused))


def parse_madison(output: str) -> frozenset[tuple[str, str, str]]:
    """Return name, version and suite of each row that `apt-cache madison` prints."""
    rows = re.findall(r"^\s*(\S+) \|\s*(\S+) \| \S+ ([^\s/]+)/\S+ \S+ Packages$", output, re.M)
    return frozenset(rows)


def parse_show(output: str) -> dict[tuple[str, str], tuple[int, str]]:
    """Return size in bytes and SHA-256 by name and version, as `apt-cache show` prints them."""
    return {
        (fields["Package"], fields["Version"]): (int(fields["Size"]), fields["SHA256"])
        for fields in Packages.iter_paragraphs(output, use_apt_pkg=False)
        if fields.keys() >= {"Package", "Version", "Size", "SHA256"}
    }


def parse_showsrc(output: str) -> tuple[SourcePackage, ...]:
    """Return the source packages that `apt-cache showsrc` prints, each version once."""
    found = {}
    for fields in Sources.iter_paragraphs(output, use_apt_pkg=False):
        files = fields.get("Checksums-Sha256", [])
        size = sum(int(file["size"]) for file in files)
        for file in files:
            if re.search(r"\.orig\.tar\.\w+$", file["name"]):
                found[fields["Version"]] = SourcePackage(
                    fields["Package"], fields["Version"], file["name"], size, file["sha256"]
                )
    return tuple(found.values())
