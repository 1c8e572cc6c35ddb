"""What one store holds, another takes over: whole, or not at all."""

from contextlib import closing

import pytest
from hypothesis import given, settings

from holdfast_coordinator.core.effects import Append, SetEpoch
from holdfast_coordinator.core.model import Entry
from holdfast_coordinator.core.state import Settings
from holdfast_coordinator.store.api import StoreError
from holdfast_coordinator.store.postgres import PostgresStore
from holdfast_coordinator.store.sqlite import SqliteStore
from holdfast_coordinator.store.tables import metadata
from tests.store.strategies import JOB_IDS, batches

SETTINGS = Settings()


def everything(store):
    histories = [store.commits(job_id, limit=1_000) for job_id in JOB_IDS]
    return store.load(SETTINGS), store.entries(limit=1_000), histories


def rows(store):
    return {table.name: some for table, some in store.rows()}


@pytest.fixture(scope="module")
def database(postgres):
    return postgres.make_database()


def test_all_of_it_there_and_back(database, postgres, tmp_path_factory):
    @settings(max_examples=12, deadline=None)
    @given(written=batches())
    def holds(written):
        path = tmp_path_factory.mktemp("stores")
        with closing(PostgresStore(database, "a")) as there:
            there.take(0)
            with postgres.connect(database.url.database) as admin:
                admin.execute(f"TRUNCATE {', '.join(metadata.tables)}")
            with closing(SqliteStore(path / "a")) as first, closing(SqliteStore(path / "b")) as back:
                for batch in written:
                    first.commit(batch, epoch=1)
                there.fill(first.rows())
                assert there.take(60_000).granted
                back.fill(there.rows())
                assert everything(first) == everything(there) == everything(back)
                assert rows(first) == rows(back), "and nobody leads in what was read while somebody did"

    holds()


def test_many_rows_are_moved_in_one_transaction(database, postgres, tmp_path):
    """What ends in the middle has done nothing."""

    def broken(source):
        yield from source.rows()
        raise StoreError("the disk is gone")

    with closing(SqliteStore(tmp_path / "a")) as source, closing(PostgresStore(database, "a")) as target:
        target.take(0)
        with postgres.connect(database.url.database) as admin:
            admin.execute(f"TRUNCATE {', '.join(metadata.tables)}")
        source.commit(large_batch(), epoch=1)
        with pytest.raises(StoreError, match="the disk is gone"):
            target.fill(broken(source))
        assert not rows(target)
        assert target.fill(source.rows()) == 2_501
        assert len([row for _, some in target.rows() for row in some]) == 2_501


def large_batch():
    return [SetEpoch(1), *(Append(Entry(seq, seq, "Thing", "it happened")) for seq in range(1, 2_501))]
