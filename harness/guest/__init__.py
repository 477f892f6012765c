# SPDX-License-Identifier: GPL-2.0-or-later
"""The booted guest: initramfs, SSH, modules, observation."""
