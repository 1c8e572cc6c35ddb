"""The store on PostgreSQL, for several coordinators of which one leads.

One row says who leads, in which epoch, and until when by the database's clock. Every transaction asserts it, with a
lock that lasts as long as the transaction: whoever takes over waits for those that are under way, and none can begin
after.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import psycopg
import structlog
from sqlalchemy import Connection, Engine, Executable, Row, Table, create_engine, event, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from holdfast_coordinator.core.effects import Write
from holdfast_coordinator.core.model import Commit, Entry
from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.store import migrate, sql
from holdfast_coordinator.store.api import DeposedError, StoreError, StoreFullError
from holdfast_coordinator.store.tables import leader
from holdfast_coordinator.store.url import StoreUrl

T = TypeVar("T")

STUCK_MS = 5_000
"""Who waits so long for a lock gives up, and who holds one so long without a word loses it: it may be cut off."""
REACHED = {
    "connect_timeout": "3",
    "keepalives_idle": "3",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": str(STUCK_MS),
}
"""A server that is gone without a word is noticed within seconds."""
_ADVISORY = 0x686F6C64
"""Held by who makes or changes the tables."""
_DISK_FULL = "53100"

_NOW_MS = "(extract(epoch from clock_timestamp()) * 1000)::bigint"
_TAKE = text(
    f"""
    INSERT INTO leader AS known (id, epoch, holder, until_ms) VALUES (1, 0, :holder, {_NOW_MS} + :lease_ms)
    ON CONFLICT (id) DO UPDATE SET holder = excluded.holder, until_ms = excluded.until_ms
    WHERE known.holder IS NULL OR known.holder = :holder OR known.until_ms <= {_NOW_MS}
    RETURNING holder
    """  # noqa: S608  made of constants
)
_RENEW = text(
    f"UPDATE leader SET until_ms = {_NOW_MS} + :lease_ms WHERE holder = :holder RETURNING holder"  # noqa: S608
)
_GIVE_BACK = text("UPDATE leader SET until_ms = 0 WHERE holder = :holder")
_WHO = text(f"SELECT holder, until_ms - {_NOW_MS} FROM leader")  # noqa: S608
_ASSERT = select(leader.c.epoch, leader.c.holder).with_for_update(read=True)
_WAIT_FOR_ALL = select(leader.c.epoch, leader.c.holder).with_for_update()
_SET_UP = """
    SELECT set_config('lock_timeout', %(stuck)s, false),
           set_config('idle_in_transaction_session_timeout', %(stuck)s, false),
           set_config('synchronous_commit', CASE now WHEN 'off' THEN 'on' ELSE now END, false),
           current_setting('fsync')
    FROM current_setting('synchronous_commit') AS now
    """

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """What became of asking for the lease."""

    granted: bool
    holder: str
    left_ms: int = 0
    """Of another's, by the database's clock."""


class PostgresStore:
    """The database at a URL, as one coordinator uses it; `holder` is its name among all, in one life of it.

    Connections are made when they are needed, and again after they broke.
    """

    def __init__(self, url: StoreUrl, holder: str) -> None:
        self.holder = holder
        self._where = str(url)
        self._reading = threading.Lock()
        self._tables_are_there = False
        engine = _engine(url)
        self._writer = _Link(engine.execution_options(isolation_level="READ COMMITTED"))
        self._reader = _Link(
            engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        )
        self._asker = _Link(engine.execution_options(isolation_level="AUTOCOMMIT"))

    # The lease: for one thread, which is none of those below

    def take(self, lease_ms: int) -> LeaseAnswer:
        """Ask to lead. Makes the tables in a new database. Raises StoreError."""
        if not self._tables_are_there:
            with self._explained(), self._asker.connected() as connection:
                self._make_tables(connection)
            self._tables_are_there = True
        return self._ask(_TAKE, lease_ms)

    def renew(self, lease_ms: int) -> LeaseAnswer:
        """Ask to lead on. It is not granted once another has taken over. Raises StoreError."""
        return self._ask(_RENEW, lease_ms)

    def give_back(self) -> None:
        """Have another take over at once. Raises StoreError."""
        with self._explained(), self._asker.connected() as connection:
            connection.execute(_GIVE_BACK, {"holder": self.holder})

    def _ask(self, statement: Executable, lease_ms: int) -> LeaseAnswer:
        with self._explained(), self._asker.connected() as connection:
            asked = {"holder": self.holder, "lease_ms": lease_ms}
            if connection.execute(statement, asked).first() is not None:
                return LeaseAnswer(granted=True, holder=self.holder)
            row = connection.execute(_WHO).first()
        if row is None or row[0] is None:
            return LeaseAnswer(granted=False, holder="nobody")
        return LeaseAnswer(granted=False, holder=row[0], left_ms=row[1])

    def abandon(self) -> None:
        """Cut every connection, whatever waits for an answer there, and make no other. For any thread."""
        for link in (self._writer, self._reader, self._asker):
            link.abandon()

    # Store

    def load(self, settings: Settings) -> State:
        """Read everything. Migrates the tables first. Raises DeposedError for who does not lead."""
        with self._explained(), self._writer.transaction() as connection:
            # What was sent before a connection broke may still be under way in the server.
            self._check(connection.execute(_WAIT_FOR_ALL).first())
        with self._explained(), self._writer.transaction() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY})")
            migrate.to_newest(connection, self._where, "another database")
        return self._read(lambda connection: sql.read_state(connection, settings))

    def commit(self, writes: Sequence[Write], *, epoch: int) -> None:
        """Apply the writes in one transaction, durable when this returns."""
        with self._explained(), self._writer.transaction() as connection:
            stored = self._check(connection.execute(_ASSERT).first())
            sql.write(connection, _upsert, writes, epoch, stored)

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
        """Everything, as of one moment, whoever leads. Raises StoreError."""
        with self._reading, self._explained(), self._reader.transaction() as connection:
            migrate.must_be_newest(connection, self._where)
            yield from sql.read_rows(connection)

    def fill(self, rows: Iterable[sql.Rows]) -> int:
        """Take over what another store holds, in one transaction; returns how many rows. Raises StoreError."""
        with self._explained(), self._asker.connected() as connection:
            self._make_tables(connection)
        with self._explained(), self._writer.transaction() as connection:
            connection.exec_driver_sql("LOCK TABLE leader")  # whoever would lead waits
            return sql.write_rows(connection, rows)

    def close(self) -> None:
        """Let go of the connections."""
        with self._reading:
            for link in (self._writer, self._reader, self._asker):
                link.close()

    def _check(self, row: Row[*tuple[Any, ...]] | None) -> int:
        """The stored epoch, when this coordinator leads. Raises DeposedError."""
        if row is None or row.holder != self.holder:
            raise DeposedError(
                f"{row.holder if row is not None else 'nobody'} leads now, and not {self.holder}"
            )
        return int(row.epoch)

    def _read(self, ask: Callable[[Connection], T]) -> T:
        with self._reading, self._explained(), self._reader.transaction() as connection:
            try:
                return ask(connection)
            except ValueError as error:
                raise StoreError(
                    f"{self._where} is damaged (a row can't be read: {error}): restore it from a backup"
                ) from error

    def _make_tables(self, connection: Connection) -> None:
        if not migrate.is_new(connection):
            return
        with self._writer.transaction() as writer:
            writer.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY})")
            if migrate.is_new(writer):
                migrate.to_newest(writer, self._where, "another database")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the database raises into one sentence, which holds no value of a row: it may be secret."""
        try:
            yield
        except (SQLAlchemyError, psycopg.Error) as error:
            raise _explain(self._where, error.orig if isinstance(error, DBAPIError) else error) from None


