# SPDX-License-Identifier: GPL-2.0-or-later
"""Read QEMU's fw_cfg files over qtest, by its DMA interface.

Source: QEMU, docs/specs/fw_cfg.rst. All its numbers are big-endian.
"""

from __future__ import annotations

import struct

from harness.core.errors import MachineLostError
from harness.machine.qtest import Qtest

_DMA_PORT_HIGH = 0x514
_DMA_PORT_LOW = 0x518
_FILE_DIRECTORY = 0x19
_READ = 0x02
_SELECT = 0x08
_ERROR = 0x01
# Conventional memory, unused while the machine is paused at reset.
_DESCRIPTOR = 0x1000
_BUFFER = 0x10000


def read_fw_cfg(qtest: Qtest, name: str) -> bytes:
    """The contents of one fw_cfg file. The machine must be paused at reset.

    Raises:
        MachineLostError: there is no such file, or the transfer failed.
    """
    (count,) = struct.unpack(">I", _transfer(qtest, _FILE_DIRECTORY, 4))
    directory = _transfer(qtest, _FILE_DIRECTORY, 4 + 64 * count)
    for entry in range(count):
        size, key, raw = struct.unpack_from(">IH2x56s", directory, 4 + 64 * entry)
        if raw.rstrip(b"\0") == name.encode():
            return _transfer(qtest, key, size)
    raise MachineLostError(
        f"this QEMU has no fw_cfg file {name}", hint="is its machine a q35? see harness doctor"
    )


def _transfer(qtest: Qtest, key: int, size: int) -> bytes:
    control = key << 16 | _SELECT | _READ
    qtest.write_memory(_DESCRIPTOR, struct.pack(">IIQ", control, size, _BUFFER))
    qtest.write_port32(_DMA_PORT_HIGH, 0)
    qtest.write_port32(_DMA_PORT_LOW, int.from_bytes(struct.pack(">I", _DESCRIPTOR), "little"))
    (left,) = struct.unpack(">I", qtest.read_memory(_DESCRIPTOR, 4))
    if left:
        kind = "refused" if left & _ERROR else "did not finish"
        raise MachineLostError(
            f"QEMU {kind} a fw_cfg transfer of {size} bytes",
            hint="is this QEMU version untested? see harness doctor",
        )
    return qtest.read_memory(_BUFFER, size)
