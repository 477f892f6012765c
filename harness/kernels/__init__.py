# SPDX-License-Identifier: GPL-2.0-or-later
"""Bootable kernels from a SPEC: prebuilt, an image, or built from a source with patches."""
