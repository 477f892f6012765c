# SPDX-License-Identifier: GPL-2.0-or-later
"""What ci/fuzz_parsers feeds to each parser, where it starts from, and which errors are clean.

Each target takes bytes and returns, or raises anything but a clean error: that is a crash.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.contract.dmesg import (
    DmesgError,
    StepMarks,
    in_phases,
    kernel_warnings,
    parse_dmesg,
    require_whole,
)
from harness.contract.iomem import IomemError, parse_iomem
from harness.contract.observation import ObservationError
from harness.contract.observation_parser import parse_observation, split_sections
from harness.core.errors import UsageError
from harness.core.paths import PROJECT, SCENARIOS
from harness.kernels.build.series import read_series
from harness.platform.acpi_tables import AcpiTableError, parse_cedt, parse_srat, split_tables
from harness.scenario.checks import check_scenario
from harness.scenario.profile import Profile
from harness.scenario.scenario import read_scenario
from harness.scenario.scenario_files import load_profile

FOUND = PROJECT / "tests" / "data" / "fuzz"
"""Below it, a folder a parser: inputs that once crashed it."""

_OBSERVATIONS = PROJECT / "tests" / "data" / "observations"
_TOKEN = "captured"


@dataclass(frozen=True)
class Target:
    """A parser under test.

    Attributes:
        run: feeds it.
        seeds: gives what to start from.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _iomem(data: bytes) -> None:
    with suppress(IomemError):
        tree = parse_iomem(_text(data))
        tree.lines()
        for entry in tree.walk():
            tree.chain(entry.range.start)
            tree.within(entry.range)


def _dmesg(data: bytes) -> None:
    with suppress(DmesgError):
        records = parse_dmesg(_text(data))
        marks = StepMarks("token", ["modprobe kmem"])
        for one in kernel_warnings(in_phases(records, marks)):
            assert one.line and str(one)
        require_whole(records, marks, from_boot=True)


def _observation(data: bytes) -> None:
    with suppress(ObservationError):
        parse_observation(split_sections(_text(data), _TOKEN))


def _acpi(data: bytes) -> None:
    with suppress(AcpiTableError):
        split_tables(data)
    with suppress(AcpiTableError):
        parse_cedt(data)
    with suppress(AcpiTableError):
        parse_srat(data)


@cache
def _profile() -> Profile:
    return load_profile("one_window")


def _scenario(data: bytes) -> None:
    with suppress(UsageError):
        document = read_scenario(_text(data), "fuzzed.yaml")
        check_scenario(document, _profile())


def _patches(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".mbx") as file:
        file.write(data)
        file.flush()
        with suppress(UsageError):
            assert read_series(Path(file.name)).digest


def _sections(name: str) -> Iterable[bytes]:
    for folder in sorted(_OBSERVATIONS.iterdir()):
        yield split_sections((folder / "sections").read_text(), _TOKEN)[name].encode()


def _tables() -> Iterable[bytes]:
    import json

    for path in sorted(_OBSERVATIONS.glob("*/layout.json")):
        stack = [json.loads(path.read_text())]
        while stack:
            value = stack.pop()
            if isinstance(value, (dict, list)):
                stack += value.values() if isinstance(value, dict) else value
            elif isinstance(value, str) and len(value) > 40:
                with suppress(ValueError):
                    yield bytes.fromhex(value)


TARGETS = {
    "iomem": Target(_iomem, lambda: _sections("iomem")),
    "dmesg": Target(_dmesg, lambda: _sections("dmesg")),
    "observation": Target(
        _observation, lambda: [one.read_bytes() for one in sorted(_OBSERVATIONS.glob("*/sections"))]
    ),
    "cedt": Target(_acpi, _tables),
    "scenario": Target(
        _scenario, lambda: [one.read_bytes() for one in sorted(SCENARIOS.glob("*.yaml"))]
    ),
    "patches": Target(
        _patches, lambda: [one.read_bytes() for one in sorted(PROJECT.glob("patches/*/*.patch"))]
    ),
}
