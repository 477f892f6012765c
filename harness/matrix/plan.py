# SPDX-License-Identifier: GPL-2.0-or-later
"""Expand the axes of a matrix file into entries; those left out have a reason."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from harness.scenario.kernel_request import KernelRequest, with_configs
from harness.scenario.scenario import KernelNeeds, Policy
from harness.scenario.yaml_document import Document, read_document

NO_SERIES = "none"
NO_CONFIG = "base"
USUAL_QEMU = "default"
BRANCH = "branch"
"""The name of the kernel under test in the matrix of a nightly."""
AXES = ("kernels", "configs", "series", "policies", "scenarios", "qemus")

AskedPolicy = Literal["auto", "per_range", "all_or_nothing"]

# Mainline has the ownership series, with the policy per_range, since this version.
_MERGED = (7, 1)
_DEBIAN_VERSION = re.compile(r"(?:build:)?debian:(\d+)\.(\d+)")


class Exclusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Leave out the entries that match every pattern; `reason` is reported."""

    kernel: str = "*"
    config: str = "*"
    series: str = "*"
    policy: str = "*"
    scenario: str = "*"
    qemu: str = "*"
    reason: Annotated[str, msgspec.Meta(min_length=10)]

    def covers(self, one: Combination) -> bool:
        """Return True when every pattern matches."""
        return all(
            fnmatch.fnmatchcase(value, pattern)
            for value, pattern in (
                (one.kernel, self.kernel),
                (",".join(one.configs) or NO_CONFIG, self.config),
                (one.series or NO_SERIES, self.series),
                (one.policy, self.policy),
                (one.scenario, self.scenario),
                (one.qemu or USUAL_QEMU, self.qemu),
            )
        )


class Matrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The axes of a matrix; every list has at least one item, without duplicates.

    Attributes:
        kernels: SPECs.
        configs: comma-separated fragments; `base` for none.
        series: folders or mboxes of patches; `none` for no patches.
        policies: `auto` for the one that the series implements.
        scenarios: names, patterns of names, or files.
        qemus: programs; `default` for the QEMU of this machine.
        repeat: guests for each load of a scenario.
        timeout: seconds until a guest must be ready.
        build: a scenario that needs fragments has a kernel built where a prebuilt one is requested.
    """

    summary: str = ""
    kernels: tuple[str, ...]
    configs: tuple[str, ...] = (NO_CONFIG,)
    series: tuple[str, ...] = (NO_SERIES,)
    policies: tuple[AskedPolicy, ...] = ("auto",)
    scenarios: tuple[str, ...] = ("*",)
    qemus: tuple[str, ...] = (USUAL_QEMU,)
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    repeat: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    timeout: Annotated[int, msgspec.Meta(ge=1, le=24 * 3600)] = 120
    build: bool = True
    exclude: tuple[Exclusion, ...] = ()


class Combination(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of a matrix, complete enough to run it on any host.

    Attributes:
        scenario: a name, or the path of a file.
        kernel: a SPEC.
        configs: fragments on top of the base configuration.
        series: a folder or mbox of patches.
        qemu: a program, None for the QEMU of the host.
        repeat: guests for each load.
        timeout: seconds until a guest must be ready.
    """

    scenario: str
    kernel: str = "debian:7.2"
    configs: tuple[str, ...] = ()
    series: str | None = None
    policy: Policy = "per_range"
    qemu: str | None = None
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    repeat: int = 1
    timeout: int = 120

    @property
    def request(self) -> KernelRequest:
        """The requested kernel, without the fragments of the scenario."""
        return KernelRequest(self.kernel, self.configs, Path(self.series) if self.series else None)

    @property
    def name(self) -> str:
        """A readable name, unique in the matrix."""
        words = [self.scenario, "on", str(self.request), self.policy]
        return " ".join([*words, *([f"qemu={self.qemu}"] if self.qemu else [])])


@dataclass(frozen=True)
class Dropped:
    """An entry that is left out, and the reason."""

    combination: Combination
    reason: str


@dataclass(frozen=True)
class Plan:
    """The entries to run, sorted by name, and those left out."""

    chosen: tuple[Combination, ...]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True)
class Facts:
    """Facts that decide which entries are left out.

    Attributes:
        scenarios: kernel requirements by scenario.
        fragments: options by fragment, without CONFIG_.
        policies: policies by series, None where the series has none.
    """

    scenarios: Mapping[str, KernelNeeds]
    fragments: Mapping[str, Mapping[str, str]]
    policies: Mapping[str, Policy | None]


