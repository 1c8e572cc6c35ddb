"""The store on SQLite: one connection that writes, WAL, synchronous=FULL; another that reads the histories."""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Engine,
    Table,
    and_,
    bindparam,
    create_engine,
    delete,
    event,
    select,
    tuple_,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool

from holdfast_coordinator.core.effects import Append, Delete, DropHistory, Put, SetEpoch, Write
from holdfast_coordinator.core.model import Commit, Entry, Gang, Job, Node, Prepared, Worker
from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.store import migrate, tables
from holdfast_coordinator.store.api import DeposedError, StoreError, StoreFullError, StoreLockedError
from holdfast_coordinator.store.rows import TABLES, from_row, key_of, to_row

FILE = "holdfast.db"


class SqliteStore:
    """The state directory of one coordinator. Raises StoreError when it can't be opened."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._lock = _lock(directory)
        try:
            self._writer = _open(self._path)
            self._reader = _open(self._path)
            with self._guarded():
                migrate.to_newest(self._writer, self._path)
                self._connection = self._writer.connect()
                self._reading = self._reader.connect()
        except BaseException:
            os.close(self._lock)
            raise
        self._reading_lock = threading.Lock()

    def load(self, settings: Settings) -> State:
        """Read everything."""
        state = State(settings)
        with self._guarded(), self._connection.begin():
            state.epoch = self._connection.scalar(select(tables.leader.c.epoch)) or 0
            newest = select(tables.entries.c.seq).order_by(tables.entries.c.seq.desc()).limit(1)
            state.next_seq = (self._connection.scalar(newest) or 0) + 1
            for kind in (Job, Gang, Worker, Node, Prepared):
                for row in self._connection.execute(select(TABLES[kind])).mappings():
                    state.put(from_row(kind, row))  # type: ignore[arg-type]  # column names are strings
        return state

    def commit(self, writes: Sequence[Write], *, epoch: int) -> None:
        """Apply the writes in one transaction, durable when this returns."""
        with self._guarded(), self._connection.begin():
            self._assert_epoch(epoch, [write.epoch for write in writes if isinstance(write, SetEpoch)])
            puts, deletes, appends = _folded(writes)
            for table, rows in deletes.items():
                self._connection.execute(_delete_by_key(table), rows)
            for table, rows in puts.items():
                self._connection.execute(_upsert(table), rows)
            for table, rows in appends.items():
                self._connection.execute(insert(table), rows)
            for write in writes:
                if isinstance(write, DropHistory):
                    self._connection.execute(
                        delete(tables.commits).where(tables.commits.c.job_id == write.job_id)
                    )

    def entries(self, *, job_id: str = "", after: int = 0, limit: int) -> list[Entry]:
        """Lines of the timeline."""
        table = tables.entries
        query = select(table).where(table.c.seq > after).order_by(table.c.seq).limit(limit)
        if job_id:
            query = query.where(table.c.job_id == job_id)
        return [from_row(Entry, row) for row in self._read(query)]

    def commits(self, job_id: str, *, limit: int, before: tuple[int, int] | None = None) -> list[Commit]:
        """Commits of a job, newest first."""
        table = tables.commits
        query = select(table).where(table.c.job_id == job_id)
        if before is not None:
            query = query.where(tuple_(table.c.step, table.c.gang) < before)
        query = query.order_by(table.c.step.desc(), table.c.gang.desc()).limit(limit)
        return [from_row(Commit, row) for row in self._read(query)]

    def close(self) -> None:
        """Let go of the directory."""
        with self._reading_lock:
            self._reading.close()
            self._reader.dispose()
        self._connection.close()
        self._writer.dispose()
        os.close(self._lock)

    def _read(self, query: Any) -> list[Any]:
        with self._reading_lock, self._guarded(), self._reading.begin():
            return list(self._reading.execute(query).mappings())

    def _assert_epoch(self, epoch: int, claims: list[int]) -> None:
        stored = self._connection.scalar(select(tables.leader.c.epoch)) or 0
        if claims and max(claims) > stored:
            stored = max(claims)
            self._connection.execute(_upsert(tables.leader), [{"id": 1, "epoch": stored}])
        elif claims:
            raise DeposedError(f"epoch {max(claims)} is not after epoch {stored}")
        if stored != epoch:
            raise DeposedError(f"epoch {epoch} writes into a store of epoch {stored}")

    def _guarded(self) -> "_Guard":
        return _Guard(self._path)


class _Guard:
    """Turns what the database raises into one sentence."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, DatabaseError | sqlite3.Error):
            return
        original = error.orig if isinstance(error, DatabaseError) else error
        code = getattr(original, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_FULL or (code & 0xFF == sqlite3.SQLITE_IOERR and _is_full(self._path)):
            raise StoreFullError(
                f"no room on the disk of {self._path}: free some space there, nothing is lost"
            ) from error
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise StoreError(f"{self._path} is damaged ({original}): restore it from a backup") from error
        raise StoreError(f"{self._path}: {original}") from error


def _is_full(path: Path) -> bool:
    there = os.statvfs(path.parent)
    return there.f_bavail * there.f_frsize < 64 * 1024


def _lock(directory: Path) -> int:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"can't use the state directory {directory}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise StoreLockedError(
            f"another coordinator uses the state directory {directory}; stop it, or give this one another --state-dir"
        ) from error
    return lock


def _open(path: Path) -> Engine:
    # One connection an engine, handed from thread to thread by whoever owns it.
    engine = create_engine(
        f"sqlite:///{path}", poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": 10}
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, _record: object) -> None:
        path.chmod(0o600)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _folded(
    writes: Iterable[Write],
) -> tuple[dict[Table, list[Any]], dict[Table, list[Any]], dict[Table, list[Any]]]:
    """Sort writes by table; of several to the same row the last alone counts."""
    newest: dict[tuple[type, tuple[Any, ...]], Put | Delete] = {}
    puts: dict[Table, list[Any]] = {}
    deletes: dict[Table, list[Any]] = {}
    appends: dict[Table, list[Any]] = {}
    for write in writes:
        match write:
            case Put(row) | Delete(row):
                newest[type(row), key_of(row)] = write
            case Append(item):
                appends.setdefault(TABLES[type(item)], []).append(to_row(item))
            case _:
                pass
    for (kind, key), write in newest.items():
        table = TABLES[kind]
        if isinstance(write, Put):
            puts.setdefault(table, []).append(to_row(write.row))
        else:
            names = [f"key_{column.name}" for column in table.primary_key]
            deletes.setdefault(table, []).append(dict(zip(names, key, strict=True)))
    return puts, deletes, appends


def _upsert(table: Table) -> Any:
    statement = insert(table)
    keys = {column.name for column in table.primary_key}
    changes = {column.name: statement.excluded[column.name] for column in table.c if column.name not in keys}
    return statement.on_conflict_do_update(index_elements=table.primary_key, set_=changes)


def _delete_by_key(table: Table) -> Any:
    return delete(table).where(
        and_(*(column == bindparam(f"key_{column.name}") for column in table.primary_key))
    )
