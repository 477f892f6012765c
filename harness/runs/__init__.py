# SPDX-License-Identifier: GPL-2.0-or-later
"""A scenario and a kernel become a verdict with its evidence."""
