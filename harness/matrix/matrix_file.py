# SPDX-License-Identifier: GPL-2.0-or-later
"""Load matrix files, check the names in them, and compute the capacity of this machine."""

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
from harness.core.files import read_text
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
"""Memory reserved for a guest: more than twice the peak of the largest profile
(docs/measurements.md), since kernels with KASAN need more."""

_HINT = "pass a matrix file, such as ci/matrix.yaml"
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.M)


def load_matrix(path: Path, branch: str | None = None) -> Plan:
    """Read a matrix file with its scenarios, fragments and series.

    Args:
        branch: the SPEC for the kernel `branch`, None outside of a nightly.

    Raises:
        UsageError: it is invalid, or a name in it does not exist; with file, line and field.
    """
    document = read_matrix(read_text(path, what="the matrix", hint=_HINT), str(path))
    if branch is not None:
        document = _with_branch(document, branch)
    matrix = document.value
    scenarios = _scenarios(document)
    for index, kernel in enumerate(matrix.kernels):
        if kernel == BRANCH:
            raise document.error(
                f"kernels[{index}]",
                f"the kernel {BRANCH!r} exists in a nightly only",
                hint="run ci/nightly --matrix FILE, or use a kernel such as debian:7.2",
            )
        with _at(document, f"kernels[{index}]"):
            parse_kernel_spec(kernel)
    for index, qemu in enumerate(matrix.qemus):
        if qemu != USUAL_QEMU and shutil.which(qemu) is None:
            raise document.error(
                f"qemus[{index}]",
                f"there is no program {qemu}",
                hint=f"write a path, or {USUAL_QEMU} for the QEMU of this machine",
            )
    facts = Facts(scenarios, _fragments(document, scenarios.values()), _policies(document))
    plan = plan_matrix(matrix, tuple(scenarios), facts)
    if not plan.chosen:
        reasons = "\n".join(sorted({one.reason for one in plan.dropped}))
        raise document.error("", f"all entries are left out:\n{reasons}", hint="see docs/matrix.md")
    return plan


def is_matrix(path: Path) -> bool:
    """Tell a matrix file by its keys kernels or scenarios at top level."""
    try:
        return re.search(r"^(kernels|scenarios)\s*:", path.read_text(), re.M) is not None
    except (OSError, UnicodeDecodeError):
        return False


@dataclass(frozen=True)
class Shard:
    """One of several parts of a matrix.

    Attributes:
        number: 1 to `count`.
    """

    number: int
    count: int

    def of(self, combinations: Sequence[Combination]) -> tuple[Combination, ...]:
        """Select the entries of this part."""
        return shard(combinations, self.number, self.count)


def parse_shard(text: str) -> Shard:
    """Parse `I/N`.

    Raises:
        UsageError: the text has another form, or I is out of range.
    """
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"{text!r} is not a shard", hint="write I/N with 1 <= I <= N, such as 2/8")
    return Shard(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Capacity:
    """Cores that this process may use, and available memory in MiB."""

    cores: int
    memory: int

    @property
    def guests(self) -> int:
        """Number of concurrent guests: one for each core, limited by memory."""
        return max(1, min(self.cores, self.memory // GUEST_MIB))


def this_capacity(meminfo: Path = Path("/proc/meminfo")) -> Capacity:
    """Return the current capacity of this machine."""
    found = _AVAILABLE.search(meminfo.read_text())
    memory = int(found[1]) // 1024 if found else GUEST_MIB
    return Capacity(len(os.sched_getaffinity(0)), memory)


@contextmanager
def _at(document: Document[Matrix], field: str) -> Iterator[None]:
    """Add file, line and field to a UsageError."""
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
            f"the matrix of a nightly needs the kernel {BRANCH!r}",
            hint=f"add {BRANCH} to kernels: the branch as it is that night",
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
                    f"there is no fragment {name!r}",
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


def read_combination(raw: object) -> Combination:
    """Convert a matrix entry from another process.

    Raises:
        UsageError: it is not a matrix entry.
    """
    try:
        return msgspec.convert(raw, Combination, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"invalid matrix entry: {error}",
            hint="use the same version of the harness on all hosts",
        ) from None
