# SPDX-License-Identifier: GPL-2.0-or-later
"""The history of nights: one SQLite file, written after every result, so that a kill loses none."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from harness.contract.result import Verdict
from harness.core.errors import UsageError
from harness.nightly.diff import BisectOutcome, Earlier, EntryKey
from harness.nightly.outcome import Outcome

FILE = "history.sqlite"
_FORMAT = 1
_BUSY_SECONDS = 30.0
# Errors of SQLite that do not mean that the file is damaged.
_NOT_DAMAGE = (
    *("SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH"),
    *("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_NOMEM", "SQLITE_INTERRUPT"),
)
# `pragma integrity_check` tests the checks, too.
_TABLES = """
create table nights(
    id integer primary key, tree text not null, branch text not null, matrix text not null,
    harness text not null, commit_name text not null, subject text not null, began real not null,
    ended real, given_up integer not null default 0, bisecting_seconds real not null default 0);
create table results(
    night integer not null references nights(id), entry text not null check(json_valid(entry)),
    verdict text not null, known text not null, failures text not null check(json_valid(failures)),
    reason text not null, evidence text not null,
    result text check(result is null or json_valid(result)),
    primary key(night, entry));
create table bisections(
    night integer not null references nights(id), entry text not null check(json_valid(entry)),
    commit_name text not null, subject text not null, lines text not null check(json_valid(lines)),
    primary key(night, entry));
create index entries on results(entry, night);
"""
_NIGHT = "id, tree, branch, matrix, harness, commit_name, subject, began"
_OUTCOME = "verdict, known, failures, reason, evidence"
# The parts of a result that are large, and dropped when it is old.
_DETAILS = ("findings", "steps", "attempts", "differences", "timings", "notes")

T = TypeVar("T")


@dataclass(frozen=True)
class Night:
    """One night.

    Attributes:
        number: from 1; 0 before the night is in the history.
        tree: URL or path of the repository.
        matrix: the text of the matrix file.
        harness: the version of the harness.
        commit: of the branch.
        subject: of that commit.
        began: in seconds since 1970.
    """

    number: int
    tree: str
    branch: str
    matrix: str
    harness: str
    commit: str
    subject: str
    began: float


class NightHistory:
    """The outcomes of all nights, for use by any thread.

    Args:
        connection: to the database, see `open_history`.
        path: of its file, for messages.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._lock = threading.Lock()

    def unfinished(self, tree: str, branch: str) -> Night | None:
        """The newest night of a branch that neither ended nor was given up."""
        return self._first(
            Night,
            f"select {_NIGHT} from nights where tree = ? and branch = ? and ended is null"
            " and not given_up order by id desc limit 1",
            *(tree, branch),
        )

    def last(self, tree: str, branch: str, before: int | None = None) -> Night | None:
        """The newest complete night of a branch, else the newest that was given up.

        Args:
            before: only nights with a smaller number, None for all.
        """
        return self._first(
            Night,
            f"select {_NIGHT} from nights where tree = ? and branch = ? and id < ?"
            " order by ended is not null desc, id desc limit 1",
            *(tree, branch, 1 << 62 if before is None else before),
        )

    def begin(self, night: Night, above: int = 0) -> Night:
        """Begin a night, and give up all other unfinished nights of its branch.

        Returns:
            the night, with a number larger than `above` and that of every other night.
        """
        place = (night.tree, night.branch)
        values = (night.matrix, night.harness, night.commit, night.subject, night.began)
        with self._writing() as connection:
            connection.execute(
                "update nights set given_up = 1 where tree = ? and branch = ? and ended is null",
                place,
            )
            cursor = connection.execute(
                f"insert into nights({_NIGHT})"
                " select 1 + max(?, coalesce(max(id), 0)), ?, ?, ?, ?, ?, ?, ? from nights",
                (above, *place, *values),
            )
        return replace(night, number=cursor.lastrowid or 0)

    def end(self, night: Night) -> None:
        """Record that a night is complete."""
        self._write("update nights set ended = ? where id = ?", time.time(), night.number)

    def add(
        self, night: Night, key: EntryKey, outcome: Outcome, result: Mapping[str, Any] | None
    ) -> None:
        """Record the outcome of an entry, with the result of its run, if any."""
        self._write(
            "insert or replace into results values (?, ?, ?, ?, ?, ?, ?, ?)",
            *(night.number, _key_text(key), outcome.verdict, outcome.known),
            *(json.dumps(outcome.failures), outcome.reason, outcome.evidence),
            json.dumps(result) if result is not None else None,
        )

    def outcomes(self, night: Night) -> dict[EntryKey, Outcome]:
        """The outcomes of a night so far, in the order of keys."""
        query = f"select entry, {_OUTCOME} from results where night = ? order by entry"
        return dict(
            self._rows(lambda key, *rest: (_key(key), _outcome(*rest)), query, night.number)
        )

    def results(self, night: Night) -> list[Any]:
        """The results of a night's runs, as JSON objects."""
        query = "select result from results where night = ? and result is not null order by entry"
        return self._rows(json.loads, query, night.number)

    def drop_details(self, before: int) -> None:
        """Drop all but verdicts and owners from results of nights before a number.

        Nights are compared by what stays. A night that can still be continued keeps all.
        """
        paths = ", ".join(f"'$.{name}'" for name in _DETAILS)
        self._write(
            f"update results set result = json_remove(result, {paths}) where night < ?"
            f" and json_type(result, '$.{_DETAILS[0]}') is not null"
            " and night in (select id from nights where ended is not null or given_up)",
            before,
        )
        # Without space for a copy, the file stays as large as it is.
        with self._lock, suppress(sqlite3.OperationalError):
            self._connection.execute("vacuum")

    def earlier(self, night: Night, key: EntryKey, *verdicts: Verdict) -> Earlier | None:
        """The newest of these verdicts on an entry in the earlier nights of the same branch.

        Of a night that did not end only a PASS counts: its failures were never reported.
        """
        return self._first(
            lambda number, commit, *outcome: Earlier(number, commit, _outcome(*outcome)),
            f"select id, commit_name, {_OUTCOME} from results join nights on id = night"
            " where entry = ? and id < ? and tree = ? and branch = ?"
            f" and verdict in ({', '.join('?' * len(verdicts))})"
            " and (ended is not null or verdict = ?) order by id desc limit 1",
            *(_key_text(key), night.number, night.tree, night.branch),
            *(verdict.name for verdict in (*verdicts, Verdict.PASS)),
        )

    def add_bisection(self, night: Night, key: EntryKey, outcome: BisectOutcome) -> None:
        """Record the outcome of bisecting a regression."""
        self._write(
            "insert or replace into bisections values (?, ?, ?, ?, ?)",
            *(night.number, _key_text(key), outcome.commit, outcome.subject),
            json.dumps(outcome.lines),
        )

    def bisections(self, night: Night) -> dict[EntryKey, BisectOutcome]:
        """The outcomes of the bisections of a night so far."""

        def read(key: str, commit: str, subject: str, lines: str) -> tuple[EntryKey, BisectOutcome]:
            return _key(key), BisectOutcome(commit, subject, tuple(json.loads(lines)))

        query = "select entry, commit_name, subject, lines from bisections where night = ?"
        return dict(self._rows(read, query, night.number))

    def set_bisecting_seconds(self, night: Night, seconds: float) -> None:
        """Record how long the bisections of a night have taken so far."""
        self._write("update nights set bisecting_seconds = ? where id = ?", seconds, night.number)

    def bisecting_seconds(self, night: Night) -> float:
        """Return the time that the bisections of a night have taken so far, over all its starts."""
        query = "select bisecting_seconds from nights where id = ?"
        return self._first(float, query, night.number) or 0.0

    def _rows(self, read: Callable[..., T], query: str, *values: object) -> list[T]:
        with self._lock, self._explained():
            return [read(*row) for row in self._connection.execute(query, values)]

    def _first(self, read: Callable[..., T], query: str, *values: object) -> T | None:
        return next(iter(self._rows(read, query, *values)), None)

    def _write(self, statement: str, *values: object) -> None:
        with self._writing() as connection:
            connection.execute(statement, values)

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
                f"the history cannot be read or written: {error}",
                where=str(self._path),
                hint="check the permissions of the file and the free space, then start the night "
                "again: it continues where it stopped",
            ) from error
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"the history has a damaged row: {error}",
                where=str(self._path),
                hint="move the file away and start the night again: a new history begins",
            ) from error


