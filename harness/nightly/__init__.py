# SPDX-License-Identifier: GPL-2.0-or-later
"""Nightly runs of a branch, compared with the nights before."""