class _Link:
    """One connection, for one thread at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._abandoned = False

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Begin, then commit, or roll back when something is raised."""
        with self.connected() as connection, connection.begin():
            yield connection

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """Give the connection; one that broke is let go of."""
        if self._connection is None and not self._abandoned:
            self._connection = self._engine.connect()
        if self._connection is None or self._abandoned:
            raise DeposedError("this coordinator leads no longer")
        try:
            yield self._connection
        except DBAPIError as error:
            if error.connection_invalidated or self._connection.invalidated:
                self.close()
            raise

    def abandon(self) -> None:
        """Cut it: who waits for an answer is told that there is none."""
        self._abandoned = True
        connection = self._connection
        if connection is None:
            return
        with suppress(Exception):  # it may be closed at this very moment, which is as good
            descriptor = os.dup(connection.connection.driver_connection.fileno())  # type: ignore[union-attr]
            with socket.socket(fileno=descriptor) as cut:
                cut.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(DBAPIError, psycopg.Error):
                connection.close()


def _engine(url: StoreUrl) -> Engine:
    engine = create_engine(
        url.url,
        poolclass=NullPool,
        hide_parameters=True,  # a job's environment may be secret
        connect_args={"client_encoding": "utf8", "application_name": "holdfast"}
        | {name: value for name, value in REACHED.items() if name not in url.url.query},
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: object) -> None:
        connection = getattr(connection, "driver_connection", connection)
        try:
            _prepare(connection, url)
        except BaseException:
            connection.close()  # SQLAlchemy does not know it yet
            raise

    return engine


def _prepare(connection: psycopg.Connection[Any], url: StoreUrl) -> None:
    if connection.info.parameter_status("server_encoding") != "UTF8":
        raise StoreError(f"{url} is not in UTF-8: make the database anew with ENCODING 'UTF8'")
    before, connection.autocommit = connection.autocommit, True
    row = connection.execute(_SET_UP, {"stuck": str(STUCK_MS)}).fetchone()
    connection.autocommit = before
    if row is not None and row[-1] == "off":
        _warn(str(url))


@cache
def _warn(where: str) -> None:
    log.warning("PostgreSQL runs without fsync: what is acknowledged may go with its machine", store=where)


@cache
def _upsert(table: Table) -> Executable:
    statement = insert(table)
    changes = {column.name: statement.excluded[column.name] for column in table.c if not column.primary_key}
    return statement.on_conflict_do_update(index_elements=table.primary_key, set_=changes)


def _explain(where: str, error: BaseException | None) -> StoreError:
    told = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
    if getattr(error, "sqlstate", None) == _DISK_FULL:
        return StoreFullError(f"no room on the disk of {where}: free some space there; nothing is lost")
    return StoreError(f"{where}: {' '.join(told.split())}")
