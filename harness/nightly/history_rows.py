# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the rows of a history of nights are what was written: SQLite keeps no sums of them.

And what is kept of results that nobody will read whole any more.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from typing import Annotated, Any, Literal

import msgspec

from harness.contract.result import Verdict, read_result
from harness.nightly.diff import SKIPPED, Line

_Number = Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)]
_Time = Annotated[float, msgspec.Meta(ge=0, lt=1e11)]
_VERDICTS = (SKIPPED, *(one.name for one in Verdict))
_NIGHTS = list[tuple[_Number, str, str, str, str, str, str, _Time, _Time | None, Literal[0, 1]]]
_RESULTS = list[tuple[_Number, str, str, str, str, str, str]]
_BISECTIONS = list[tuple[_Number, str, str, str, str]]
_TIMES = list[tuple[_Number, _Time]]
_TEXTS = tuple[str, ...]


def check_rows(connection: sqlite3.Connection) -> None:
    """Read all that a night may want to know of those before.

    Raises:
        sqlite3.DatabaseError: a row is not what was written.
    """
    try:
        _rows(
            connection,
            "select id, tree, branch, matrix, harness, commit_name, subject, began, ended, given_up"
            " from nights",
            _NIGHTS,
        )
        lines = set()
        for _, line, verdict, _, failures, _, _ in _rows(
            connection,
            "select night, line, verdict, known, failures, reason, evidence from results",
            _RESULTS,
        ):
            lines.add(line)
            if verdict not in _VERDICTS:
                raise ValueError(f"no verdict is called {verdict!r}")
            msgspec.json.decode(failures, type=_TEXTS)
        for _, line, _, _, said in _rows(
            connection,
            "select night, line, commit_name, subject, said from bisections",
            _BISECTIONS,
        ):
            lines.add(line)
            msgspec.json.decode(said, type=_TEXTS)
        for line in lines:
            msgspec.json.decode(line, type=Line)
        # The results of nights that have ended are in their folders: nobody reads them here.
        for (text,) in _rows(
            connection,
            "select result from results where result is not null"
            " and night in (select id from nights where ended is null and not given_up)",
            list[tuple[str]],
        ):
            read_result(msgspec.json.decode(text))
    except ValueError as error:  # those of msgspec, and of what is no result, are among them
        raise sqlite3.DatabaseError(f"a row makes no sense: {error}") from error


# What is kept of an old result; the first key tells it from a whole one.
_KEPT = ("owners", "scenario", "file", "request", "kernel", "policy", "verdict")
_WHOLE = f"""result is not null and result not like '{{"{_KEPT[0]}":%'"""


def shorten_results(connection: sqlite3.Connection, before: int) -> None:
    """Keep of old results only what they are of, the verdict and the owners.

    Args:
        connection: to the history.
        before: of nights with a smaller number, unless they are still to be finished.
    """
    nights = connection.execute(
        f"select distinct night from results where {_WHOLE} and night < ?"
        " and night in (select id from nights where ended is not null or given_up)",
        (before,),
    ).fetchall()
    for (night,) in nights:
        # Nobody has looked at them since: a text that is none must do no harm.
        rows = connection.execute(
            f"select rowid, cast(result as blob) from results where {_WHOLE} and night = ?",
            (night,),
        ).fetchall()
        # Written anew: a row that becomes shorter where it is keeps its page for itself.
        connection.executemany(
            "insert or replace into results select night, line, verdict, known, failures, reason,"
            " evidence, ? from results where rowid = ?",
            [(_shortened(content), rowid) for rowid, content in rows],
        )


def give_back_room(connection: sqlite3.Connection) -> None:
    """Make the file smaller where most of it is empty; not within a transaction."""
    (free,) = connection.execute("pragma freelist_count").fetchone()
    (pages,) = connection.execute("pragma page_count").fetchone()
    if 2 * free > pages:
        with suppress(sqlite3.OperationalError):  # no room for a copy: it can stay as it is
            connection.execute("vacuum")


def _shortened(content: bytes) -> str | None:
    with suppress(ValueError, RecursionError):
        whole = json.loads(content)
        if isinstance(whole, dict):
            return json.dumps({_KEPT[0]: [], **{key: whole[key] for key in _KEPT if key in whole}})
    return None


def check_times(connection: sqlite3.Connection) -> None:
    """Read how long nights have looked for commits.

    Raises:
        sqlite3.DatabaseError: a row is not what was written.
    """
    try:
        _rows(connection, "select night, seconds from bisecting_times", _TIMES)
    except ValueError as error:
        raise sqlite3.DatabaseError(f"a row makes no sense: {error}") from error


def _rows(connection: sqlite3.Connection, query: str, kind: Any) -> Any:
    try:
        return msgspec.convert(connection.execute(query).fetchall(), kind)
    except sqlite3.OperationalError as error:  # what is no text, although it should be
        raise sqlite3.DatabaseError(str(error)) from error
