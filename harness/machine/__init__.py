# SPDX-License-Identifier: GPL-2.0-or-later
"""A topology becomes a running, firmware-initialised QEMU."""
