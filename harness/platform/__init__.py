# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses and firmware as the kernel sees them: ACPI tables, HDM decoders, command line."""
