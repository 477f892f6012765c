# SPDX-License-Identifier: GPL-2.0-or-later
"""Nightly runs: what changed since the night before."""
