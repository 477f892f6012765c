# SPDX-License-Identifier: GPL-2.0-or-later
"""The owners that a guest is judged by: the contract's, or those that its scenario states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.contract.oracle import (
    ASKED_BY_DAX_HMEM,
    as_run,
    dax_hmem_asks,
    expected_owners,
    leaves_no_region,
)
from harness.contract.post_boot_oracle import no_region_after_steps, owners_after_steps, parts_of
from harness.core.errors import UsageError
from harness.platform.firmware_state import FirmwareState
from harness.platform.target_node import NodeRange, named_node
from harness.scenario.owner import Ownership
from harness.scenario.scenario import POLICIES, Policy, Scenario
from harness.scenario.yaml_document import Document


@dataclass(frozen=True)
class Expected:
    """Expected state of a guest at one moment.

    Attributes:
        owners: by name of a Soft Reserved range, a part of one, or a decoder.
        no_region: whether no region may be left, see `leaves_no_region`.
        stated_at: field of the scenario for each owner that replaces the contract's.
    """

    owners: Mapping[str, Ownership]
    no_region: bool = False
    stated_at: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Stated:
    owner: Ownership
    field: str


def expectations(
    scenario: Scenario, state: FirmwareState, policy: Policy, *, as_stated: bool = True
) -> tuple[Expected, ...]:
    """Return the expected state after the modules are loaded, then after each step.

    Args:
        scenario: with the modules and options that the guest has, see `as_run`.
        state: where things are.
        policy: whose rules count.
        as_stated: whether owners stated against the contract hold: the guest loads what the file
            names.
    """
    contract = contract_owners(scenario, state, policy)
    no_region = (
        leaves_no_region(scenario, state, policy),
        *no_region_after_steps(scenario, state, policy),
    )
    if scenario.expect.why_not_the_contract is None or not as_stated:
        return tuple(
            Expected(owners, left, {}) for owners, left in zip(contract, no_region, strict=True)
        )
    found = []
    for owners, left, stated in zip(contract, no_region, _stated(scenario, policy), strict=True):
        own = {
            part: one
            for name, one in stated.items()
            for part in parts_of(name, owners) or (name,)
            if not _agree(owners.get(part), one.owner)
        }
        found.append(
            Expected(
                {**owners, **{name: one.owner for name, one in own.items()}},
                left,
                {name: one.field for name, one in own.items()},
            )
        )
    return tuple(found)


def check_stated(document: Document[Scenario], state: FirmwareState) -> None:
    """Compare the owners that a scenario states with the contract's.

    Which modules a guest has in the end can depend on the kernel: dax_hmem may ask for more than
    is named. A statement must hold for one of the two.

    Raises:
        UsageError: they differ, and the scenario gives no reason; names file, line and field.
    """
    scenario = document.value
    _check_names(document, state)
    if scenario.expect.why_not_the_contract is not None:
        return
    more = as_run(scenario, ASKED_BY_DAX_HMEM, {})
    variants = [more] if dax_hmem_asks(scenario) else [scenario]
    if "dax_hmem" in scenario.guest.modules and scenario.kernel.config.get("DEV_DAX_CXL") != "n":
        variants.append(more)
    for policy in POLICIES:
        contracts = [contract_owners(one, state, policy) for one in variants]
        for moment, stated in enumerate(_stated(scenario, policy)):
            for name, one in stated.items():
                owners = [
                    {contract[moment].get(part) for part in parts_of(name, contract[moment])}
                    for contract in contracts
                ]
                if not any(
                    parts and all(_agree(part, one.owner) for part in parts) for parts in owners
                ):
                    raise _differs(document, (name, one), owners[0], moment, state.nodes)


def _check_names(document: Document[Scenario], state: FirmwareState) -> None:
    """Refuse a statement about what is not judged: a part that is not there, a covered decoder."""
    judged = [one.name for one in state.judged_ranges()]
    for policy in POLICIES:
        for moment in _stated(document.value, policy):
            for name, one in moment.items():
                if not parts_of(name, judged):
                    raise document.error(
                        one.field,
                        f"no range or region is called {name!r} on this machine",
                        hint=f"names: {', '.join(judged)}",
                    )


def _agree(computed: Ownership | None, stated: Ownership) -> bool:
    """Return whether a statement agrees with the contract; a node that is not stated does."""
    if computed is None or (computed.owner, computed.use) != (stated.owner, stated.use):
        return False
    return stated.node in (None, computed.node)


def _differs(
    document: Document[Scenario],
    named: tuple[str, _Stated],
    owners: set[Ownership | None],
    moment: int,
    nodes: Sequence[NodeRange],
) -> UsageError:
    name, stated = named
    by_contract = (
        " and ".join(sorted(f"{_with_node(one, nodes)} ({_rule(one)})" for one in owners if one))
        or "none: no region without a Soft Reserved range is expected there"
    )
    step = f"guest.then[{moment - 1}]"
    lasting = moment > 0 and not stated.field.startswith(step)
    return document.error(
        f"{step}.expect" if lasting else stated.field,
        f"{name} is stated as {_with_node(stated.owner, nodes)}"
        + (f" by {stated.field}, which lasts until a later step states another" if lasting else "")
        + f"; the contract's owner is {by_contract}",
        hint="correct it, leave it out, or say why in expect.why_not_the_contract",
    )


def _with_node(owner: Ownership, nodes: Sequence[NodeRange]) -> str:
    return f"{owner}" if owner.node is None else f"{owner} in {named_node(owner.node, nodes)}"


def _rule(owner: Ownership) -> str:
    if owner.owner == "nobody":
        return "no driver is there that may own it"
    return {"dax_cxl": "rule 2 or 5", "dax_hmem": "rule 3", "firmware_ram": "rule 5"}[owner.owner]


def contract_owners(
    scenario: Scenario, state: FirmwareState, policy: Policy
) -> tuple[dict[str, Ownership], ...]:
    """The contract's owners after the modules are loaded, then after each step."""
    return (
        expected_owners(scenario, state, policy),
        *owners_after_steps(scenario, state, policy),
    )


def _stated(scenario: Scenario, policy: Policy) -> tuple[dict[str, _Stated], ...]:
    """Owners that the file states, after boot and after each step, until the next statement."""
    lasting = {
        name: _Stated(owner, f"expect.{policy}.{name}")
        for name, owner in scenario.expect.owners(policy).items()
    }
    found = [lasting]
    for index, step in enumerate(scenario.guest.then):
        new = {
            name: _Stated(owner, f"guest.then[{index}].expect.{name}")
            for name, owner in step.expect.items()
        }
        lasting = {**lasting, **new}
        found.append(lasting)
    return tuple(found)
