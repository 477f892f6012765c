# SPDX-License-Identifier: GPL-2.0-or-later
"""Pack the evidence of a run into a ZIP file, judge it again, and run it again."""
