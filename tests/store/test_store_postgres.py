"""What the store on PostgreSQL promises beyond the contract: one writer among many (P7), whatever breaks (P3)."""

import math
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from holdfast_coordinator.core.effects import Append, Put, SetEpoch
from holdfast_coordinator.core.jobspec import JobSpec
from holdfast_coordinator.core.model import (
    Desired,
    Entry,
    Gang,
    Job,
    JobState,
    Progress,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.state import Settings
from holdfast_coordinator.store import migrate, postgres, tables
from holdfast_coordinator.store.api import DeposedError, StoreError, StoreTooNewError
from holdfast_coordinator.store.postgres import PostgresStore
from holdfast_coordinator.store.url import StoreUrl, StoreUrlError, read_url

SETTINGS = Settings()
LONG_MS = 600_000
PATIENCE = 60


@pytest.fixture(scope="module")
def database(postgres):
    url = postgres.make_database()
    PostgresStore(url, "first").take(0)
    return url


@pytest.fixture
def admin(postgres, database):
    """A connection that may do anything; the tables are empty."""
    with postgres.connect(database.url.database) as connection:
        connection.execute(f"TRUNCATE {', '.join(tables.metadata.tables)}")
        yield connection


@pytest.fixture
def open_store(admin, database):
    opened = []

    def make(holder):
        opened.append(PostgresStore(database, holder))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def leader(open_store):
    store = open_store("a")
    assert store.take(LONG_MS).granted
    store.commit([SetEpoch(1)], epoch=1)
    return store


def entry(seq, message="it happened"):
    return Entry(seq, at_ms=seq, kind="Thing", message=message)


def runs_out(admin):
    """Let the lease be over by the database's clock."""
    admin.execute("UPDATE leader SET until_ms = 1")


def until_somebody_waits(admin):
    """Wait until a connection waits for a lock."""
    while not admin.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
        pass


class TestOneLeads:
    def test_one_has_the_lease_until_it_runs_out_or_is_given_back(self, leader, open_store, admin):
        other = open_store("b")
        refused = other.take(LONG_MS)
        assert (refused.granted, refused.holder) == (False, "a")
        assert 0 < refused.left_ms <= LONG_MS
        assert leader.renew(LONG_MS).granted
        runs_out(admin)
        assert leader.renew(LONG_MS).granted, "nobody had taken it"
        assert not other.take(LONG_MS).granted
        leader.give_back()
        assert other.take(LONG_MS).granted

    def test_who_is_deposed_writes_nothing_and_renews_nothing(self, leader, open_store, admin):
        """Even before the new leader's epoch begins: what it reads then is the truth."""
        runs_out(admin)
        other = open_store("b")
        assert other.take(LONG_MS).granted
        for writes in ([], [Append(entry(1))], [SetEpoch(2), Append(entry(1))]):
            with pytest.raises(DeposedError, match="b leads now, and not a"):
                leader.commit(writes, epoch=2 if writes and isinstance(writes[0], SetEpoch) else 1)
        with pytest.raises(DeposedError):
            leader.load(SETTINGS)
        assert not leader.renew(LONG_MS).granted
        state = other.load(SETTINGS)
        assert (state.epoch, state.next_seq) == (1, 1)
        other.commit([SetEpoch(2), Append(entry(1))], epoch=2)
        runs_out(admin)
        assert not leader.renew(LONG_MS).granted, "another has led since, even if it leads no longer"
        assert other.entries(limit=9) == [entry(1)]

    def test_who_takes_over_waits_for_the_transaction_under_way(self, leader, open_store, admin):
        runs_out(admin)
        other = open_store("b")
        with ThreadPoolExecutor(1) as beside:
            with leader._writer.transaction() as connection:
                connection.execute(postgres._ASSERT)
                taking = beside.submit(other.take, LONG_MS)
                until_somebody_waits(admin)
                connection.execute(tables.entries.insert(), postgres.sql.to_row(entry(1)))
                assert not taking.done()
            assert taking.result(PATIENCE).granted
        assert other.load(SETTINGS).next_seq == 2

    def test_who_reads_anew_waits_for_what_was_sent_before_a_connection_broke(self, leader, admin, postgres):
        with (
            postgres.connect(leader._writer._engine.url.database) as cut_off,
            ThreadPoolExecutor(1) as beside,
        ):
            cut_off.autocommit = False
            cut_off.execute("SELECT epoch FROM leader FOR SHARE")
            reading = beside.submit(leader.load, SETTINGS)
            until_somebody_waits(admin)
            cut_off.execute(
                "INSERT INTO entries VALUES (1, 1, 'Thing', 'it happened', '', '', NULL, 0, '', '')"
            )
            cut_off.commit()
            assert reading.result(PATIENCE).next_seq == 2

    def test_of_many_that_come_to_a_new_database_one_leads(self, postgres):
        url = postgres.make_database()
        stores = [PostgresStore(url, name) for name in "abcd"]
        gate = threading.Barrier(len(stores))

        def come(store):
            gate.wait(PATIENCE)
            return store.take(LONG_MS).granted

        with ThreadPoolExecutor(len(stores)) as beside:
            assert sorted(beside.map(come, stores)) == [False, False, False, True]
        for store in stores:
            store.close()

    def test_who_is_abandoned_waits_no_longer(self, leader, admin):
        with ThreadPoolExecutor(1) as beside, admin.transaction():
            admin.execute("SELECT epoch FROM leader FOR UPDATE")
            stuck = beside.submit(leader.commit, [], epoch=1)
            until_somebody_waits(admin)
            leader.abandon()
            with pytest.raises(StoreError):
                stuck.result(PATIENCE)
        with pytest.raises(DeposedError, match="leads no longer"):
            leader.commit([], epoch=1)


class TestWhatBreaks:
    def test_a_connection_that_broke_is_made_again(self, leader, admin):
        leader.load(SETTINGS)
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast'"
        )
        for call in (lambda: leader.commit([], epoch=1), lambda: leader.entries(limit=1)):
            with pytest.raises(StoreError):
                call()
            call()
        with pytest.raises(StoreError):
            leader.renew(LONG_MS)
        assert leader.renew(LONG_MS).granted

    def test_every_commit_is_synced(self, leader, admin, database, open_store):
        """Even where the database would rather not."""
        admin.execute(f"ALTER DATABASE {database.url.database} SET synchronous_commit = off")
        try:
            store = open_store("c")
            with store._writer.transaction() as connection:
                assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        finally:
            admin.execute(f"ALTER DATABASE {database.url.database} RESET synchronous_commit")

    def test_what_postgresql_has_no_characters_and_numbers_for(self, leader):
        said = entry(1, "a\x00b\U0010fffd0\U0010fffd\x001")
        progress = Progress(metrics={"loss": math.nan, "best": math.inf, "worst": -math.inf})
        worker = Worker("a", 0, gang=0, state=WorkerState.RUNNING, attempt=2**40, progress=progress)
        leader.commit([Append(said), Put(worker)], epoch=1)
        assert leader.entries(limit=1) == [said]
        assert repr(leader.load(SETTINGS).workers["a", 0]) == repr(worker)

    def test_errors_keep_secrets(self, leader):
        spec = JobSpec("train", ("true",), 1, env={"TOKEN": "hunter2"})
        job = Job("a", "", spec, Desired.RUNNING, JobState.PENDING, reason=None, created_ms=1)
        with pytest.raises(
            StoreError, match=r'postgresql://holdfast@.*null value in column "reason"'
        ) as raised:
            leader.commit([Put(job)], epoch=1)
        assert "hunter2" not in "".join(traceback.format_exception(raised.value))

    def test_a_server_that_is_not_there(self, database):
        nowhere = StoreUrl(database.url.set(password="hunter2", query={"host": "/nonexistent"}))
        with pytest.raises(
            StoreError, match=r"postgresql://holdfast@/test.*: No such file or directory"
        ) as raised:
            PostgresStore(nowhere, "a").take(LONG_MS)
        assert "hunter2" not in "".join(traceback.format_exception(raised.value))

    def test_a_database_that_can_not_hold_all_characters(self, postgres):
        with postgres.connect("postgres") as admin:
            admin.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
        with pytest.raises(StoreError, match="is not in UTF-8: make the database anew"):
            PostgresStore(postgres.url("ascii"), "a").take(LONG_MS)


