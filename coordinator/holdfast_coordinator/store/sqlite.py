"""The store on SQLite: one connection that writes, WAL, synchronous=FULL; another that reads."""

import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Executable, Table, create_engine, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from holdfast_coordinator.core.effects import Write
from holdfast_coordinator.core.model import Commit, Entry
from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.store import migrate, sql
from holdfast_coordinator.store.api import StoreError, StoreFullError, StoreLockedError

T = TypeVar("T")

FILE = "holdfast.db"
BUSY_S = 10.0
"""How long to wait for someone who looks into the database with a tool of theirs."""


class SqliteStore:
    """The state directory of one coordinator. Raises StoreError when it can't be opened."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._reading = threading.Lock()
        with ExitStack() as opened:
            opened.callback(os.close, hold(directory))
            make_file(self._path)
            with explained(self._path):
                self._writer = opened.enter_context(connect(self._path, begin="BEGIN IMMEDIATE"))
                with self._writer.begin():
                    migrate.to_newest(self._writer, str(self._path), "another state directory")
                self._reader = opened.enter_context(connect(self._path, begin="BEGIN"))
            self._opened = opened.pop_all()

    def load(self, settings: Settings) -> State:
        """Read everything."""
        return self._read(lambda connection: sql.read_state(connection, settings))

    def commit(self, writes: Sequence[Write], *, epoch: int) -> None:
        """Apply the writes in one transaction, durable when this returns."""
        with explained(self._path), self._writer.begin():
            sql.write(self._writer, _upsert, writes, epoch, sql.read_epoch(self._writer))

    def entries(self, *, job_id: str = "", after: int = 0, limit: int) -> list[Entry]:
        """Lines of the timeline."""
        return self._read(lambda connection: sql.read_entries(connection, job_id, after, limit))

    def commits(self, job_id: str, *, limit: int, before: tuple[int, int] | None = None) -> list[Commit]:
        """Commits of a job, newest first."""
        return self._read(lambda connection: sql.read_commits(connection, job_id, limit, before))

    def commit_upto(self, job_id: str, gang: int, step: int) -> Commit | None:
        """The newest commit of a gang at or below a step."""
        return self._read(lambda connection: sql.read_commit_upto(connection, job_id, gang, step))

    def rows(self) -> Iterator[sql.Rows]:
        """Everything, as of one moment."""
        with self._reading, explained(self._path), self._reader.begin():
            yield from sql.read_rows(self._reader)

    def fill(self, rows: Iterable[sql.Rows]) -> int:
        """Take over what another store holds, in one transaction; returns how many rows. Raises StoreError."""
        with explained(self._path), self._writer.begin():
            return sql.write_rows(self._writer, rows)

    def put_away(self) -> Path:
        """Let go of the directory, in which nobody finds a state any more; returns where it is instead."""
        away = self._path.with_name(f"{FILE}.moved")
        with self._reading, explained(self._path), self._opened:
            self._reader.close()
            self._writer.close()
            self._path.rename(away)
        return away

    def close(self) -> None:
        """Let go of the directory."""
        with self._reading, explained(self._path):
            self._opened.close()

    def _read(self, ask: Callable[[Connection], T]) -> T:
        with self._reading, explained(self._path), self._reader.begin():
            try:
                return ask(self._reader)
            except ValueError as error:
                raise _damaged(self._path, f"a row can't be read: {error}") from error


@cache
def _upsert(table: Table) -> Executable:
    statement = insert(table)
    changes = {column.name: statement.excluded[column.name] for column in table.c if not column.primary_key}
    return statement.on_conflict_do_update(index_elements=table.primary_key, set_=changes)


def connect(path: Path, *, begin: str, synchronous: str = "FULL") -> Connection:
    """Open a database, made if need be. Raises what the database does."""
    # isolation_level=None: this module says BEGIN itself, so that migrations are transactions too.
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=NullPool,
        hide_parameters=True,  # a job's environment may be secret
        connect_args={"check_same_thread": False, "timeout": BUSY_S, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, _record: object) -> None:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={synchronous}")
        except sqlite3.Error:
            connection.close()  # SQLAlchemy does not know it yet
            raise

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine.connect()


def hold(directory: Path) -> int:
    """Make a directory, and take it. Returns the descriptor that holds it. Raises StoreError."""
    _make_directory(directory)
    return _lock(directory)


def _make_directory(directory: Path) -> None:
    """Make it, so that it outlasts a power failure and is nobody else's to read."""
    try:
        for path in reversed([path for path in (directory, *directory.parents) if not path.exists()]):
            path.mkdir(mode=0o700, exist_ok=True)
            parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
    except OSError as error:
        raise _refused(directory, error) from error


def _lock(directory: Path) -> int:
    """Take the directory. Returns the descriptor that holds it."""
    try:
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(directory, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if not isinstance(error, BlockingIOError):
            raise _refused(directory, error) from error
        raise StoreLockedError(
            f"another coordinator uses the state directory {directory}; stop it, or give this one another --state-dir"
        ) from error
    return lock


def make_file(path: Path) -> None:
    """Make a database's file, so that nobody else may read it. Raises StoreError."""
    # SQLite would ask the umask; what it puts beside the file takes after it.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _refused(path.parent, error) from error


def _refused(directory: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(directory)
    return StoreError(f"can't use the state directory {directory}: {error.strerror}")


def _full(path: Path) -> StoreFullError:
    return StoreFullError(f"no room on the disk of {path}: free some space there; nothing is lost")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the database raises into one sentence."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        raise _explain(path, error.orig if isinstance(error, DBAPIError) else error) from error


def _explain(path: Path, error: BaseException | None) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says where in SQLite it happened
    # SQLite has a code for a full disk, but does not use it for its shared memory and for making files.
    unsure = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    if code == sqlite3.SQLITE_FULL or (unsure and _is_full(path.parent)):
        return _full(path)
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return _damaged(path, str(error))
    return StoreError(f"{path}: {error}")


def _damaged(path: Path, how: str) -> StoreError:
    return StoreError(f"{path} is damaged ({how}): restore it from a backup, or use another --state-dir")


def _is_full(directory: Path) -> bool:
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize < 64 * 1024  # SQLite asks for shared memory in pieces of 32 KiB
