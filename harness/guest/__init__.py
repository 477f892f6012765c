# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens inside the booted guest: initramfs, SSH, steps, observation."""
