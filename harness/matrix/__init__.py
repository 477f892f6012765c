# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels, configurations, policies and profiles run by several workers."""
