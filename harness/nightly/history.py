# SPDX-License-Identifier: GPL-2.0-or-later
"""The history of nights: one SQLite file, written after every result, so that a kill loses none."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.contract.result import Verdict
from harness.core.errors import UsageError
from harness.nightly.diff import Bisecting, Earlier, Line, Seen
from harness.nightly.history_rows import check_rows, check_times, give_back_room, shorten_results

FILE = "history.sqlite"
_APPLICATION = 0x43584C4F
# Raise it, and say how to bring an older file up to it, when the tables change.
_VERSION = 1
_BUSY_SECONDS = 30.0
# What SQLite calls errors that say nothing about what is in the file.
_NOT_DAMAGE = (
    *("SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH"),
    *("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_NOMEM", "SQLITE_INTERRUPT"),
)
_TABLES = """
create table nights(
    id integer primary key, tree text not null, branch text not null, matrix text not null,
    harness text not null, commit_name text not null, subject text not null,
    began real not null, ended real, given_up integer not null default 0);
create table results(
    night integer not null references nights(id), line text not null, verdict text not null,
    known text not null, failures text not null, reason text not null, evidence text not null,
    result text, primary key(night, line));
create table bisections(
    night integer not null references nights(id), line text not null, commit_name text not null,
    subject text not null, said text not null, primary key(night, line));
create index lines on results(line, night);
"""
# Without a new form: a harness that does not know it does without it.
_LATER = """
create table if not exists bisecting_times(
    night integer primary key references nights(id), seconds real not null);
"""


@dataclass(frozen=True)
class Night:
    """One night.

    Attributes:
        number: from 1.
        tree: URL or path of the repository.
        branch: its branch.
        matrix: the text of the matrix file that it runs.
        harness: the version of the harness.
        commit: of the branch.
        subject: of that commit.
        began: in seconds since 1970.
        ended: the same, None while it is under way.
    """

    number: int
    tree: str
    branch: str
    matrix: str
    harness: str
    commit: str
    subject: str
    began: float
    ended: float | None = None


_NIGHT = "id, tree, branch, matrix, harness, commit_name, subject, began, ended"
_SEEN = "r.verdict, r.known, r.failures, r.reason, r.evidence"


class NightHistory:
    """What all nights saw. For any thread.

    Args:
        connection: to the database, of `open_history`.
        path: of its file, for messages.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._lock = threading.Lock()

    def unfinished(self, tree: str, branch: str) -> Night | None:
        """The newest night of a branch that was begun and neither ended nor given up."""
        rows = self._rows(
            f"select {_NIGHT} from nights where tree = ? and branch = ? and ended is null"
            " and not given_up order by id desc limit 1",
            tree,
            branch,
        )
        return Night(*rows[0]) if rows else None

    def last(self, tree: str, branch: str, before: int | None = None) -> Night | None:
        """The newest complete night of a branch, or the newest that was given up.

        Args:
            tree: of the branch.
            branch: which.
            before: only nights with a smaller number, None for all.
        """
        rows = self._rows(
            f"select {_NIGHT} from nights where tree = ? and branch = ? and id < ?"
            " order by ended is not null desc, id desc limit 1",
            tree,
            branch,
            1 << 62 if before is None else before,
        )
        return Night(*rows[0]) if rows else None

    def begin(
        self,
        tree: str,
        branch: str,
        matrix: str,
        harness: str,
        commit: str,
        subject: str,
        above: int = 0,
    ) -> Night:
        """Begin a night; all others of the branch that did not end are given up.

        Its number is larger than `above` and than that of every other night.
        """
        with self._writing() as connection:
            connection.execute(
                "update nights set given_up = 1 where tree = ? and branch = ? and ended is null",
                (tree, branch),
            )
            began = time.time()
            cursor = connection.execute(
                "insert into nights"
                "(id, tree, branch, matrix, harness, commit_name, subject, began)"
                " select 1 + max(?, coalesce(max(id), 0)), ?, ?, ?, ?, ?, ?, ? from nights",
                (above, tree, branch, matrix, harness, commit, subject, began),
            )
            number = cursor.lastrowid
        assert number is not None
        return Night(number, tree, branch, matrix, harness, commit, subject, began)

    def end(self, night: Night) -> None:
        """Say that a night is complete."""
        with self._writing() as connection:
            connection.execute(
                "update nights set ended = ? where id = ?", (time.time(), night.number)
            )

    def add(self, night: Night, line: Line, seen: Seen, result: Mapping[str, Any] | None) -> None:
        """Keep what a night saw of a line; `result` is the run's, None where there was none."""
        values = (
            *(night.number, _line_key(line), seen.verdict, seen.known, json.dumps(seen.failures)),
            *(seen.reason, seen.evidence, json.dumps(result) if result is not None else None),
        )
        with self._writing() as connection:
            connection.execute(
                "insert or replace into results values (?, ?, ?, ?, ?, ?, ?, ?)", values
            )

    def shorten(self, before: int) -> None:
        """Keep of results of nights before a number only what they are of, verdict and owners.

        All that nights are compared by stays; a night that is still to be finished keeps all.
        """
        with self._writing() as connection:
            shorten_results(connection, before)
        with self._lock, self._explained():
            give_back_room(self._connection)

    def seen(self, night: Night) -> dict[Line, Seen]:
        """What a night has seen so far, in the order of lines."""
        rows = self._rows(
            f"select r.line, {_SEEN} from results r where night = ? order by r.line", night.number
        )
        return {_line(text): _seen(rest) for text, *rest in rows}

    def results(self, night: Night) -> list[Any]:
        """The results of a night's runs, as `RunResult.as_json` made them."""
        rows = self._rows(
            "select result from results where night = ? and result is not null order by line",
            night.number,
        )
        return [json.loads(text) for (text,) in rows]

    def earlier(self, night: Night, line: Line, *, judged: bool) -> Earlier | None:
        """The newest earlier night of the same branch that saw a line so that it counts.

        Of a night that never ended only a PASS counts: it told nobody of its failures, which would
        not be new any more.

        Args:
            night: before which.
            line: which.
            judged: whether only PASS and FAIL count, else UNBUILDABLE does as well.
        """
        verdicts = [Verdict.PASS.name, Verdict.FAIL.name]
        verdicts += [] if judged else [Verdict.UNBUILDABLE.name]
        rows = self._rows(
            f"select n.id, n.commit_name, {_SEEN} from results r join nights n on n.id = r.night"
            " where r.line = ? and n.id < ? and n.tree = ? and n.branch = ?"
            f" and r.verdict in ({', '.join('?' * len(verdicts))})"
            " and (n.ended is not null or r.verdict = ?) order by n.id desc limit 1",
            *(_line_key(line), night.number, night.tree, night.branch, *verdicts),
            Verdict.PASS.name,
        )
        return Earlier(rows[0][0], rows[0][1], _seen(rows[0][2:])) if rows else None

    def add_bisecting(self, night: Night, line: Line, came: Bisecting) -> None:
        """Keep what came of looking for the commit of a regression."""
        values = (night.number, _line_key(line), came.commit, came.subject, json.dumps(came.said))
        with self._writing() as connection:
            connection.execute("insert or replace into bisections values (?, ?, ?, ?, ?)", values)

    def bisectings(self, night: Night) -> dict[Line, Bisecting]:
        """What came of looking for the commits of a night's regressions, so far."""
        rows = self._rows(
            "select line, commit_name, subject, said from bisections where night = ?", night.number
        )
        return {
            _line(text): Bisecting(commit, subject, tuple(json.loads(said)))
            for text, commit, subject, said in rows
        }

    def add_bisecting_seconds(self, night: Night, seconds: float) -> None:
        """Keep that looking for commits has taken a night so much longer."""
        with self._writing() as connection:
            connection.execute(
                "insert into bisecting_times values (?, ?)"
                " on conflict(night) do update set seconds = seconds + excluded.seconds",
                (night.number, seconds),
            )

    def bisecting_seconds(self, night: Night) -> float:
        """How long a night has looked for commits so far, in all its starts."""
        rows = self._rows("select seconds from bisecting_times where night = ?", night.number)
        return float(rows[0][0]) if rows else 0.0

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, self._explained():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained(), self._connection:
            yield self._connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"the history cannot be used: {error}",
                where=str(self._path),
                hint="is the disk full, or the file not writable? Free some space and start it "
                "again: it goes on from here",
            ) from error


