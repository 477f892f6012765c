# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that a run needs, found or made before anything is written down or started."""

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
from harness.machine.accelerator import AskedAccelerator, choose_accelerator
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
from harness.runs.running_vms import LiveMachines
from harness.scenario.allowed_messages import allowed_messages
from harness.scenario.guest_memory import check_acpi_tables, check_page_structs
from harness.scenario.kernel_request import KernelRequest, with_configs
from harness.scenario.scenario import POLICIES, Policy, Scenario
from harness.scenario.scenario_files import Case, load_quirks

# They answer to an ACPI device, a PCI function and the platform device of Soft Reserved memory.
_FIRST_DRIVERS = ("cxl_acpi", "cxl_pci", "dax_hmem")

# With its own checks a kernel is five to ten times as slow.
_PATIENCE_WITH_CHECKS = 10.0
# Two minutes each: a soft lockup is reported after twice its threshold, in seconds.
_WATCHDOGS = {
    b"SOFTLOCKUP_DETECTOR": "watchdog_thresh=60",
    b"WQ_WATCHDOG": "workqueue.watchdog_thresh=120",
}

_ANSWER = "answer.json"
Result = TypeVar("Result")


class MissingModuleError(UsageError):
    """The kernel lacks a module that the scenario names."""


@dataclass(frozen=True)
class Host:
    """What this machine offers to every run.

    Attributes:
        qemu: the QEMU.
        store: kernels and everything else worth keeping.
        progress: hears of what takes time.
        accel: what the user wants to run guests with.
        live: the guests that run.
        asked_qemu: the QEMU that the user named for these runs, None for the usual one.
    """

    qemu: QemuBinary
    store: Store
    progress: Progress
    accel: AskedAccelerator
    live: LiveMachines = field(default_factory=LiveMachines, repr=False)
    asked_qemu: str | None = None
    _said: set[str] = field(default_factory=set, repr=False)

    def say_once(self, text: str) -> None:
        """Tell the user, but not again for every run."""
        if text and text not in self._said:
            self._said.add(text)
            self.progress.note(text)

    def again_if_damaged(self, get: Callable[[], Result]) -> Result:
        """What a function gets of the store, made again first where that is damaged.

        Raises:
            UsageError: it is damaged, and a run uses it.
        """
        return made_again(get, lambda error: discard_damaged(error, self.store, self.progress))

    def remember(self, kind: str) -> Callable[[str, Callable[[], dict[str, str]]], dict[str, str]]:
        """A function that returns the kept answer for a key, or asks and keeps it."""

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


def this_host(progress: Progress, accel: AskedAccelerator, qemu: str | None = None) -> Host:
    """The machine that the harness runs on.

    Raises:
        UsageError: QEMU is missing, too old, or was built without CXL.
    """
    return Host(require_qemu(qemu), Store(store_root()), progress, accel, asked_qemu=qemu)


@dataclass(frozen=True)
class Bootable:
    """A kernel that can be booted on this host: with its initramfs, and what executes it."""

    kernel: Kernel
    initramfs: SharedInitramfs
    accel: Accelerator

    @cached_property
    def config_sha256(self) -> str | None:
        """Digest of the kernel's configuration, None where its packager ships none."""
        return None if self._config is None else hashlib.sha256(self._config).hexdigest()

    @cached_property
    def driver_options(self) -> dict[str, Literal["y", "m", "n"]]:
        """The options that decide which drivers there are; empty where they are not known."""
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
        """Whether the kernel has kmemleak."""
        return self._config is not None and b"\nCONFIG_DEBUG_KMEMLEAK=y\n" in self._config

    @property
    def parameters(self) -> tuple[str, ...]:
        """What this kernel needs on its command line, whatever the scenario."""
        # With five levels, KASAN was seen to report a wild access while the boot CPU is identified
        # (its features are forgotten for a moment), which taints the kernel and ends lockdep.
        config = self._config or b""
        found = ["no5lvl"] if b"\nCONFIG_KASAN=y\n" in config else []
        # What the kernel takes for a lockup after 20 or 30 s may be the slowness of its own checks.
        for option, parameter in _WATCHDOGS.items():
            if self.patience > 1 and b"\nCONFIG_%s=y\n" % option in config:
                found.append(parameter)
        return tuple(found)

    @property
    def patience(self) -> float:
        """How many times as long as others a guest with this kernel may take for everything."""
        slow = (
            b"\nCONFIG_KASAN=y\n",
            b"\nCONFIG_PROVE_LOCKING=y\n",
            b"\nCONFIG_DEBUG_KMEMLEAK=y\n",
        )
        found = self._config is not None and any(line in self._config for line in slow)
        return _PATIENCE_WITH_CHECKS if found else 1.0

    @cached_property
    def _config(self) -> bytes | None:
        return None if self.kernel.config is None else self.kernel.config.read_bytes()


