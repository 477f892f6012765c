# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios: profile, firmware state, kernel needs, guest steps and expected owners."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from harness.contract.dmesg import ANY_MESSAGE
from harness.scenario.module_load import LoadPlan, ModuleName
from harness.scenario.owner import OwnerName as OwnerName
from harness.scenario.owner import Ownership as Ownership
from harness.scenario.owner import RangeName as RangeName
from harness.scenario.owner import Use as Use
from harness.scenario.post_boot_steps import GuestStep
from harness.scenario.profile import Name
from harness.scenario.yaml_document import Address, Document, Size, read_document

Policy = Literal["per_range", "all_or_nothing"]
POLICIES: tuple[Policy, ...] = ("per_range", "all_or_nothing")


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a range lies: in a window, over a NUMA node's RAM, or at given addresses.

    Attributes:
        window: number of a window; with offset and size, a part of it.
        offset: bytes from the window's start.
        size: bytes; without it, to the window's end.
        node: number of a NUMA node, whose RAM is one range.
        start: first address.
        end: last address, inclusive.
        last_window: with window, the range goes on to the end of this window.
    """

    window: int | None = None
    offset: Size = Size(0)
    size: Size | None = None
    last_window: int | None = None
    node: int | None = None
    start: Address | None = None
    end: Address | None = None


class Decoder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """HDM decoders that the firmware committed, from host bridge to endpoint, for one range.

    Attributes:
        name: for `expect`, when no Soft Reserved range lies in it; default `decoderN`.
        window: number of the window it lies in.
        offset: bytes from the window's start.
        size: bytes of host physical addresses.
        devices: type-3 devices by name; several interleave, in this order.
        granularity: bytes of one interleave step; default the window's.
        ports_size: bytes that the host bridge and the switches decode from the same offset, when
            it is more than what the devices decode: memory works, but Linux finds no region in it.
        locked: lock them when they are committed (CXL 3.1, 8.2.4.20.7): Linux then leaves them
            committed when it tears their region down.
    """

    name: Name | None = None
    window: int
    offset: Size = Size(0)
    size: Size
    ports_size: Size | None = None
    devices: tuple[Name, ...]
    granularity: int | None = None
    locked: bool = False


class SratEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A memory entry added to the firmware's SRAT."""

    window: int
    offset: Size = Size(0)
    size: Size | None = None
    node: Annotated[int, msgspec.Meta(ge=0, le=255)]
    hotplug: bool = False


class AcpiOverrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the firmware's ACPI tables say beyond what QEMU builds."""

    srat: tuple[SratEntry, ...] = ()


class Firmware(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a BIOS would have done before the kernel starts."""

    soft_reserved: dict[Name, Position] = {}
    decoders: tuple[Decoder, ...] = ()
    acpi: AcpiOverrides = AcpiOverrides()


class KernelNeeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the kernel must be.

    Attributes:
        configs: fragments of kernel_configs/ that a kernel built for it has on top of the base.
        config: options, without CONFIG_, and their values `y`, `m`, `n`, or `enabled` for y or m;
            a kernel built otherwise is skipped with the reason.
        cmdline: parameters added to the kernel's command line.
        since: the first kernel version that it is about, such as `7.1`; an older one without a
            series on top is skipped with the reason.
    """

    configs: tuple[Name, ...] = ()
    config: dict[
        Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9_]+\Z")], Literal["y", "m", "n", "enabled"]
    ] = {}
    cmdline: tuple[Annotated[str, msgspec.Meta(pattern=r"^[!-~]+\Z")], ...] = ()
    since: Annotated[str, msgspec.Meta(pattern=r"^([0-9]+\.[0-9]+(\.[0-9]+)?)?\Z")] = ""


class GuestSteps(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is done inside the guest.

    Attributes:
        missing: modules whose files are taken away first, so that nothing can load them.
        load: modules to load, in this order, or a plan of several loads.
        async_probe: drivers, by name, that probe asynchronously (`driver_async_probe=`).
        then: steps after the owners have settled; the contract is judged after each.
    """

    missing: tuple[ModuleName, ...] = ()
    load: tuple[ModuleName, ...] | LoadPlan = ()
    async_probe: tuple[ModuleName, ...] = msgspec.field(default=(), name="async")
    then: tuple[GuestStep, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that are loaded, in whatever order."""
        return self.load.modules if isinstance(self.load, LoadPlan) else self.load


class ExpectedLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A kernel message that is expected, as a regular expression, and why."""

    pattern: str
    reason: Annotated[str, msgspec.Meta(min_length=10)]


class Expectations(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Expected owners, by name of the Soft Reserved range or decoder, for each policy.

    What is not stated is as the contract has it. What is stated differently from the contract is
    an error, unless `why_not_the_contract` gives the reason; then it replaces the contract.
    """

    per_range: dict[RangeName, Ownership] = {}
    all_or_nothing: dict[RangeName, Ownership] = {}
    why_not_the_contract: Annotated[str, msgspec.Meta(min_length=20)] | None = None
    dmesg: tuple[ExpectedLine, ...] = ()

    def owners(self, policy: Policy) -> dict[str, Ownership]:
        """The expected owners under one policy."""
        return self.per_range if policy == "per_range" else self.all_or_nothing


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One case: a machine, what its firmware did, what the guest does, and who must own what.

    Attributes:
        summary: what the case is about.
        source: where in the discussion or the specification it comes from.
        profile: name of the profile in qemu_profiles/, or, with a / in it, the path of its file
            from the scenario's folder.
    """

    summary: str
    source: str
    profile: str
    firmware: Firmware = Firmware()
    kernel: KernelNeeds = KernelNeeds()
    guest: GuestSteps
    expect: Expectations = Expectations()


def read_scenario(text: str, name: str) -> Document[Scenario]:
    """Read a scenario file; whether its profile allows it is for `check_scenario` to say.

    Raises:
        UsageError: names file, line and field.
    """
    document = read_document(text, name, Scenario)
    for index, line in enumerate(document.value.expect.dmesg):
        try:
            if re.search(line.pattern, ANY_MESSAGE):
                raise document.error(
                    f"expect.dmesg[{index}].pattern",
                    "matches messages that have nothing to do with the case",
                    hint="name the driver and what it says",
                )
        except re.error as error:
            raise document.error(
                f"expect.dmesg[{index}].pattern",
                f"not a regular expression: {error}",
                hint="escape brackets and dots that are meant as they stand",
            ) from None
    return document


def decoder_name(scenario: Scenario, index: int) -> str:
    """The name by which `expect` and the reports call a decoder of the scenario."""
    return scenario.firmware.decoders[index].name or f"decoder{index}"
