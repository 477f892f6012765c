# SPDX-License-Identifier: GPL-2.0-or-later
"""What the steps of a scenario may ask of it, checked before anything starts."""

from __future__ import annotations

import errno

from harness.core.kernel_modules import module_name
from harness.scenario.post_boot_steps import MEMORY_VERBS, REGION_VERBS, BindingStep, GuestStep
from harness.scenario.profile import Profile
from harness.scenario.scenario import Scenario, decoder_name
from harness.scenario.yaml_document import Document

_FEWEST_CPUS = 2
# What each of these needs to have been done to the same decoder before.
_AFTER = {"create_region": "destroy_region", "commit": "decommit"}


def check_steps(document: Document[Scenario], profile: Profile) -> None:
    """Check the steps of `guest.then`.

    Raises:
        UsageError: names file, line and field, and what to do.
    """
    scenario = document.value
    decoders = [decoder_name(scenario, i) for i in range(len(scenario.firmware.decoders))]
    names = [*scenario.firmware.soft_reserved, *decoders]
    last: dict[str, str] = {}
    for index, step in enumerate(scenario.guest.then):
        at = f"guest.then[{index}]"
        _check_verb(document, at, step)
        _check_modules(document, at, step)
        if step.verb in MEMORY_VERBS:
            _check_name(document, f"{at}.{step.verb}", getattr(step, step.verb), names)
        if step.verb in REGION_VERBS:
            name = getattr(step, step.verb)
            _check_name(document, f"{at}.{step.verb}", name, decoders)
            if _AFTER.get(step.verb, last.get(name)) != last.get(name):
                raise document.error(
                    f"{at}.{step.verb}",
                    f"needs a step {_AFTER[step.verb]} of {name} before it",
                    hint="what is there is not created or committed again",
                )
            last[name] = step.verb
        for name in step.expect:
            _check_name(document, f"{at}.expect.{name}", name.partition("[")[0], names)
        if step.while_pending is not None:
            for number, one in enumerate(step.while_pending):
                _check_verb(document, f"{at}.while_pending[{number}]", one)
            if profile.cpus < _FEWEST_CPUS:
                raise document.error(
                    f"{at}.while_pending",
                    "needs two CPUs: one for the steps, one for the work that is held up",
                    hint="use a profile with two CPUs",
                )


def _check_verb(document: Document[Scenario], at: str, step: GuestStep | BindingStep) -> None:
    verbs = step.verbs()
    if len(verbs) != 1:
        found = " and ".join(verbs) or "none"
        raise document.error(
            at, f"a step says one thing to do, this one {found}", hint="split or complete it"
        )
    if isinstance(step, GuestStep) and (step.mode is None) == (verbs[0] == "reconfigure"):
        raise document.error(
            at, "reconfigure and mode go together", hint="mode: devdax, or mode: system-ram"
        )
    if step.fails is not None:
        if step.fails not in errno.errorcode.values():
            raise document.error(
                f"{at}.fails",
                f"no error is called {step.fails!r}",
                hint="a name of errno(3), such as EBUSY",
            )
        if verbs[0] in ("reload", "reload_every_order", "while_pending"):
            raise document.error(
                f"{at}.fails",
                f"{verbs[0]} is several steps, and it does not say which must fail",
                hint="write them as steps of their own, with fails at the one that must",
            )


def _check_modules(document: Document[Scenario], at: str, step: GuestStep) -> None:
    missing = {module_name(one) for one in document.value.guest.missing}
    seen: set[str] = set()
    for name in step.modules():
        if module_name(name) in missing:
            raise document.error(
                f"{at}.{step.verb}",
                f"names {name}, which guest.missing takes away",
                hint="remove it from one of the two",
            )
        if module_name(name) in seen:
            raise document.error(
                f"{at}.{step.verb}", f"names {name} twice", hint="name each module once"
            )
        seen.add(module_name(name))


def _check_name(document: Document[Scenario], at: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise document.error(
            at, f"nothing is called {name!r}", hint=f"one of: {', '.join(names) or 'nothing'}"
        )
