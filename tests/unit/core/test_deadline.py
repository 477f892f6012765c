# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import time

import pytest

from harness.core.deadline import Deadline
from harness.core.errors import DeadlineExpiredError


def test_a_deadline_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    deadline = Deadline(2, "news", hint="ask")
    assert deadline.check() == 2
    now = 102.0
    with pytest.raises(DeadlineExpiredError, match="timed out after 2 s waiting for news"):
        deadline.check()


def test_a_longer_deadline_has_the_same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    deadline = Deadline(2, "news", hint="ask")
    now = 101.5
    longer = deadline.times(10)
    assert (longer.remaining(), longer.what, longer.hint) == (18.5, "news", "ask")
    assert deadline.remaining() == 0.5
    now = 120.0
    with pytest.raises(DeadlineExpiredError, match="timed out after 20 s"):
        longer.check()
    assert deadline.times(1).remaining() == 0
