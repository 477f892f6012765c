# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios: profile, firmware state, kernel requirements, guest steps and expected owners."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from harness.platform.memory_range import format_size
from harness.scenario.module_load import LoadPlan, ModuleName, normalise_modules
from harness.scenario.owner import OwnerName as OwnerName
from harness.scenario.owner import Ownership as Ownership
from harness.scenario.owner import RangeName as RangeName
from harness.scenario.owner import Use as Use
from harness.scenario.post_boot_steps import GuestStep
from harness.scenario.profile import (
    WAYS,
    WINDOW_GRAIN,
    Name,
    check_granularity,
    require_multiple,
)
from harness.scenario.yaml_document import (
    Address,
    Document,
    FieldError,
    Regex,
    Size,
    read_document,
)

Policy = Literal["per_range", "all_or_nothing"]
POLICIES: tuple[Policy, ...] = ("per_range", "all_or_nothing")


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The place of a range: in a window, over a NUMA node's RAM, or at given addresses.

    Attributes:
        window: number of a window; with offset and size, a part of it.
        offset: bytes from the window's start.
        size: bytes; None for the rest of the window.
        node: number of a NUMA node, whose RAM is one range.
        start: first address.
        end: last address, inclusive.
        last_window: with window, the range extends to the end of this window.
    """

    window: int | None = None
    offset: Size = Size(0)
    size: Size | None = None
    last_window: int | None = None
    node: int | None = None
    start: Address | None = None
    end: Address | None = None

    def __post_init__(self) -> None:
        has_addresses = self.start is not None or self.end is not None
        if [self.window is None, self.node is None, not has_addresses].count(False) != 1:
            raise FieldError(
                "needs exactly one position", hint="give one of: window, node, or start and end"
            )
        if self.window is None and (self.offset or self.size or self.last_window is not None):
            raise FieldError(
                "offset, size and last_window need a window", hint="add window, or remove them"
            )
        if self.last_window is not None and (
            self.size is not None or self.last_window <= (self.window or 0)
        ):
            raise FieldError(
                "needs a later window, and no size",
                field="last_window",
                hint="the range extends from the offset in window to the end of last_window",
            )
        if has_addresses and (self.start is None or (self.end or -1) < self.start):
            raise FieldError(
                "start and end are not a range",
                hint="end is the last address, and not below start",
            )


class Decoder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """HDM decoders that the firmware committed, from host bridge to endpoint, for one range.

    Attributes:
        name: for `expect`, when it contains no Soft Reserved range; default `decoderN`.
        window: number of the window that contains it.
        offset: bytes from the window's start.
        size: bytes of host physical addresses.
        devices: names of type-3 devices; several interleave, in this order.
        granularity: bytes of one interleave step; default the window's.
        ports_size: bytes that the host bridge and the switches decode from the same offset, if
            more than the devices decode: memory works, but Linux assembles no region in it.
        locked: set the Lock On Commit bit (CXL 3.1, 8.2.4.20.7): Linux then leaves them committed
            when it tears their region down.
    """

    name: Name | None = None
    window: int
    offset: Size = Size(0)
    size: Size
    ports_size: Size | None = None
    devices: tuple[Name, ...]
    granularity: int | None = None
    locked: bool = False

    def __post_init__(self) -> None:
        ways = len(self.devices)
        if len(set(self.devices)) != ways or ways not in WAYS:
            raise FieldError(
                f"cannot interleave over {', '.join(self.devices) or 'no device'}",
                field="devices",
                hint=f"list {', '.join(map(str, sorted(WAYS)))} different devices",
            )
        grain = WINDOW_GRAIN * ways
        hint = "use a multiple of 256M for each device (CXL 3.1, 8.2.4.20)"
        require_multiple("offset", self.offset or grain, grain, hint=hint)
        require_multiple("size", self.size, grain, hint=hint)
        if self.granularity is not None:
            check_granularity(self.granularity)
        if self.ports_size is not None and self.ports_size <= self.size:
            raise FieldError(
                f"{format_size(self.ports_size)} is not more than size",
                field="ports_size",
                hint="leave it out where host bridge and devices decode the same range",
            )
        require_multiple("ports_size", self.ports_size or grain, grain, hint=hint)


class SratEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A memory entry added to the firmware's SRAT."""

    window: int
    offset: Size = Size(0)
    size: Size | None = None
    node: Annotated[int, msgspec.Meta(ge=0, le=255)]
    hotplug: bool = False


class AcpiOverrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Changes to the ACPI tables that QEMU builds."""

    srat: tuple[SratEntry, ...] = ()


class Firmware(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The state that a BIOS would have left before the kernel starts."""

    soft_reserved: dict[Name, Position] = {}
    decoders: tuple[Decoder, ...] = ()
    acpi: AcpiOverrides = AcpiOverrides()


class KernelNeeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Requirements on the kernel.

    Attributes:
        configs: fragments of kernel_configs/ added to the base configuration when it is built.
        config: options, without CONFIG_, and their values `y`, `m`, `n`, or `enabled` for y or m;
            a kernel with other values is skipped with the reason.
        cmdline: parameters added to the kernel's command line.
        since: the first kernel version that the scenario applies to, such as `7.1`; an older one
            without a series is skipped with the reason.
    """

    configs: tuple[Name, ...] = ()
    config: dict[
        Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9_]+\Z")], Literal["y", "m", "n", "enabled"]
    ] = {}
    cmdline: tuple[Annotated[str, msgspec.Meta(pattern=r"^[!-~]+\Z")], ...] = ()
    since: Annotated[str, msgspec.Meta(pattern=r"^([0-9]+\.[0-9]+(\.[0-9]+)?)?\Z")] = ""


class GuestSteps(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Steps inside the guest. Module names are normalised: `dax-cxl` becomes `dax_cxl`.

    Attributes:
        missing: modules whose files are removed first, so that nothing can load them.
        load: modules to load, in this order, or a plan of several loads.
        async_probe: names of drivers that probe asynchronously (`driver_async_probe=`).
        then: steps after the owners have settled; the contract is judged after each.
    """

    missing: tuple[ModuleName, ...] = ()
    load: tuple[ModuleName, ...] | LoadPlan = ()
    async_probe: tuple[ModuleName, ...] = msgspec.field(default=(), name="async")
    then: tuple[GuestStep, ...] = ()

    def __post_init__(self) -> None:
        normalise_modules(self, "missing", "load")

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that are loaded, in any order."""
        return self.load.modules if isinstance(self.load, LoadPlan) else self.load


class ExpectedLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An expected kernel message, and the reason for it."""

    pattern: Regex
    reason: Annotated[str, msgspec.Meta(min_length=10)]


class Expectations(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Expected owners, by name of the Soft Reserved range or decoder, for each policy.

    The contract determines owners that are not stated. A stated owner that differs from the
    contract is an error, unless `why_not_the_contract` gives the reason; then it replaces the
    contract.
    """

    per_range: dict[RangeName, Ownership] = {}
    all_or_nothing: dict[RangeName, Ownership] = {}
    why_not_the_contract: Annotated[str, msgspec.Meta(min_length=20)] | None = None
    dmesg: tuple[ExpectedLine, ...] = ()

    def owners(self, policy: Policy) -> dict[str, Ownership]:
        """The expected owners under one policy."""
        return self.per_range if policy == "per_range" else self.all_or_nothing


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One case: a machine, the state its firmware leaves, the guest's steps, expected owners.

    Attributes:
        summary: the subject of the case.
        source: its origin in the discussion or the specification.
        profile: name of the profile in qemu_profiles/, or, with a / in it, the path of its file
            relative to the scenario's folder.
    """

    summary: str
    source: str
    profile: str
    firmware: Firmware = Firmware()
    kernel: KernelNeeds = KernelNeeds()
    guest: GuestSteps
    expect: Expectations = Expectations()


def read_scenario(text: str, name: str) -> Document[Scenario]:
    """Read a scenario file; `check_scenario` checks it against its profile."""
    return read_document(text, name, Scenario)


def decoder_name(scenario: Scenario, index: int) -> str:
    """Return the name of a decoder in `expect` and in reports."""
    return scenario.firmware.decoders[index].name or f"decoder{index}"
