# SPDX-License-Identifier: GPL-2.0-or-later
"""Prepare everything that a run needs, before evidence is written or a guest is started."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from harness.contract.expected import Expected, check_stated, expectations
from harness.contract.oracle import DRIVER_OPTIONS, as_run
from harness.core.cache import Store
from harness.core.errors import NotConfigurableError, UsageError
from harness.core.files import made_again, require_whole
from harness.core.kernel import Kernel
from harness.core.kernel_modules import ModulePlan, module_name
from harness.core.paths import store_root
from harness.core.progress import Progress
from harness.core.stale_qemu import reap_orphans
from harness.guest.initramfs import (
    BOOT_MODULES,
    SCENARIO_MODULES,
    SharedInitramfs,
    shared_initramfs,
)
from harness.guest.userland import userland
from harness.kernels.build.config import parse_config
from harness.kernels.resolve import resolve_kernel
from harness.kernels.store import (
    discard_damaged,
    entry_in_use,
    kernel_in_use,
    require_whole_modules,
)
from harness.machine.accelerator import AcceleratorOption, choose_accelerator
from harness.machine.address_probe import machine_layout
from harness.machine.qemu_argv import Accelerator
from harness.machine.qemu_binary import QemuBinary, require_qemu
from harness.platform.acpi_tables import override_srat
from harness.platform.address_map import MachineLayout
from harness.platform.firmware_state import FirmwareState, place_firmware
from harness.platform.hdm_decoders import DecoderSetting, plan_decoders
from harness.platform.kernel_cmdline import kernel_command_line
from harness.runs.requirements import (
    NotApplicableError,
    check_kernel,
    check_removable,
    not_about,
)
from harness.scenario.allowed_messages import allowed_messages
from harness.scenario.guest_memory import check_acpi_tables, check_page_structs
from harness.scenario.kernel_request import KernelRequest, with_configs
from harness.scenario.scenario import POLICIES, Policy, Scenario
from harness.scenario.scenario_files import Case, load_quirks

# These probe by themselves: an ACPI device, a PCI function, the platform device of Soft Reserved
# memory. The other drivers wait for devices that these create.
_FIRST_DRIVERS = ("cxl_acpi", "cxl_pci", "dax_hmem")

# Debug checks make a kernel five to ten times as slow.
_SCALE_WITH_CHECKS = 10.0
# Two minutes each: the kernel reports a soft lockup after twice the threshold, in seconds.
_WATCHDOGS = {
    b"SOFTLOCKUP_DETECTOR": "watchdog_thresh=60",
    b"WQ_WATCHDOG": "workqueue.watchdog_thresh=120",
}

_ANSWER = "answer.json"
Result = TypeVar("Result")


class MissingModuleError(UsageError):
    """The kernel lacks a module that the scenario names."""


@dataclass
class Host:
    """This machine: its QEMU, its store, and how it runs guests.

    Attributes:
        qemu: the QEMU.
        store: kernels and other kept files.
        progress: gets reports of long operations.
        accel: the requested accelerator.
        requested_qemu: the QEMU that the user named for these runs, None for the default one.
    """

    qemu: QemuBinary
    store: Store
    progress: Progress
    accel: AcceleratorOption
    requested_qemu: str | None = None
    _noted: set[str] = field(default_factory=set, init=False, repr=False)

    def note_once(self, text: str) -> None:
        """Report a text to the user, once for all runs."""
        if text and text not in self._noted:
            self._noted.add(text)
            self.progress.note(text)

    def again_if_damaged(self, get: Callable[[], Result]) -> Result:
        """Get something from the store; damaged entries are made again first.

        Raises:
            UsageError: an entry is damaged, and a run uses it.
        """
        return made_again(get, lambda error: discard_damaged(error, self.store, self.progress))

    def remember(self, kind: str) -> Callable[[str, Callable[[], dict[str, str]]], dict[str, str]]:
        """A function that returns the stored answer for a key, or gets and stores it."""

        def recall(key: str, ask: Callable[[], dict[str, str]]) -> dict[str, str]:
            def get() -> dict[str, str]:
                entry = self.store.build(
                    kind,
                    key,
                    lambda folder: (folder / _ANSWER).write_text(json.dumps(ask())),
                    what=f"an entry of {kind}",
                    progress=self.progress,
                )
                require_whole(entry, (_ANSWER,))
                answer: dict[str, str] = json.loads((entry / _ANSWER).read_text())
                return answer

            return self.again_if_damaged(get)

        return recall


def this_host(progress: Progress, accel: AcceleratorOption, qemu: str | None = None) -> Host:
    """The machine that the harness runs on. Ends the QEMUs that a killed harness has left.

    Raises:
        UsageError: QEMU is missing, too old, or was built without CXL.
    """
    reap_orphans()
    return Host(require_qemu(qemu), Store(store_root()), progress, accel, qemu)


@dataclass(frozen=True)
class Bootable:
    """A kernel that can be booted on this host, with its initramfs and accelerator."""

    kernel: Kernel
    initramfs: SharedInitramfs
    accel: Accelerator

    @cached_property
    def config_sha256(self) -> str | None:
        """Digest of the kernel's configuration, None for a kernel without one."""
        return None if self._config is None else hashlib.sha256(self._config).hexdigest()

    @cached_property
    def driver_options(self) -> dict[str, Literal["y", "m", "n"]]:
        """The configuration options of the drivers; empty for a kernel without a configuration."""
        if self._config is None:
            return {}
        config = parse_config(self._config.decode(errors="replace"))
        found: dict[str, Literal["y", "m", "n"]] = {}
        for option in ("CXL_REGION", *DRIVER_OPTIONS.values()):
            value = config.value(option)
            found[option] = "y" if value == "y" else "m" if value == "m" else "n"
        return found

    @property
    def finds_leaks(self) -> bool:
        """True if the kernel has kmemleak."""
        return self._config is not None and b"\nCONFIG_DEBUG_KMEMLEAK=y\n" in self._config

    @property
    def parameters(self) -> tuple[str, ...]:
        """The command line parameters that this kernel needs in every scenario."""
        # With five page table levels, KASAN was seen to report a wild access while the boot CPU is
        # identified (its features are cleared for a moment), which taints the kernel and turns
        # lockdep off.
        config = self._config or b""
        found = ["no5lvl"] if b"\nCONFIG_KASAN=y\n" in config else []
        # A lockup that the kernel reports after 20 or 30 s may be the slowness of its own checks.
        for option, parameter in _WATCHDOGS.items():
            if self.timeout_scale > 1 and b"\nCONFIG_%s=y\n" % option in config:
                found.append(parameter)
        return tuple(found)

    @property
    def timeout_scale(self) -> float:
        """The timeout scale of guests with this kernel, 1 or more."""
        slow = (
            b"\nCONFIG_KASAN=y\n",
            b"\nCONFIG_PROVE_LOCKING=y\n",
            b"\nCONFIG_DEBUG_KMEMLEAK=y\n",
        )
        found = self._config is not None and any(line in self._config for line in slow)
        return _SCALE_WITH_CHECKS if found else 1.0

    @cached_property
    def _config(self) -> bytes | None:
        return None if self.kernel.config is None else self.kernel.config.read_bytes()


