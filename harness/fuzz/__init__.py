# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare kernels with the oracle on random layouts."""
