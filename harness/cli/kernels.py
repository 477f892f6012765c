# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands about kernels: `harness build` and `harness kernels`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from harness.core.errors import UsageError

Command = Callable[..., Any]

_AGES = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def register_kernel_commands(
    group: click.Group, explains_errors: Callable[[Command], Command]
) -> None:
    """Add `build` and `kernels` to the command line.

    Args:
        group: the command line.
        explains_errors: turns the harness's errors into messages and exit codes.
    """
    group.command(name="build")(_build_options(explains_errors(_build)))
    kernels = click.Group(
        "kernels",
        callback=explains_errors(_list),
        invoke_without_command=True,
        help="List the store: kernels, objects, sources, initramfs and caches.",
    )
    kernels.params.append(click.Option(["--full"], is_flag=True, help="Show whole paths."))
    kernels.command(name="prune")(_prune_options(explains_errors(_prune)))
    kernels.command(name="verify")(explains_errors(_verify))
    group.add_command(kernels)


def parse_age(text: str) -> float:
    """Seconds in an age such as `90m`, `12h`, `7d` or `2w`.

    Raises:
        UsageError: the text is not an age.
    """
    match = re.fullmatch(r"(\d+)\s*([mhdw])", text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} is not an age",
            where="--older-than",
            hint="write a number and m, h, d or w, such as 7d",
        )
    return int(match[1]) * _AGES[match[2]]


def _build_options(command: Command) -> Command:
    options = (
        click.argument("spec", metavar="SPEC"),
        click.option(
            "--config",
            "configs",
            metavar="NAME,...",
            default="",
            help="Fragments of kernel_configs/, or files, on top of the base; distro:PATH starts "
            "from a whole .config.",
        ),
        click.option(
            "--series",
            type=click.Path(path_type=Path),
            metavar="DIR|MBOX[@vN]",
            help="Patches to apply: a folder, or an mbox as b4 am writes it.",
        ),
        click.option("--upto", type=int, metavar="N", help="Stop after patch N of the series."),
        click.option("--llvm", is_flag=True, help="Build with clang instead of gcc."),
        click.option("--refresh", is_flag=True, help="Look for a newer version of the source."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _build(
    spec: str, configs: str, series: Path | None, upto: int | None, llvm: bool, refresh: bool
) -> None:
    """Build a kernel into the store, unless it is there, and print its path.

    SPEC is build:PATH, build:PATH@REF or build:debian:VERSION; prebuilt kernels are fetched.
    Exit code: 0 built, 2 wrong input, 4 it does not build or a patch does not apply.
    """
    from harness.core.cache import Store
    from harness.core.paths import store_root
    from harness.core.progress import TerminalProgress
    from harness.kernels.resolve import resolve_kernel
    from harness.scenario.kernel_request import request_of_options

    request = request_of_options(spec, configs, series, llvm=llvm, upto=upto)
    kernel = resolve_kernel(request, Store(store_root()), TerminalProgress(), refresh)
    click.echo(f"{kernel.release}  {kernel.image}")


def _list(full: bool) -> None:
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        return
    from harness.core.cache import Store
    from harness.core.paths import store_root
    from harness.kernels.prune import size_of_the_rest, stored_items

    store = Store(store_root())
    items, rest = stored_items(store), size_of_the_rest(store)
    now = time.time()
    for item in items:
        name = str(item.path) if full else f"{item.path.name:12.12}"
        age = _age(now - item.used)
        click.echo(f"{item.sort:9} {name}  {_megabytes(item.size):>9}  {age:>6}  {item.text}")
    more = f", and {_megabytes(rest)} of other files" if rest else ""
    size = _megabytes(sum(item.size for item in items))
    click.echo(f"{len(items)} in the store, {size}{more}")


def _prune_options(command: Command) -> Command:
    options = (
        click.option("--keep", metavar="SIZE", help="Remove items until the store is no larger."),
        click.option("--older-than", metavar="AGE", help="Remove items unused for this long."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _prune(keep: str | None, older_than: str | None) -> None:
    """Remove kernels with their objects, sources and initramfs, the least recently used first.

    SIZE, such as 20G, limits the whole store; AGE is such as 12h, 7d or 2w. Items in use stay. An
    initramfs whose kernel was removed is always removed.
    """
    from harness.core.cache import Store
    from harness.core.paths import store_root
    from harness.core.progress import TerminalProgress
    from harness.kernels.prune import prune
    from harness.platform.memory_range import parse_size

    if keep is None and older_than is None:
        raise UsageError("neither a size nor an age", hint="add --keep SIZE or --older-than AGE")
    try:
        size = None if keep is None else 0 if keep == "0" else parse_size(keep)
    except ValueError as error:
        raise UsageError(str(error), where="--keep", hint="for example --keep 20G") from None
    age = None if older_than is None else parse_age(older_than)
    removed, in_use = prune(Store(store_root()), TerminalProgress(), keep=size, older_than=age)
    for item in removed:
        click.echo(f"removed {item.sort} {item.path.name[:12]}  {item.text}")
    for item in in_use:
        click.echo(f"in use, kept: {item.sort} {item.path.name[:12]}  {item.text}")
    click.echo(f"freed {_megabytes(sum(item.size for item in removed))}")


def _verify() -> None:
    """Read all entries of the store and compare them with their checksums.

    A damaged entry is listed, and made again when a run needs it.
    Exit code: 0 no damage, 1 damage, 2 an entry cannot be read.
    """
    from harness.core.cache import Store
    from harness.core.paths import store_root
    from harness.kernels.store import verify_entries

    damage = verify_entries(Store(store_root()))
    for error in damage:
        click.echo(f"{error.where}: {error.message}")
    if damage:
        click.get_current_context().exit(1)
    click.echo("no entry of the store is damaged")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def _age(seconds: float) -> str:
    for unit, length in reversed(_AGES.items()):
        if seconds >= length:
            return f"{int(seconds / length)}{unit}"
    return "now"
