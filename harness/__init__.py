# SPDX-License-Identifier: GPL-2.0-or-later
"""CXL ownership harness: boots real kernels on CXL machines and judges who owns each range."""
