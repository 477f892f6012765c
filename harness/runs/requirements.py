# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a scenario is about a kernel at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from harness.core.errors import HarnessError, NotConfigurableError, UsageError
from harness.core.kernel import Kernel
from harness.core.kernel_modules import module_name
from harness.core.kernel_version import kernel_version
from harness.kernels.build.config import parse_config
from harness.scenario.kernel_request import KernelRequest
from harness.scenario.scenario_files import Case


class NotApplicableError(UsageError):
    """The kernel is not one that the scenario is about: nothing to judge."""


def not_about(case: Case, error: NotConfigurableError) -> HarnessError:
    """What it means for a scenario that a source cannot be configured as asked.

    A source that forbids what the scenario itself asks for is none that the scenario is about.
    """
    if not error.fragments <= {f"{name}.config" for name in case.scenario.kernel.configs}:
        return error
    return NotApplicableError(
        f"{case.name} is about a kernel that this source forbids:\n{error.message}",
        hint="take the source of another version",
    )


def check_removable(case: Case, modules: Collection[str]) -> None:
    """Refuse a kernel with a driver built in that the scenario takes away.

    Args:
        case: the scenario.
        modules: those that the guest has files of.

    Raises:
        NotApplicableError: there is no file to take away.
    """
    built_in = [one for one in case.scenario.guest.missing if module_name(one) not in modules]
    if built_in:
        raise NotApplicableError(
            f"{case.name} takes {', '.join(built_in)} away, which this kernel has built in",
            hint="use a kernel that has it as a module",
        )


def check_kernel(case: Case, kernel: Kernel, request: KernelRequest) -> None:
    """Refuse a kernel that a scenario is not about.

    Raises:
        NotApplicableError: it is older than the scenario's first and has no series on top, or was
            built otherwise.
    """
    since = case.scenario.kernel.since
    version = kernel_version(kernel.release)
    if since and request.series is None and any(version) and version < kernel_version(since):
        raise NotApplicableError(
            f"{case.name} is about Linux {since} and later, and {kernel.spec} is {kernel.release}",
            hint="use a newer kernel, or put the series that it is about on top with --series",
        )
    needs = case.scenario.kernel.config
    if not needs:
        return
    if kernel.config is None:
        raise NotApplicableError(
            f"{case.name} needs {_listed(needs)}, and {kernel.spec} comes without its config",
            hint="use a kernel with a config beside it",
        )
    have = parse_config(kernel.config.read_text())
    wrong = {
        option: value
        for option, value in needs.items()
        if have.value(option) != value and not (value == "enabled" and have.enabled(option))
    }
    if wrong:
        found = ", ".join(f"{option}={have.value(option)}" for option in wrong)
        raise NotApplicableError(
            f"{case.name} needs {_listed(wrong)}, and {kernel.spec} was built with {found}",
            hint="use a kernel that was built so",
        )


def _listed(options: Mapping[str, str]) -> str:
    return ", ".join(f"{option}={value}" for option, value in options.items())
