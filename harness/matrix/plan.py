# SPDX-License-Identifier: GPL-2.0-or-later
"""A matrix file: its axes become combinations; what makes no sense is left out, with the reason."""

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
"""The kernel in the matrix of a nightly that stands for the branch of that night."""
AXES = ("kernels", "configs", "series", "policies", "scenarios", "qemus")

AskedPolicy = Literal["auto", "per_range", "all_or_nothing"]

# Mainline has the ownership series, with the policy per_range, since this version.
_MERGED = (7, 1)
_DEBIAN_VERSION = re.compile(r"(?:build:)?debian:(\d+)\.(\d+)")


class Exclusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Combinations that somebody wants left out: those for which every pattern here matches.

    Attributes:
        reason: why, as it is reported.
    """

    kernel: str = "*"
    config: str = "*"
    series: str = "*"
    policy: str = "*"
    scenario: str = "*"
    qemu: str = "*"
    reason: Annotated[str, msgspec.Meta(min_length=10)]

    def covers(self, one: Combination) -> bool:
        """Whether a combination is one of those."""
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
    """The axes of a matrix; every list has at least one item, and no item twice.

    Attributes:
        summary: what the matrix is for.
        kernels: SPECs.
        configs: fragments on top of the base configuration, with commas between; `base` for none.
        series: folders or mboxes of patches; `none` for no patches.
        policies: `auto` for the one that the series implements.
        scenarios: names, patterns of names, or files.
        qemus: programs; `default` for the usual one.
        accel: what runs guests.
        repeat: guests for each load of a scenario.
        timeout: seconds that a guest may take to become ready.
        build: whether a scenario that needs fragments may have a kernel built where a prebuilt one
            is asked for.
        exclude: combinations to leave out.
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
    """One run of a matrix, with all that it takes to do it anywhere.

    Attributes:
        scenario: its name, or the path of its file.
        kernel: a SPEC.
        configs: fragments on top of the base configuration.
        series: patches, or None.
        policy: whose rules are judged.
        qemu: the program, None for the usual one.
        accel: what runs guests.
        repeat: guests for each load.
        timeout: seconds that a guest may take to become ready.
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
        """The kernel that is asked for, without what the scenario needs on top."""
        return KernelRequest(self.kernel, self.configs, Path(self.series) if self.series else None)

    @property
    def name(self) -> str:
        """What tells it from every other combination of its matrix, for people."""
        words = [self.scenario, "on", str(self.request), self.policy]
        return " ".join([*words, *([f"qemu={self.qemu}"] if self.qemu else [])])


@dataclass(frozen=True)
class Dropped:
    """A combination that makes no sense, and why."""

    combination: Combination
    reason: str


@dataclass(frozen=True)
class Plan:
    """What is run of a matrix, sorted by name, and what is not."""

    chosen: tuple[Combination, ...]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True)
class Facts:
    """What decides whether a combination makes sense.

    Attributes:
        scenarios: what each scenario's kernel must be, by name.
        fragments: the options of each fragment, without CONFIG_, by the fragment's name.
        policies: the policy that each series implements, None where it does not say.
    """

    scenarios: Mapping[str, KernelNeeds]
    fragments: Mapping[str, Mapping[str, str]]
    policies: Mapping[str, Policy | None]


def read_matrix(text: str, name: str) -> Document[Matrix]:
    """Read a matrix file.

    Raises:
        UsageError: names file, line and field.
    """
    document = read_document(text, name, Matrix, guide="docs/matrix.md")
    for axis in AXES:
        values: tuple[str, ...] = getattr(document.value, axis)
        if not values:
            raise document.error(
                axis, "the axis is empty", hint=f"name at least one, or leave {axis} out"
            )
        for index, value in enumerate(values):
            if not value.strip():
                raise document.error(
                    f"{axis}[{index}]", "an empty name", hint="name something, or remove it"
                )
            if value in values[:index]:
                raise document.error(
                    f"{axis}[{index}]", f"{value!r} stands twice", hint="remove one of the two"
                )
    return document


def configs_of(value: str) -> tuple[str, ...]:
    """The fragments that an item of the axis `configs` names."""
    names = (name.strip() for name in value.split(","))
    return tuple(name for name in names if name and name != NO_CONFIG)


def plan_matrix(matrix: Matrix, scenarios: Sequence[str], facts: Facts) -> Plan:
    """All combinations of the axes, those that make no sense apart.

    Args:
        matrix: the axes.
        scenarios: the names that the axis of scenarios stands for.
        facts: about everything that the axes name.
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
            reason = f"the scenario needs a kernel that is built with {fragments}"
        if reason is None and key in chosen:
            reason = f"the same as {chosen[key].name}"
        if reason is None:
            chosen[key] = one
        else:
            dropped.append(Dropped(one, reason))
    return Plan(tuple(sorted(chosen.values(), key=lambda c: c.name)), tuple(dropped))


def why_not(one: Combination, needs: KernelNeeds, facts: Facts) -> str | None:
    """Why a combination makes no sense, None when it does.

    Args:
        one: the combination.
        needs: what its scenario needs of the kernel.
        facts: about its fragments and its series.
    """
    prebuilt = not one.kernel.startswith("build:")
    if prebuilt and (one.configs or one.series):
        what = f"the series {one.series}" if one.series else f"the configuration {one.configs[0]}"
        return f"{what} takes a kernel that is built, and {one.kernel} is not: write build:"
    return _config_conflict(one, needs, facts) or _policy_conflict(one, facts)


def _config_conflict(one: Combination, needs: KernelNeeds, facts: Facts) -> str | None:
    asked = [(name, facts.fragments.get(name, {})) for name in one.configs]
    own = [name for name in needs.configs if name not in one.configs]
    for name, options in asked:
        for option, value in options.items():
            # What the scenario brings comes later, and would undo what the axis is about.
            for other in own:
                theirs = facts.fragments.get(other, {}).get(option)
                if theirs is not None and theirs != value:
                    return (
                        f"the scenario needs {other}, which has {option}={theirs}, "
                        f"and {name} has {option}={value}"
                    )
            wanted = needs.config.get(option)
            off = wanted == "enabled" and value == "n"
            if off or wanted not in (None, "enabled", value):
                return f"the scenario needs {option}={wanted}, and {name} has {option}={value}"
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
    """The part of sorted combinations that falls to one of several machines.

    Every combination is in exactly one shard, and shards differ by at most one in size.

    Args:
        combinations: all of them, in an order that is the same on each machine.
        number: which shard, 1 to `of`.
        of: how many there are.
    """
    if not 1 <= number <= of:
        raise ValueError(f"no shard {number} of {of}")
    return tuple(combinations[number - 1 :: of])
