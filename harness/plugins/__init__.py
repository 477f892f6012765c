# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugins of pytest and avocado."""