def read_matrix(text: str, name: str) -> Document[Matrix]:
    """Read a matrix file.

    Raises:
        UsageError: it is invalid; with file, line and field.
    """
    document = read_document(text, name, Matrix, guide="docs/matrix.md")
    for axis in AXES:
        values: tuple[str, ...] = getattr(document.value, axis)
        if not values:
            raise document.error(axis, "the axis is empty", hint=f"add an item, or remove {axis}")
        for index, value in enumerate(values):
            if not value.strip():
                raise document.error(
                    f"{axis}[{index}]", "empty name", hint="write a name, or remove the item"
                )
            if value in values[:index]:
                raise document.error(
                    f"{axis}[{index}]", f"duplicate {value!r}", hint="remove one of them"
                )
    return document


def configs_of(value: str) -> tuple[str, ...]:
    """Split an item of the axis `configs` into fragments."""
    names = (name.strip() for name in value.split(","))
    return tuple(name for name in names if name and name != NO_CONFIG)


def plan_matrix(matrix: Matrix, scenarios: Sequence[str], facts: Facts) -> Plan:
    """Expand the axes into entries, and separate those to leave out.

    Args:
        scenarios: the names that the patterns of the axis match.
    """
    chosen: dict[tuple[object, ...], Combination] = {}
    dropped = []
    for scenario, kernel, config, series, policy, qemu in itertools.product(
        dict.fromkeys(scenarios),
        matrix.kernels,
        matrix.configs,
        matrix.series,
        matrix.policies,
        matrix.qemus,
    ):
        patches = None if series == NO_SERIES else series
        implemented = facts.policies.get(patches) if patches else None
        one = Combination(
            scenario=scenario,
            kernel=kernel,
            configs=configs_of(config),
            series=patches,
            policy=(implemented or "per_range") if policy == "auto" else policy,
            qemu=None if qemu == USUAL_QEMU else qemu,
            accel=matrix.accel,
            repeat=matrix.repeat,
            timeout=matrix.timeout,
        )
        needs = facts.scenarios[scenario]
        run = with_configs(one.request, needs.configs)
        key = (scenario, run.spec, run.configs, run.series, one.policy, one.qemu)
        reason = next((e.reason for e in matrix.exclude if e.covers(one)), None)
        reason = reason or why_not(one, needs, facts)
        if reason is None and run.spec != kernel and not matrix.build:
            fragments = ", ".join(needs.configs)
            reason = f"the scenario needs a kernel built with {fragments}"
        if reason is None and key in chosen:
            reason = f"the same as {chosen[key].name}"
        if reason is None:
            chosen[key] = one
        else:
            dropped.append(Dropped(one, reason))
    return Plan(tuple(sorted(chosen.values(), key=lambda c: c.name)), tuple(dropped))


def why_not(one: Combination, needs: KernelNeeds, facts: Facts) -> str | None:
    """Return the reason to leave out an entry, or None."""
    prebuilt = not one.kernel.startswith("build:")
    if prebuilt and (one.configs or one.series):
        what = f"the series {one.series}" if one.series else f"the configuration {one.configs[0]}"
        return f"{what} needs a kernel that is built, and {one.kernel} is prebuilt: use build:"
    return _config_conflict(one, needs, facts) or _policy_conflict(one, facts)


def _config_conflict(one: Combination, needs: KernelNeeds, facts: Facts) -> str | None:
    requested = [(name, facts.fragments.get(name, {})) for name in one.configs]
    own = [name for name in needs.configs if name not in one.configs]
    for name, options in requested:
        for option, value in options.items():
            # Fragments of the scenario are merged last, and would override the axis.
            for other in own:
                theirs = facts.fragments.get(other, {}).get(option)
                if theirs is not None and theirs != value:
                    return (
                        f"the scenario needs {other}, which has {option}={theirs}, "
                        f"and {name} has {option}={value}"
                    )
            required = needs.config.get(option)
            off = required == "enabled" and value == "n"
            if off or required not in (None, "enabled", value):
                return f"the scenario needs {option}={required}, and {name} has {option}={value}"
    return None


def _policy_conflict(one: Combination, facts: Facts) -> str | None:
    if one.series is not None:
        implemented = facts.policies.get(one.series)
        if implemented not in (None, one.policy):
            return f"the series {one.series} implements {implemented}"
        return None
    match = _DEBIAN_VERSION.match(one.kernel)
    if match and (int(match[1]), int(match[2])) >= _MERGED and one.policy != "per_range":
        return f"Linux {match[1]}.{match[2]} implements per_range"
    return None


def shard(combinations: Sequence[Combination], number: int, of: int) -> tuple[Combination, ...]:
    """Select the entries of one shard.

    Every entry is in exactly one shard, and shards differ by at most one in size.

    Args:
        number: 1 to `of`.
    """
    if not 1 <= number <= of:
        raise ValueError(f"there is no shard {number} of {of}")
    return tuple(combinations[number - 1 :: of])
