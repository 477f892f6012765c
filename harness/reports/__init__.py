# SPDX-License-Identifier: GPL-2.0-or-later
"""Results for people and other programs."""
