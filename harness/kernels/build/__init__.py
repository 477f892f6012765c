# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels built from a source tree: patches, configuration, compiler, sandbox."""
