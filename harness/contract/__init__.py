# SPDX-License-Identifier: GPL-2.0-or-later
"""Expected against observed: who must own each range, who does, and the verdict."""