@contextmanager
def open_history(folder: Path, note: Callable[[str], None]) -> Iterator[NightHistory]:
    """Open the history in a folder for the length of the block; a new one if it is missing.

    Args:
        folder: locked by the caller.
        note: is called with a message if the file is damaged and was moved aside.

    Raises:
        UsageError: a newer version of the harness wrote the file, or it cannot be opened.
    """
    path = folder / FILE
    try:
        connection = _connect(path)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if getattr(error, "sqlite_errorname", "").startswith(_NOT_DAMAGE):
            raise UsageError(
                f"the history cannot be opened: {error}",
                where=str(path),
                hint="check the permissions of the folder and the free space",
            ) from error
        aside = _move_aside(path)
        note(
            f"the history {path} is damaged ({error}); it is kept as {aside.name}, and a new "
            "history begins: there is no earlier night to compare with"
        )
        connection = _connect(path)
    try:
        yield NightHistory(connection, path)
    finally:
        connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file, or check those of an existing one."""
    (tables,) = connection.execute("select count(*) from sqlite_schema").fetchone()
    if not tables:
        connection.executescript(f"begin; {_TABLES} pragma user_version = {_FORMAT}; commit;")
        return
    (version,) = connection.execute("pragma user_version").fetchone()
    if version > _FORMAT:
        raise UsageError(
            f"the history was written by a newer harness (format {version}, not {_FORMAT})",
            where=str(path),
            hint="use that version, or name another folder with --state",
        )
    if version != _FORMAT:
        raise sqlite3.DatabaseError(f"unknown format {version}")
    (problem,) = connection.execute("pragma integrity_check(1)").fetchone()
    if problem != "ok":
        raise sqlite3.DatabaseError(problem)


def _move_aside(path: Path) -> Path:
    stamp = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    names = (stamp, *(f"{stamp}-{number}" for number in range(2, 1000)))
    aside = next(free for free in (path.with_name(name) for name in names) if not free.exists())
    path.rename(aside)
    # A journal that stays would be played back into the new file.
    for suffix in ("-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def _key_text(key: EntryKey) -> str:
    return json.dumps(asdict(key), sort_keys=True)


def _key(text: str) -> EntryKey:
    return EntryKey(**json.loads(text))


def _outcome(verdict: str, known: str, failures: str, reason: str, evidence: str) -> Outcome:
    return Outcome(verdict, known, tuple(json.loads(failures)), reason, evidence)
