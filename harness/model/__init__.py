# SPDX-License-Identifier: GPL-2.0-or-later
"""Pure values, parsers and rules: no input, no output."""