@contextmanager
def in_use(bootable: Bootable) -> Iterator[None]:
    """Protect a kernel and its initramfs in the store from removal.

    Raises:
        UsageError: the kernel has just been removed.
    """
    with kernel_in_use(bootable.kernel), entry_in_use(bootable.initramfs.archive.parent):
        yield


def request_for(case: Case, request: KernelRequest) -> KernelRequest:
    """The kernel that a scenario runs on: the requested one with the scenario's fragments.

    No distribution ships a kernel with fragments.
    """
    return with_configs(request, case.scenario.kernel.configs)


def policy_for(requested: Policy | None, request: KernelRequest) -> Policy:
    """The policy to judge by: the requested one, else that of the series, else the default.

    Raises:
        UsageError: the request's series is invalid.
    """
    if requested is None and request.series is not None:
        from harness.kernels.build.series import read_series

        requested = read_series(request.series).policy
    return requested or POLICIES[0]


def prepare_kernel(host: Host, request: KernelRequest, modules: tuple[str, ...] = ()) -> Bootable:
    """Get a kernel, its initramfs with at least these modules, and an accelerator.

    Raises:
        UsageError: no such kernel, or the accelerator is not available.
        NotApplicableError: the kernel was built without a driver.
        MissingModuleError: the kernel lacks another module.
        UnbuildableError: the kernel does not build, or a patch does not apply.
    """
    return host.again_if_damaged(lambda: _prepare_kernel(host, request, modules))


