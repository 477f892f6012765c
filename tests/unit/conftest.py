# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from hypothesis import settings

# No deadline: a busy host must not fail a test. No database: a run leaves nothing behind.
settings.register_profile("unit", deadline=None, database=None, max_examples=60)
settings.load_profile("unit")
