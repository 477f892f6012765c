# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts files: the machines of a lab."""

from __future__ import annotations

from typing import Annotated

import msgspec

from harness.scenario.yaml_document import Document, read_document

_WORD = r"^[^\s-]\S*\Z"


class LabHost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A machine that runs guests.

    Attributes:
        name: used in messages.
        ssh: `HOST` or `USER@HOST`; None for this machine.
        options: arguments for ssh in front of the address, such as `-p 2222`.
        command: starts the harness on the host.
        guests: number of concurrent guests; None for the limit of its cores and memory.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    ssh: Annotated[str, msgspec.Meta(pattern=_WORD)] | None = None
    options: tuple[str, ...] = ()
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("harness",)
    guests: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None


class Lab(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A hosts file."""

    hosts: tuple[LabHost, ...]


def read_lab(text: str, name: str) -> Document[Lab]:
    """Read a hosts file.

    Raises:
        UsageError: it is invalid; with file, line and field.
    """
    document = read_document(text, name, Lab, guide="docs/matrix.md")
    hosts = document.value.hosts
    if not hosts:
        raise document.error("hosts", "no hosts", hint="add a host, or run without --hosts")
    for index, host in enumerate(hosts):
        if host.name in [one.name for one in hosts[:index]]:
            raise document.error(
                f"hosts[{index}].name",
                f"duplicate host {host.name}",
                hint="give each host a different name",
            )
        if host.ssh is None and host.options:
            raise document.error(
                f"hosts[{index}].options", "options without ssh", hint="add ssh, the address"
            )
    return document
