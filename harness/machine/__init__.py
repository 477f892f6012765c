# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU with the firmware state of a scenario."""