class TestTables:
    def test_the_migrations_make_them(self, postgres):
        engine = create_engine(postgres.make_database().url)
        with engine.connect() as connection:
            with connection.begin():
                migrate.upgrade(connection)
            assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
        engine.dispose()

    def test_those_of_a_newer_version_are_left_alone(self, leader, admin):
        admin.execute("UPDATE alembic_version SET version_num = '9999'")
        try:
            with pytest.raises(StoreTooNewError, match=r"postgresql://.* was written by a newer version"):
                leader.load(SETTINGS)
        finally:
            admin.execute("UPDATE alembic_version SET version_num = %s", [migrate.NEWEST])

    def test_older_ones_are_migrated_by_who_leads(self, leader, open_store, monkeypatch):
        """To the store of a later version, tables of today are older ones."""
        monkeypatch.setattr(migrate, "NEWEST", "9999")
        upgraded = []
        monkeypatch.setattr(migrate, "upgrade", upgraded.append)
        other = open_store("b")
        assert not other.take(LONG_MS).granted
        with pytest.raises(DeposedError):
            other.load(SETTINGS)
        assert upgraded == []
        leader.load(SETTINGS)
        assert len(upgraded) == 1


class TestUrl:
    def test_what_is_shown_has_no_secret(self):
        url = read_url("postgres://me:hunter2@db.internal:5433/holdfast?sslmode=require&sslpassword=hunter3")
        assert url.has_password
        assert str(url) == f"{url}" == "postgresql://me@db.internal:5433/holdfast"
        assert "hunter" not in repr(url)
        assert url.url.query["sslmode"] == "require"

    @pytest.mark.parametrize(
        "given",
        ["postgresql://me:hunter2@db:none/x", "mysql://hunter2@db/x", "hunter2", "postgresql://hunter2"],
    )
    def test_what_can_not_be_read_is_not_shown(self, given):
        with pytest.raises(StoreUrlError, match="write postgresql://USER@HOST:5432/DATABASE") as raised:
            read_url(given)
        assert "hunter2" not in "".join(traceback.format_exception(raised.value))

    @pytest.mark.parametrize("part", ["?password=x", "?sslpassword=x"])
    def test_a_password_behind_the_question_mark_is_one(self, part):
        assert read_url(f"postgresql://me@db/x{part}").has_password
        assert not read_url("postgresql://me@db/x?passfile=/run/pass").has_password


def test_rows_are_replaced_one_by_one(leader):
    gangs = [Gang("a", index) for index in range(3)]
    leader.commit([Put(gang) for gang in gangs], epoch=1)
    leader.commit([Put(replace(gangs[1], attempt=5))], epoch=1)
    assert [gang.attempt for gang in leader.load(SETTINGS).gangs.values()] == [1, 5, 1]
