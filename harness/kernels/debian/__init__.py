# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernels and kernel sources."""
