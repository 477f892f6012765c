# SPDX-License-Identifier: GPL-2.0-or-later
"""Check that a scenario applies to a kernel."""

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
    """The scenario does not apply to the kernel: nothing to judge."""


def not_about(case: Case, error: NotConfigurableError) -> HarnessError:
    """Interpret a source that cannot be configured as requested.

    If the source does not allow the scenario's own fragments, the scenario does not apply.
    """
    if not error.fragments <= {f"{name}.config" for name in case.scenario.kernel.configs}:
        return error
    return NotApplicableError(
        f"{case.name} needs a kernel that this source does not allow:\n{error.message}",
        hint="use the source of another version",
    )


def check_removable(case: Case, modules: Collection[str]) -> None:
    """Refuse a kernel with a built-in driver that the scenario removes.

    Args:
        case: the scenario.
        modules: those with a file in the guest.

    Raises:
        NotApplicableError: there is no module file to remove.
    """
    built_in = [one for one in case.scenario.guest.missing if module_name(one) not in modules]
    if built_in:
        raise NotApplicableError(
            f"{case.name} removes {', '.join(built_in)}, which this kernel has built in",
            hint="use a kernel that has it as a module",
        )


def check_kernel(case: Case, kernel: Kernel, request: KernelRequest) -> None:
    """Refuse a kernel to which a scenario does not apply.

    Raises:
        NotApplicableError: the kernel is too old and has no series on top, or its configuration
            differs from the scenario's.
    """
    since = case.scenario.kernel.since
    version = kernel_version(kernel.release)
    if since and request.series is None and any(version) and version < kernel_version(since):
        raise NotApplicableError(
            f"{case.name} needs Linux {since} or later, and {kernel.spec} is {kernel.release}",
            hint="use a newer kernel, or apply the series under test with --series",
        )
    needs = case.scenario.kernel.config
    if not needs:
        return
    if kernel.config is None:
        raise NotApplicableError(
            f"{case.name} needs {_listed(needs)}, and {kernel.spec} has no config file",
            hint="use a kernel that has its config file in the same folder",
        )
    config = parse_config(kernel.config.read_text())
    wrong = {
        option: value
        for option, value in needs.items()
        if config.value(option) != value and not (value == "enabled" and config.enabled(option))
    }
    if wrong:
        actual = ", ".join(f"{option}={config.value(option)}" for option in wrong)
        raise NotApplicableError(
            f"{case.name} needs {_listed(wrong)}, and {kernel.spec} was built with {actual}",
            hint="use a kernel with this configuration",
        )


def _listed(options: Mapping[str, str]) -> str:
    return ", ".join(f"{option}={value}" for option, value in options.items())