@contextmanager
def in_use(bootable: Bootable) -> Iterator[None]:
    """Keep a kernel and its initramfs from being removed from the store.

    Raises:
        UsageError: the kernel was removed just before.
    """
    with kernel_in_use(bootable.kernel), entry_in_use(bootable.initramfs.archive.parent):
        yield


def request_for(case: Case, asked: KernelRequest) -> KernelRequest:
    """The kernel that a scenario runs on: what was asked for, with the fragments that it needs.

    A scenario that needs fragments is about a kernel that no distribution ships.
    """
    return with_configs(asked, case.scenario.kernel.configs)


def policy_for(asked: Policy | None, request: KernelRequest) -> Policy:
    """Whose rules are judged: what the user says, else what the series implements, else the first.

    Raises:
        UsageError: the series is none.
    """
    if asked is None and request.series is not None:
        from harness.kernels.build.series import read_series

        asked = read_series(request.series).policy
    return asked or POLICIES[0]


def prepare_kernel(host: Host, request: KernelRequest, modules: tuple[str, ...] = ()) -> Bootable:
    """Get a kernel, its initramfs with at least these modules, and an accelerator.

    Raises:
        UsageError: no such kernel, or the accelerator cannot be had.
        NotApplicableError: the kernel was built without a driver.
        MissingModuleError: the kernel lacks another module.
        UnbuildableError: it does not build, or a patch does not apply.
    """
    return host.again_if_damaged(lambda: _prepare_kernel(host, request, modules))


def _prepare_kernel(host: Host, request: KernelRequest, modules: tuple[str, ...]) -> Bootable:
    kernel = resolve_kernel(request, host.store, host.progress)
    programs = userland(host.store, host.progress)
    wanted = tuple(dict.fromkeys((*BOOT_MODULES, *SCENARIO_MODULES, *sorted(modules))))

    def modules_in(folder: Path) -> tuple[ModulePlan, Mapping[str, bytes]]:
        from harness.kernels.build.depmod import guest_modules

        require_whole_modules(kernel, host.store)
        return guest_modules(kernel.modules, wanted, programs, folder)

    initramfs = shared_initramfs(kernel, wanted, programs, host.store, host.progress, modules_in)
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
    host.say_once(note)
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

    @property
    def boot_counts(self) -> bool:
        """Whether the boot is a step of the scenario: a driver is built in that begins by itself.

        The others wait for what these find.
        """
        shared = self.bootable.initramfs
        return any(name not in {*shared.modules, *shared.missing} for name in _FIRST_DRIVERS)

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
        """The drivers that the kernel has built in."""
        shared = self.bootable.initramfs
        return tuple(one for one in DRIVER_OPTIONS if one not in {*shared.modules, *shared.missing})

    def expectations(self, policy: Policy, modules: Collection[str] = ()) -> tuple[Expected, ...]:
        """What must be so after the modules are loaded, then after each step.

        Args:
            policy: whose rules count.
            modules: as for `as_run`.
        """
        scenario = self.as_run(modules)
        return expectations(scenario, self.state, policy, as_stated=self.case.as_stated)

    def expected_lines(self) -> tuple[re.Pattern[str], ...]:
        """The kernel messages that do not count.

        Those that the scenario brings about, and those that are QEMU's doing.

        Raises:
            UsageError: the file of QEMU's quirks is wrong.
        """
        stated = allowed_messages(self.case.scenario, self.case.profile)
        return (*stated, *load_quirks().patterns(self.bootable.accel))


def prepare_case(host: Host, case: Case, request: KernelRequest) -> Prepared:
    """Resolve a scenario for a kernel.

    Raises:
        UsageError: the scenario does not fit its machine, or the kernel cannot be had.
        NotApplicableError: the kernel was built otherwise than the scenario needs, or its source
            forbids what the scenario needs.
        MachineLostError: QEMU could not be asked for its layout.
    """
    scenario = case.scenario
    layout = machine_layout(host.qemu, case.profile, host.remember("layouts"))
    state = place_firmware(case.document, case.profile, layout)
    check_acpi_tables(case.document, state)
    check_page_structs(case.document, state)
    if case.as_stated:
        check_stated(case.document, state)
    settings = plan_decoders(case.profile, state)
    later = (name for step in scenario.guest.then for name in step.modules())
    modules = (*scenario.guest.modules, *scenario.guest.missing, *later)
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
