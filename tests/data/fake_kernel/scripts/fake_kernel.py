# SPDX-License-Identifier: GPL-2.0-or-later
"""What make does in a kernel source, in milliseconds, and what can go wrong with it.

allnoconfig and olddefconfig keep every option that is asked for, except where a Kconfig file here
says that it depends on others. bzImage and modules "compile" each .c file that is younger than its
object; in a file, these lines do what they say:

    #error WORDS            the compiler stops there
    fake: full disk         the disk is full
    fake: lacks HEADER      a header of the machine is missing
    fake: sleep SECONDS     the compiler takes that long
    fake: killed make       make is killed, and the compiler with it
    fake: write PATH        the compiler writes there, and says how that went
    fake: say NAME          the compiler says the value of an environment variable
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

LEVELS = "nmy"


def configure(source: Path, output: Path, asked: str) -> None:
    """Write .config."""
    values = {}
    for line in asked.splitlines():
        if match := re.fullmatch(r"CONFIG_(\w+)=(.*)", line):
            values[match[1]] = match[2]
        elif match := re.fullmatch(r"# CONFIG_(\w+) is not set", line):
            values[match[1]] = "n"
    for path in sorted(source.rglob("Kconfig")):
        for entry in re.split(r"(?m)^(?:menu)?config ", path.read_text())[1:]:
            name = entry.split(None, 1)[0]
            for condition in re.findall(r"(?m)^\tdepends on (.*)$", entry):
                limit = max(level(term, values) for term in condition.split(" || "))
                if name in values and LEVELS.find(values[name]) > limit:
                    values[name] = LEVELS[limit]
    lines = [
        f"# CONFIG_{name} is not set" if value == "n" else f"CONFIG_{name}={value}"
        for name, value in values.items()
    ]
    (output / ".config").write_text("\n".join(lines) + "\n")


def level(term: str, values: dict[str, str]) -> int:
    """0, 1 or 2 for n, m or y."""
    value = max(0, LEVELS.find(values.get(term.lstrip("!"), "n")))
    return 2 - value if term.startswith("!") else value


def compile_file(path: Path, source: Path) -> None:
    """Do what the file says."""
    place = path.relative_to(source)
    target = place.with_suffix(".o")
    print(f"  CC      {target}", flush=True)
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.startswith("#error"):
            print(f"{path}: In function 'f':")
            stop(f"{path}:{number}:2: error: {line}\n  {number} | {line}\n      |  ^~~~~", target)
        action, value, *_ = (*line.partition("fake: ")[2].split(), "", "")
        if action == "sleep":
            time.sleep(float(value))
        elif action == "full":
            stop(f"{path}: fatal error: error writing to x.s: No space left on device", target)
        elif action == "lacks":
            stop(f"{path}:1:10: fatal error: {value}: No such file or directory", target)
        elif action == "killed":
            kill_make()
        elif action == "write":
            try:
                Path(value).write_text("written by a build")
                print(f"fake: wrote {value}")
            except OSError as error:
                print(f"fake: {value}: {error.strerror}")
        elif action == "say":
            print(f"fake: {value}={os.environ.get(value)}")


def kill_make() -> NoReturn:
    """As the kernel does it when memory runs out."""
    process = os.getpid()
    while Path(f"/proc/{process}/comm").read_text() != "make\n":
        status = Path(f"/proc/{process}/status").read_text()
        process = int(status.partition("\nPPid:")[2].split()[0])
    os.kill(process, signal.SIGKILL)
    os._exit(1)


def stop(text: str, target: Path) -> NoReturn:
    """End as make does."""
    print(text)
    print(f"make[3]: *** [scripts/Makefile.build:287: {target}] Error 1")
    print("make[2]: *** [Makefile:2010: .] Error 2")
    sys.exit(2)


def build(source: Path, output: Path) -> None:
    """Compile what is out of date and link everything."""
    config = (output / ".config").read_text()
    release = "9.1.0"
    (output / "include/config").mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*.c")):
        made = output / path.relative_to(source).with_suffix(".o")
        made.parent.mkdir(parents=True, exist_ok=True)
        if not made.exists() or made.stat().st_mtime_ns < path.stat().st_mtime_ns:
            made.write_text("half")
            try:
                compile_file(path, source)
            except SystemExit:
                made.unlink()  # as make does it, by the .DELETE_ON_ERROR of the kernel's Makefile
                raise
            made.write_text(path.read_text())
    objects = sorted(output.rglob("*.o"))
    modules = [path for path in objects if "drivers" in path.parts]
    for path in modules:
        data = path.read_bytes() + f"\0vermagic={release} SMP\0".encode()
        path.with_suffix(".ko").write_bytes(data)
    lines = "".join(f"{path.relative_to(output)}\n" for path in modules)
    (output / "modules.order").write_text(lines)
    (output / "modules.builtin").write_text("kernel/init/main.ko\n")
    (output / "System.map").write_text("0 T start_kernel\n")
    content = b"".join(path.read_bytes() for path in objects) + config.encode()
    (output / "vmlinux").write_bytes(content)
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x100).to_bytes(2, "little")
    head[0x300 : 0x300 + len(release) + 1] = release.encode() + b"\0"
    image = output / "arch/x86/boot/bzImage"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(bytes(head) + content)
    print("Kernel: arch/x86/boot/bzImage is ready")


def main() -> None:
    """Be make."""
    source, output = Path(sys.argv[1]), Path(sys.argv[2])
    targets = sys.argv[4:]
    if "allnoconfig" in targets:
        configure(source, output, (output / sys.argv[3]).read_text())
    elif "olddefconfig" in targets:
        configure(source, output, (output / ".config").read_text())
    else:
        build(source, output)


if __name__ == "__main__":
    main()
