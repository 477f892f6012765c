# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading a scenario's modules in the guest: in order, all at once, or as its devices ask."""

from __future__ import annotations

import re
import shlex

from harness.contract.result import Finding
from harness.core.deadline import Deadline
from harness.core.kernel_modules import MODPROBE, module_name
from harness.guest.settle import load_module
from harness.guest.ssh import GuestShell
from harness.scenario.module_load import Load

_SECONDS = 60.0
_STATUS = re.compile(r"^(?P<name>\S+) (?P<status>\d+) ?(?P<said>.*)$", re.MULTILINE)

# Each modprobe says how it ended on a line of its own; the shell's `wait` does not.
_AT_ONCE = """\
{mark}
for name in {names}; do
    (said=$({modprobe} "$name" 2>&1); echo "$name $? $said" > "/tmp/load-$name") &
done
wait
cd /tmp && cat {files} && rm {files}
"""

# What udev does at boot and on every uevent, by what is in the event: not every device has a file
# with its modalias. Devices appear while modules load, so it is done until nothing new has appeared
# for a while, which is longer as long as a wanted module is not there.
_BY_MODALIAS = """\
{mark}
quiet=0; before=; enough=50
while [ "$quiet" -lt "$enough" ]; do
    find /sys/devices -name uevent -exec grep -hs ^MODALIAS= {{}} + | sort -u > /tmp/aliases
    set -f; {modprobe} -a -q -b $(cut -d= -f2- /tmp/aliases); set +f
    now="$(cksum < /tmp/aliases) $(cut -d' ' -f1 /proc/modules | cksum)"
    if [ "$now" = "$before" ]; then quiet=$((quiet + 1)); usleep 100000; else quiet=0; fi
    before=$now
    enough=5
    for name in {names}; do grep -q "^$name " /proc/modules || enough=50; done
done
rm /tmp/aliases
cut -d' ' -f1 /proc/modules
"""


def load_modules(shell: GuestShell, load: Load) -> tuple[Finding, ...]:
    """Load modules; a finding for each module that could not be loaded.

    Raises:
        GuestLostError: the guest is gone.
        DeadlineExpiredError: a module's initialisation does not return.
    """
    if load.how == "in_order":
        problems = (load_module(shell, name) for name in load.modules)
        return tuple(problem for problem in problems if problem is not None)
    if load.how == "at_once":
        return _load_at_once(shell, load.modules)
    return _load_by_modalias(shell, load.modules)


def _load_at_once(shell: GuestShell, modules: tuple[str, ...]) -> tuple[Finding, ...]:
    if not modules:
        return ()
    script = _AT_ONCE.format(
        mark=shell.begin(f"modprobe {' & '.join(modules)}"),
        modprobe=MODPROBE,
        names=" ".join(map(shlex.quote, modules)),
        files=" ".join(shlex.quote(f"load-{name}") for name in modules),
    )
    done = shell.run(script, Deadline(_SECONDS, "all modprobes to end in the guest"))
    ended = {
        match["name"]: (match["status"], match["said"]) for match in _STATUS.finditer(done.output)
    }
    problems = []
    for name in modules:
        status, said = ended.get(name, ("nothing", ""))
        if status != "0":
            text = f"modprobe {name}, beside others, ended with status {status}: {said}"
            problems.append(_not_loaded(text, f"{name}: {said}"))
    return tuple(problems)


def _load_by_modalias(shell: GuestShell, modules: tuple[str, ...]) -> tuple[Finding, ...]:
    script = _BY_MODALIAS.format(
        mark=shell.begin("modprobe by modalias"),
        modprobe=MODPROBE,
        names=" ".join(shlex.quote(module_name(name)) for name in modules),
    )
    done = shell.run(script, Deadline(_SECONDS, "modules to be loaded by modalias in the guest"))
    loaded = set(done.output.split())
    return tuple(
        _not_loaded(f"no device of the machine asks for {name}, so nothing would load it", name)
        for name in modules
        if module_name(name) not in loaded
    )


def _not_loaded(text: str, subject: str) -> Finding:
    return Finding("step", text, kind="module_not_loaded", subject=subject)
