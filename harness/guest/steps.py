# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario does in its guest: load modules, and wait until ownership has settled."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import InconclusiveError
from harness.guest.ssh import GuestCommand, GuestShell

_STEP_SECONDS = 60.0
