# SPDX-License-Identifier: GPL-2.0-or-later
"""A run packed into a zip file, and replayed from it."""
