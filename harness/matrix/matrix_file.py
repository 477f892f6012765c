# SPDX-License-Identifier: GPL-2.0-or-later
"""Matrix files with all that they name, and what one machine can do of them at once."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from harness.core.errors import UsageError
from harness.kernels.build.config import fragment_names, plan_config
from harness.kernels.build.series import read_series
from harness.kernels.spec import parse_kernel_spec
from harness.matrix.plan import (
    BRANCH,
    NO_SERIES,
    USUAL_QEMU,
    Combination,
    Facts,
    Matrix,
    Plan,
    configs_of,
    plan_matrix,
    read_matrix,
    shard,
)
from harness.scenario.scenario import KernelNeeds, Policy
from harness.scenario.scenario_files import Case, load_cases, suggest
from harness.scenario.yaml_document import Document

GUEST_MIB = 1024
"""Memory set aside for a guest, more than twice what the largest profile takes at its peak
(docs/measurements.md): kernels with KASAN take more."""

_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.M)


def load_matrix(path: Path, branch: str | None = None) -> Plan:
    """Read a matrix file, with everything that it names.

    Args:
        path: the file.
        branch: the SPEC that the kernel `branch` stands for, None where there is no such kernel.

    Raises:
        UsageError: it is wrong, or names something that does not exist; says file, line and field.
    """
    document = read_matrix(_text(path), str(path))
    if branch is not None:
        document = _with_branch(document, branch)
    matrix = document.value
    scenarios = _scenarios(document)
    for index, kernel in enumerate(matrix.kernels):
        if kernel == BRANCH:
            raise document.error(
                f"kernels[{index}]",
                f"{BRANCH!r} is the branch that a nightly follows, and here is none",
                hint="run it as ci/nightly --matrix FILE, or name a kernel such as debian:7.2",
            )
        with _at(document, f"kernels[{index}]"):
            parse_kernel_spec(kernel)
    for index, qemu in enumerate(matrix.qemus):
        if qemu != USUAL_QEMU and shutil.which(qemu) is None:
            raise document.error(
                f"qemus[{index}]",
                f"there is no program {qemu}",
                hint=f"write a path, or {USUAL_QEMU} for the usual one",
            )
    facts = Facts(scenarios, _fragments(document, scenarios.values()), _policies(document))
    plan = plan_matrix(matrix, tuple(scenarios), facts)
    if not plan.chosen:
        reasons = "\n".join(sorted({one.reason for one in plan.dropped}))
        raise document.error(
            "", f"no combination makes sense:\n{reasons}", hint="see docs/matrix.md"
        )
    return plan


def is_matrix(path: Path) -> bool:
    """Whether a YAML file is meant to be a matrix: it has kernels or scenarios at its top."""
    try:
        return re.search(r"^(kernels|scenarios)\s*:", path.read_text(), re.M) is not None
    except (OSError, UnicodeDecodeError):
        return False


@dataclass(frozen=True)
class Shard:
    """One of several parts of a matrix.

    Attributes:
        number: which, 1 to `count`.
        count: how many there are.
    """

    number: int
    count: int

    def of(self, combinations: Sequence[Combination]) -> tuple[Combination, ...]:
        """The combinations of this part."""
        return shard(combinations, self.number, self.count)


def parse_shard(text: str) -> Shard:
    """Read `I/N`.

    Raises:
        UsageError: it is not that.
    """
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"{text!r} is no part of a matrix", hint="write I/N with 1 <= I <= N, such as 2/8"
        )
    return Shard(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Capacity:
    """What a machine has for guests.

    Attributes:
        cores: that this process may use.
        memory: MiB that are available.
    """

    cores: int
    memory: int

    @property
    def guests(self) -> int:
        """How many guests run side by side: one a core, as far as the memory goes."""
        return max(1, min(self.cores, self.memory // GUEST_MIB))


def this_capacity(meminfo: Path = Path("/proc/meminfo")) -> Capacity:
    """What this machine has now."""
    found = _AVAILABLE.search(meminfo.read_text())
    memory = int(found[1]) // 1024 if found else GUEST_MIB
    return Capacity(len(os.sched_getaffinity(0)), memory)


@contextmanager
def _at(document: Document[Matrix], field: str) -> Iterator[None]:
    """Say at which field of a document something is wrong."""
    try:
        yield
    except UsageError as error:
        message = f"{error.where}: {error.message}" if error.where else error.message
        raise document.error(field, message, hint=error.hint) from error


def _with_branch(document: Document[Matrix], spec: str) -> Document[Matrix]:
    matrix = document.value
    if BRANCH not in matrix.kernels:
        raise document.error(
            "kernels",
            f"the matrix of a nightly must name the kernel {BRANCH!r}",
            hint=f"add {BRANCH} to the kernels: it stands for what the branch has that night",
        )
    kernels = tuple(spec if one == BRANCH else one for one in matrix.kernels)
    exclude = tuple(
        msgspec.structs.replace(one, kernel=glob.escape(spec)) if one.kernel == BRANCH else one
        for one in matrix.exclude
    )
    changed = msgspec.structs.replace(matrix, kernels=kernels, exclude=exclude)
    return replace(document, value=changed)


def _scenarios(document: Document[Matrix]) -> dict[str, KernelNeeds]:
    cases: dict[str, Case] = {}
    for index, pattern in enumerate(document.value.scenarios):
        with _at(document, f"scenarios[{index}]"):
            for case in load_cases([pattern]):
                is_file = "/" in pattern or pattern.endswith((".yaml", ".yml"))
                cases[str(Path(pattern).absolute()) if is_file else case.name] = case
    return {name: case.scenario.kernel for name, case in sorted(cases.items())}


def _fragments(
    document: Document[Matrix], needs: Iterable[KernelNeeds]
) -> dict[str, dict[str, str]]:
    known = fragment_names()
    for index, value in enumerate(document.value.configs):
        for name in configs_of(value):
            if name not in known and "/" not in name and not name.startswith("distro"):
                raise document.error(
                    f"configs[{index}]",
                    f"no fragment is called {name!r}",
                    hint=suggest(name, ("base", *known), "fragments"),
                )
    asked = {name for value in document.value.configs for name in configs_of(value)}
    named = {name for one in needs for name in one.configs} | (asked & set(known))
    base = {option.name: option.value for option in plan_config(()).options}
    return {
        name: {
            option.name: option.value
            for option in plan_config((name,)).options
            if base.get(option.name) != option.value
        }
        for name in sorted(named - {"distro"})
    }


def _policies(document: Document[Matrix]) -> dict[str, Policy | None]:
    found: dict[str, Policy | None] = {}
    for index, series in enumerate(document.value.series):
        if series != NO_SERIES:
            with _at(document, f"series[{index}]"):
                found[series] = read_series(Path(series)).policy
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError("not UTF-8 text", where=str(path), hint="save it as UTF-8") from None
    except OSError as error:
        raise UsageError(
            f"the matrix cannot be read: {error.strerror}",
            where=str(path),
            hint="name a matrix file, such as ci/matrix.yaml",
        ) from None


def read_combination(raw: object) -> Combination:
    """A combination as another process wrote it down.

    Raises:
        UsageError: it is none.
    """
    try:
        return msgspec.convert(raw, Combination, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"not a combination: {error}",
            hint="do both sides have the same version of the harness?",
        ) from None
