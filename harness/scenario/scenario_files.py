# SPDX-License-Identifier: GPL-2.0-or-later
"""Find scenarios and profiles by name or path, and read them."""

from __future__ import annotations

import difflib
import fnmatch
import glob
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.core.errors import UsageError
from harness.core.files import read_text
from harness.core.paths import PROFILES, QEMU_QUIRKS, SCENARIOS
from harness.scenario.allowed_messages import Quirks
from harness.scenario.checks import check_scenario
from harness.scenario.profile import Profile, read_profile
from harness.scenario.scenario import Scenario, read_scenario
from harness.scenario.yaml_document import Document, read_document


@dataclass(frozen=True)
class Case:
    """A checked scenario with its profile.

    Attributes:
        name: the scenario's name, its file's stem.
        document: the scenario, with its lines.
        profile: the hardware.
        as_stated: whether the scenario's own modules are loaded; then the owners that it states
            are expected, otherwise those of the oracle.
        profile_text: the text of the profile.
        asked: its argument on a command line: its name or the path of its file.
    """

    name: str
    document: Document[Scenario]
    profile: Profile
    as_stated: bool = True
    profile_text: str = ""
    asked: str = ""

    @property
    def scenario(self) -> Scenario:
        """The scenario itself."""
        return self.document.value


def scenario_names(folder: Path = SCENARIOS) -> tuple[str, ...]:
    """The names of all scenarios of the project, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def profile_names(folder: Path = PROFILES) -> tuple[str, ...]:
    """The names of all profiles of the project, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def load_case(name: str, scenarios: Path = SCENARIOS, profiles: Path = PROFILES) -> Case:
    """Read a scenario, by name or by the path of its file, and check it with its profile.

    Raises:
        UsageError: there is no such scenario or profile, or one of them is wrong.
    """
    path = _find(name, scenarios, "scenario", "harness list shows all scenarios")
    document = read_scenario(read_text(path), shown_path(path))
    profile = _profile_of(document, path, profiles)
    check_scenario(document, profile.value)
    return Case(path.stem, document, profile.value, profile_text=profile.text, asked=name)


def _profile_of(document: Document[Scenario], path: Path, profiles: Path) -> Document[Profile]:
    name = document.value.profile
    if "/" in name:
        file = path.parent / name
        if not file.is_file():
            raise document.error(
                "profile",
                f"there is no profile file {file}",
                hint="a profile with a / in it is a path relative to the scenario's folder",
            )
        return _profile_document(str(file), profiles)
    known = profile_names(profiles)
    if name not in known:
        raise document.error(
            "profile",
            f"no profile is called {name!r}",
            hint=suggest(name, known, "profiles"),
        )
    return _profile_document(name, profiles)


def load_cases(names: Iterable[str]) -> tuple[Case, ...]:
    """Read scenarios by name, file, or pattern of names (`*`, `?`, `[…]`).

    Raises:
        UsageError: there is no such scenario, or one of them is wrong.
    """
    requested: list[str] = []
    for name in names:
        known = scenario_names()
        matching = fnmatch.filter(known, name)
        if not matching and glob.has_magic(name) and "/" not in name:
            raise UsageError(f"no scenario matches {name!r}", hint=f"scenarios: {', '.join(known)}")
        requested += matching or [name]
    return tuple(load_case(name) for name in requested)


def load_profile(name: str, folder: Path = PROFILES) -> Profile:
    """Read a profile, by name or by the path of its file.

    Raises:
        UsageError: there is no such profile, or it is wrong.
    """
    return _profile_document(name, folder).value


def _profile_document(name: str, folder: Path) -> Document[Profile]:
    path = _find(name, folder, "profile", "harness list shows all profiles")
    return read_profile(read_text(path), shown_path(path))


@cache
def load_quirks(path: Path = QEMU_QUIRKS) -> Quirks:
    """Read the messages that QEMU causes.

    Raises:
        UsageError: the file is missing or wrong.
    """
    return read_document(read_text(path), shown_path(path), Quirks).value


def _find(name: str, folder: Path, kind: str, hint: str) -> Path:
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"there is no {kind} file {name}", hint=hint)
        return path
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = tuple(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UsageError(f"no {kind} is called {name!r}", hint=suggest(name, known, f"{kind}s"))
    return path


def suggest(name: str, known: tuple[str, ...], what: str) -> str:
    """Make a hint for an unknown name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    start = f"did you mean {close[0]}? " if close else ""
    return f"{start}{what}: {', '.join(known) or 'none'}"


def shown_path(path: Path) -> str:
    """Return the path as errors print it: relative to the working directory if it is below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
