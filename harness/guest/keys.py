# SPDX-License-Identifier: GPL-2.0-or-later
"""The SSH keys of one run: a pinned host key for the guest, and a client key for the harness."""

from __future__ import annotations

import base64
import struct
from functools import cached_property
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

if TYPE_CHECKING:
    import paramiko

_KIND = b"ssh-ed25519"


class RunKeys:
    """Two new Ed25519 key pairs. They leave this process only in the run's initramfs."""

    def __init__(self) -> None:
        self._host = Ed25519PrivateKey.generate()
        self._client = Ed25519PrivateKey.generate()

    def host_key_file(self) -> bytes:
        """The host key in dropbear's format: kind, then private and public half together."""
        halves = self._host.private_bytes(
            Encoding.Raw, PrivateFormat.Raw, NoEncryption()
        ) + self._host.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return _string(_KIND) + _string(halves)

    def host_public_blob(self) -> bytes:
        """The host's public key in the format of the SSH key exchange."""
        return _public_blob(self._host)

    def authorized_keys(self) -> bytes:
        """The line of authorized_keys for the client key, without any forwarding."""
        blob = base64.b64encode(_public_blob(self._client))
        return (
            b"no-port-forwarding,no-agent-forwarding,no-X11-forwarding ssh-ed25519 " + blob + b"\n"
        )

    def prepare(self) -> None:
        """Import paramiko and make `client_key` now, to save time later."""
        _ = self.client_key

    @cached_property
    def client_key(self) -> paramiko.PKey:
        """The client key for paramiko."""
        import io

        import paramiko

        text = self._client.private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        ).decode()
        return paramiko.Ed25519Key(file_obj=io.StringIO(text))


def _public_blob(key: Ed25519PrivateKey) -> bytes:
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return _string(_KIND) + _string(public)


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
