# SPDX-License-Identifier: GPL-2.0-or-later
"""One scenario on one kernel, from preparation to verdict and evidence."""
