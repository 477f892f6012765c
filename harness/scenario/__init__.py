# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios, profiles and known issues: what a user writes, and its checks."""
