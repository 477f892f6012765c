# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors, deadlines, processes, files, the cache: what every other package may use."""