def _prepare_kernel(host: Host, request: KernelRequest, modules: tuple[str, ...]) -> Bootable:
    kernel = resolve_kernel(request, host.store, host.progress)
    programs = userland(host.store, host.progress)
    included = tuple(dict.fromkeys((*BOOT_MODULES, *SCENARIO_MODULES, *sorted(modules))))

    def modules_in(folder: Path) -> tuple[ModulePlan, Mapping[str, bytes]]:
        from harness.kernels.build.depmod import guest_modules

        require_whole_modules(kernel, host.store)
        return guest_modules(kernel.modules, included, programs, folder)

    initramfs = shared_initramfs(kernel, included, programs, host.store, host.progress, modules_in)
    for name in (*BOOT_MODULES, *modules):
        if module_name(name) in initramfs.missing:
            if option := DRIVER_OPTIONS.get(module_name(name)):
                raise NotApplicableError(
                    f"this kernel has no {name} ({option} is off)",
                    where=f"kernel {request} ({kernel.release})",
                    hint="name the modules to load with --load, or use a kernel that has it",
                )
            raise MissingModuleError(
                initramfs.missing[module_name(name)],
                where=f"kernel {request} ({kernel.release})",
                hint="correct the name in guest.load, or use a kernel that has it",
            )
    accel, note = choose_accelerator(
        host.accel,
        host.qemu,
        kernel.image,
        initramfs.archive,
        host.remember("accelerators"),
    )
    host.note_once(note)
    return Bootable(kernel, initramfs, accel)


@dataclass(frozen=True)
class Prepared:
    """A scenario at real addresses, with the kernel to run it on."""

    case: Case
    bootable: Bootable
    layout: MachineLayout
    state: FirmwareState
    settings: tuple[DecoderSetting, ...]
    command_line: str
    acpi_tables: dict[str, bytes]

    def starting_drivers(self) -> tuple[str, ...]:
        """The built-in drivers that probe by themselves, before the scenario's first step."""
        shared = self.bootable.initramfs
        return tuple(one for one in _FIRST_DRIVERS if one not in {*shared.modules, *shared.missing})

    @property
    def boot_counts(self) -> bool:
        """True if the boot is a step of the scenario: such a driver is built in."""
        return bool(self.starting_drivers())

    def as_run(self, modules: Collection[str]) -> Scenario:
        """The scenario with the drivers and options that a guest really has.

        Args:
            modules: those in the guest's /proc/modules.
        """
        loaded = {*modules, *self.built_in_drivers()}
        return as_run(
            self.case.scenario,
            loaded,
            self.bootable.driver_options,
            self.bootable.kernel.release,
        )

    def built_in_drivers(self) -> tuple[str, ...]:
        """The drivers that are built into the kernel."""
        shared = self.bootable.initramfs
        return tuple(one for one in DRIVER_OPTIONS if one not in {*shared.modules, *shared.missing})

    def expectations(self, policy: Policy, modules: Collection[str] = ()) -> tuple[Expected, ...]:
        """The expectations after the modules are loaded, then after each step.

        Args:
            policy: the policy of the contract.
            modules: see `as_run`.
        """
        scenario = self.as_run(modules)
        return expectations(scenario, self.state, policy, as_stated=self.case.as_stated)

    def expected_lines(self) -> tuple[re.Pattern[str], ...]:
        """The kernel messages that do not count: expected by the scenario, or caused by QEMU.

        Raises:
            UsageError: the file of QEMU's quirks is invalid.
        """
        stated = allowed_messages(self.case.scenario, self.case.profile)
        return (*stated, *load_quirks().patterns(self.bootable.accel))


def prepare_case(host: Host, case: Case, request: KernelRequest) -> Prepared:
    """Resolve a scenario for a kernel.

    Raises:
        UsageError: the scenario does not fit its machine, or the kernel is not available.
        NotApplicableError: the kernel's configuration does not fit the scenario, or its source
            does not allow one that does.
        MachineLostError: QEMU failed to report its address map.
    """
    scenario = case.scenario
    layout = machine_layout(host.qemu, case.profile, host.remember("layouts"))
    state = place_firmware(case.document, case.profile, layout)
    check_acpi_tables(case.document, state)
    check_page_structs(case.document, state)
    if case.as_stated:
        check_stated(case.document, state)
    settings = plan_decoders(case.profile, state)
    later_modules = (name for step in scenario.guest.then for name in step.modules())
    modules = (*scenario.guest.modules, *scenario.guest.missing, *later_modules)
    try:
        bootable = prepare_kernel(host, request, modules)
    except NotConfigurableError as error:
        raise not_about(case, error) from error
    check_kernel(case, bootable.kernel, request)
    check_removable(case, bootable.initramfs.modules)
    tables = {"CEDT": layout.cedt} if layout.cedt else {}
    if state.srat:
        tables["SRAT"] = override_srat(layout.srat, state.srat)
    return Prepared(
        case=case,
        bootable=bootable,
        layout=layout,
        state=state,
        settings=settings,
        command_line=kernel_command_line(
            state,
            (*bootable.parameters, *scenario.kernel.cmdline),
            scenario.guest.async_probe,
        ),
        acpi_tables=tables,
    )
