# SPDX-License-Identifier: GPL-2.0-or-later
"""Many runs as one job: kernels, configurations, series, policies and scenarios."""