@contextmanager
def open_history(folder: Path, note: Callable[[str], None]) -> Iterator[NightHistory]:
    """The history in a folder, a new one when there is none, for the length of the block.

    Args:
        folder: hold a lock on it.
        note: hears of a damaged file, which is kept aside.

    Raises:
        UsageError: it was written by a newer harness, or cannot be opened.
    """
    path = folder / FILE
    try:
        connection = _connected(path)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorname", "").startswith(_NOT_DAMAGE):
            raise UsageError(
                f"the history cannot be opened: {error}",
                where=str(path),
                hint="is the folder writable, and the disk not full?",
            ) from error
        aside = _put_aside(path)
        note(
            f"the history {path} is damaged ({error}); it is kept as {aside.name}, and a new one "
            "begins: there is no earlier night to compare with"
        )
        connection = _connected(path)
    try:
        yield NightHistory(connection, path)
    finally:
        connection.close()


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    try:
        _prepare(connection, path)
    except UnicodeDecodeError as error:
        connection.close()
        raise sqlite3.DatabaseError(f"a text is none: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("pragma user_version").fetchone()
    (application,) = connection.execute("pragma application_id").fetchone()
    (tables,) = connection.execute("select count(*) from sqlite_schema").fetchone()
    if not tables:
        with connection:
            connection.executescript(
                f"begin; {_TABLES} {_LATER} pragma application_id = {_APPLICATION};"
                f" pragma user_version = {_VERSION}; commit;"
            )
        return
    if application != _APPLICATION:
        raise sqlite3.DatabaseError("it is the database of another program")
    if version < 1:
        raise sqlite3.DatabaseError(f"it is of form {version}")
    if version > _VERSION:
        raise UsageError(
            f"it was written by a newer harness (form {version}, this one knows {_VERSION})",
            where=str(path),
            hint="use that harness, or name another folder with --state",
        )
    (said,) = connection.execute("pragma integrity_check(1)").fetchone()
    if said != "ok":
        raise sqlite3.DatabaseError(said)
    check_rows(connection)
    with connection:
        connection.execute(_LATER)
    check_times(connection)


def _put_aside(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for number in range(2, 1000):
        if not aside.exists():
            break
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    path.rename(aside)
    # A journal that is left would be played back into the new file.
    for suffix in ("-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def _line_key(line: Line) -> str:
    return json.dumps(asdict(line), sort_keys=True)


def _line(text: str) -> Line:
    return Line(**json.loads(text))


def _seen(row: Any) -> Seen:
    verdict, known, failures, reason, evidence = row
    return Seen(verdict, known, tuple(json.loads(failures)), reason, evidence)
