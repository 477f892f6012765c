# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts and evidence for people and programs."""
