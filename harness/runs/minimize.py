# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the shortest load that still shows a failure, and replace the load of a scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from harness.contract.failure_signature import failures_of, signature
from harness.contract.result import RunResult, Verdict
from harness.core.errors import UsageError
from harness.core.kernel_modules import module_name
from harness.runs.combine import of_one_guest
from harness.runs.prepare import Prepared
from harness.scenario.checks import check_load
from harness.scenario.module_load import Load, LoadPlan, ModuleName
from harness.scenario.scenario_files import Case


def loading(case: Case, load: tuple[str, ...] | LoadPlan) -> Case:
    """The same scenario with another load.

    With other modules, the owners that the scenario states no longer hold: the oracle's count.
    """
    scenario = case.scenario
    guest = msgspec.structs.replace(scenario.guest, load=load)
    same = {module_name(one) for one in scenario.guest.modules} == {
        module_name(one) for one in guest.modules
    }
    document = replace(case.document, value=msgspec.structs.replace(scenario, guest=guest))
    return replace(case, document=document, as_stated=case.as_stated and same)


def requested_load(case: Case, text: str) -> Case:
    """The scenario with the load of `--load`.

    Args:
        case: the scenario.
        text: `all_orders`, `parallel`, `modalias`, `none`, or modules in order, separated by
            commas.

    Raises:
        UsageError: the text is something else, or names a module that the scenario removes.
    """
    modules = case.scenario.guest.modules
    plans = {
        "all_orders": LoadPlan(all_orders=modules),
        "parallel": LoadPlan(parallel=modules),
        "modalias": LoadPlan(modalias=modules),
    }
    if text in plans:
        return loading(case, plans[text]) if modules else case
    names = () if text == "none" else tuple(text.split(","))
    try:
        changed = loading(case, msgspec.convert(names, type=tuple[ModuleName, ...]))
        check_load(changed.document)
        return changed
    except msgspec.ValidationError:
        raise UsageError(
            f"--load {text!r} is neither a list of modules nor a way to load them",
            hint="give all_orders, parallel, modalias, none, or modules such as dax_hmem,kmem",
        ) from None


def with_case(prepared: Prepared, case: Case) -> Prepared:
    """The same machine and kernel for a case that differs only in its load."""
    return replace(prepared, case=case)


def shortest_failing(
    failed: RunResult, prepared: Prepared, run: Callable[[Prepared, Load], RunResult]
) -> Load:
    """The load of a failed run, without the modules that the failure does not need.

    Modules are left out one by one, from the last, as long as the same rules stay broken for the
    same ranges; for findings without a range, as long as their signature stays the same.

    Args:
        failed: the result with the failure.
        prepared: its scenario.
        run: runs a guest of a scenario with a load.
    """
    load = failed.load
    assert load is not None, "the guest was run"
    if load.how != "in_order":
        return load
    expected = of_one_guest(failed)
    for name in reversed(load.modules):
        fewer = Load("in_order", tuple(one for one in load.modules if one != name))
        again = run(with_case(prepared, loading(prepared.case, fewer.modules)), fewer)
        if again.verdict is Verdict.FAIL and _fails_alike(expected, again):
            load = fewer
    return load


def _fails_alike(expected: RunResult, again: RunResult) -> bool:
    if any(finding.range is not None for finding in expected.findings):
        return set(failures_of(expected)) <= set(failures_of(again))
    return signature(expected.findings) <= signature(again.findings)
