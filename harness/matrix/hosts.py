# SPDX-License-Identifier: GPL-2.0-or-later
"""The file that lists the machines of a lab."""

from __future__ import annotations

from typing import Annotated

import msgspec

from harness.scenario.yaml_document import Document, read_document

_WORD = r"^[^\s-]\S*\Z"


class LabHost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A machine that runs guests.

    Attributes:
        name: what it is called in messages.
        ssh: its address as ssh takes it, `HOST` or `USER@HOST`; None for this very machine.
        options: words for ssh in front of the address, such as `-p 2222`.
        command: what starts the harness there.
        guests: how many guests it runs at once; None for as many as its cores and memory allow.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    ssh: Annotated[str, msgspec.Meta(pattern=_WORD)] | None = None
    options: tuple[str, ...] = ()
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("harness",)
    guests: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None


class Lab(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file with the hosts."""

    hosts: tuple[LabHost, ...]


def read_lab(text: str, name: str) -> Document[Lab]:
    """Read a file of hosts.

    Raises:
        UsageError: names file, line and field.
    """
    document = read_document(text, name, Lab, guide="docs/matrix.md")
    hosts = document.value.hosts
    if not hosts:
        raise document.error("hosts", "no host is listed", hint="list one, or leave --hosts out")
    for index, host in enumerate(hosts):
        if host.name in [one.name for one in hosts[:index]]:
            raise document.error(
                f"hosts[{index}].name",
                f"two hosts are called {host.name}",
                hint="give each host a name of its own",
            )
        if host.ssh is None and host.options:
            raise document.error(
                f"hosts[{index}].options", "options are for ssh", hint="add ssh, the address"
            )
    return document
