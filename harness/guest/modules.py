# SPDX-License-Identifier: GPL-2.0-or-later
"""Load a scenario's modules in the guest: in order, concurrently, or by the devices' modalias."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from harness.contract.result import Finding
from harness.core.deadline import Deadline
from harness.core.errors import GuestLostError
from harness.core.kernel_modules import MODPROBE, module_name
from harness.guest.ssh import GuestShell
from harness.scenario.module_load import Load

_LOAD_SECONDS = 60.0
_STATUS = re.compile(r"^(?P<name>\S+) (?P<status>\d+) ?(?P<output>.*)$", re.MULTILINE)

# Each modprobe prints its status on its own line: the shell's `wait` does not return it.
_AT_ONCE = """\
{mark}
for name in {names}; do
    (output=$({modprobe} "$name" 2>&1); echo "$name $? $output" > "/tmp/load-$name") &
done
wait
cd /tmp && cat {files} && rm {files}
"""

# The same as udev at boot and on every uevent, from the event itself: some devices have no modalias
# file. Devices appear while modules load, so repeat until nothing new has appeared for a while, and
# for a longer while as long as a requested module is missing.
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
    """Load modules; returns a finding for each module that failed.

    Raises:
        GuestLostError: the guest is gone.
        DeadlineExpiredError: a module's initialisation does not return.
    """
    if load.how == "in_order":
        results = (load_module(shell, name) for name in load.modules)
        return tuple(failure for failure in results if failure is not None)
    if load.how == "at_once":
        return _load_at_once(shell, load.modules)
    return _load_by_modalias(shell, load.modules)


def load_module(shell: GuestShell, name: str) -> Finding | None:
    """Load a module and its dependencies; returns what failed, or None.

    Raises:
        GuestLostError: the guest is gone.
        DeadlineExpiredError: the module's initialisation does not return.
    """
    deadline = Deadline(_LOAD_SECONDS, f"modprobe {name} to end in the guest")
    mark = shell.begin(f"modprobe {name}")
    done = shell.run(f"{mark}; {MODPROBE} {shlex.quote(name)}", deadline)
    if done.status == 0:
        return None
    output = done.output.strip()
    text = f"modprobe {name} ended with status {done.status}: {output}"
    return _not_loaded(text, f"{name}: {output}")


def _not_loaded(text: str, subject: str) -> Finding:
    return Finding("step", text, kind="module_not_loaded", subject=subject)


def remove_modules(shell: GuestShell, names: Sequence[str]) -> None:
    """Delete module files, so that neither a command nor the kernel itself can load them.

    Raises:
        GuestLostError: the guest is gone, or has no such file.
        DeadlineExpiredError: the command does not end.
    """
    if not names:
        return
    deadline = Deadline(_LOAD_SECONDS, "module files to be deleted in the guest")
    files = " ".join(shlex.quote(f"{module_name(name)}.ko") for name in names)
    done = shell.run(f"(cd /lib/modules/*/ && rm {files})", deadline)
    if done.status != 0:
        raise GuestLostError(
            f"cannot delete the guest's module files: {done.output.strip()}",
            hint="guest.missing must name modules that this kernel has as files",
        )


def _load_at_once(shell: GuestShell, modules: tuple[str, ...]) -> tuple[Finding, ...]:
    if not modules:
        return ()
    script = _AT_ONCE.format(
        mark=shell.begin(f"modprobe {' & '.join(modules)}"),
        modprobe=MODPROBE,
        names=" ".join(map(shlex.quote, modules)),
        files=" ".join(shlex.quote(f"load-{name}") for name in modules),
    )
    done = shell.run(script, Deadline(_LOAD_SECONDS, "all modprobes to end in the guest"))
    ended = {
        match["name"]: (match["status"], match["output"]) for match in _STATUS.finditer(done.output)
    }
    problems = []
    for name in modules:
        status, output = ended.get(name, ("unknown", ""))
        if status != "0":
            text = f"modprobe {name}, with others, ended with status {status}: {output}"
            problems.append(_not_loaded(text, f"{name}: {output}"))
    return tuple(problems)


def _load_by_modalias(shell: GuestShell, modules: tuple[str, ...]) -> tuple[Finding, ...]:
    script = _BY_MODALIAS.format(
        mark=shell.begin("modprobe by modalias"),
        modprobe=MODPROBE,
        names=" ".join(shlex.quote(module_name(name)) for name in modules),
    )
    deadline = Deadline(_LOAD_SECONDS, "modules to be loaded by modalias in the guest")
    done = shell.run(script, deadline)
    loaded = set(done.output.split())
    return tuple(
        _not_loaded(f"no device of the machine has a modalias of {name}: nothing loads it", name)
        for name in modules
        if module_name(name) not in loaded
    )
