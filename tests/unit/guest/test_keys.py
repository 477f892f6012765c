# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import base64
import struct

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from harness.guest.keys import RunKeys

KIND = b"ssh-ed25519"


def strings(blob: bytes) -> list[bytes]:
    """The strings of the SSH wire format (RFC 4251, 5)."""
    found = []
    while blob:
        (size,) = struct.unpack_from(">I", blob)
        assert len(blob) >= 4 + size
        found.append(blob[4 : 4 + size])
        blob = blob[4 + size :]
    return found


def test_the_host_key_file_is_dropbears_kind_then_private_and_public_half() -> None:
    kind, halves = strings(RunKeys().host_key_file())
    assert kind == KIND
    assert len(halves) == 64
    private = Ed25519PrivateKey.from_private_bytes(halves[:32])
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert halves[32:] == public


def test_the_public_blob_is_of_the_key_in_the_file() -> None:
    keys = RunKeys()
    kind, public = strings(keys.host_public_blob())
    assert kind == KIND
    assert public == strings(keys.host_key_file())[1][32:]
    assert paramiko.Ed25519Key(data=keys.host_public_blob()).asbytes() == keys.host_public_blob()


def test_the_client_key_is_the_one_that_is_let_in() -> None:
    keys = RunKeys()
    options, kind, blob = keys.authorized_keys().split()
    assert kind == KIND
    assert base64.b64decode(blob) == keys.client_key.asbytes()
    assert set(options.split(b",")) == {
        *(b"no-port-forwarding", b"no-agent-forwarding", b"no-X11-forwarding"),
    }
    assert keys.authorized_keys().endswith(b"\n")


def test_preparing_makes_the_key_that_is_used_later() -> None:
    keys = RunKeys()
    keys.prepare()
    assert keys.client_key is keys.client_key


def test_every_run_has_keys_of_its_own_for_host_and_client() -> None:
    one, other = RunKeys(), RunKeys()
    blobs = {
        *(one.host_public_blob(), other.host_public_blob()),
        *(one.client_key.asbytes(), other.client_key.asbytes()),
    }
    assert len(blobs) == 4
