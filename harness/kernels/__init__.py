# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel SPEC becomes a bootable kernel."""
