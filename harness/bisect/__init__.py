# SPDX-License-Identifier: GPL-2.0-or-later
"""Bisection of a kernel history or a series."""
