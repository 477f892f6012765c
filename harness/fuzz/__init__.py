# SPDX-License-Identifier: GPL-2.0-or-later
"""Random layouts judged against the contract."""
