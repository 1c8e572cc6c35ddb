"""What every store promises. Add a store to `open_store` to hold it to that."""

import itertools
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from holdfast_coordinator.core.effects import (
    Append,
    Delete,
    DropCommit,
    DropHistory,
    MarkDrained,
    Put,
    SetEpoch,
)
from holdfast_coordinator.core.jobspec import JobSpec
from holdfast_coordinator.core.model import (
    Commit,
    Desired,
    Entry,
    Gang,
    Job,
    JobState,
    Prepared,
    Shard,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.store.api import DeposedError, StoreError
from holdfast_coordinator.store.memory import MemoryStore
from holdfast_coordinator.store.postgres import PostgresStore
from holdfast_coordinator.store.sqlite import SqliteStore
from holdfast_coordinator.store.tables import metadata
from tests.store.strategies import JOB_IDS, RANKS, batches

SETTINGS = Settings(lost_after_ms=7)
GANG = Gang("a", 0)


@contextmanager
def _sqlite():
    with tempfile.TemporaryDirectory() as directory:
        store = SqliteStore(Path(directory) / "state")
        try:
            yield store
        finally:
            store.close()


@contextmanager
def _memory():
    yield MemoryStore()


@pytest.fixture(scope="module")
def _postgres(postgres):
    url = postgres.make_database()
    PostgresStore(url, "first").take(0)
    tables = ", ".join(metadata.tables)

    @contextmanager
    def opened():
        with postgres.connect(url.url.database) as connection:
            connection.execute(f"TRUNCATE {tables}")
        store = PostgresStore(url, "test")
        try:
            assert store.take(600_000).granted
            yield store
        finally:
            store.close()

    return opened


@pytest.fixture(scope="module", params=["memory", "sqlite", "postgres"])
def open_store(request):
    """Opens a new store, and closes it in the end."""
    ways = {"memory": lambda: _memory, "sqlite": lambda: _sqlite}
    return ways.get(request.param, lambda: request.getfixturevalue("_postgres"))()


@pytest.fixture
def store(open_store):
    """A store that is led in epoch 1."""
    with open_store() as store:
        store.commit([SetEpoch(1)], epoch=1)
        yield store


def entry(seq, job_id=""):
    return Entry(seq, at_ms=1_000 + seq, kind="Thing", message="it happened", job_id=job_id)


def commit(job_id, step, gang=0, attempt=1, local=()):
    shards = tuple(
        Shard(rank, "f", 1, "d", "c", metrics={"loss": 0.5}, local_only=rank in local)
        for rank in (gang, gang + 1)
    )
    return Commit(job_id, gang, step, attempt, at_ms=step, rank=None, world_size=1, shards=shards)


def made(*commits):
    """The writes with which commits come to be."""
    for item in commits:
        yield from (
            Put(Prepared(item.job_id, item.gang, s.rank, item.attempt, item.step, s)) for s in item.shards
        )
        yield Append(item)


def changed(item, write):
    """What becomes of a commit of the history."""
    match write:
        case DropHistory(job_id) if item.job_id == job_id:
            return []
        case DropCommit(job_id, gang, step) if (item.job_id, item.gang, item.step) == (job_id, gang, step):
            return []
        case MarkDrained(job_id, gang, step, rank) if (item.job_id, item.gang, item.step) == (
            job_id,
            gang,
            step,
        ):
            shards = [replace(s, local_only=s.local_only and s.rank != rank) for s in item.shards]
            return [replace(item, shards=tuple(shards))]
    return [item]


class TestState:
    def test_it_loads_as_what_was_committed(self, request, open_store):
        """What is said of batches of writes; fewer where each is read by a hundred questions to a server."""
        examples = 12 if "postgres" in request.node.name else 60
        settings(max_examples=examples, deadline=None)(given(written=batches())(self.loads_as_committed))(
            open_store=open_store
        )

    @staticmethod
    def loads_as_committed(open_store, written):
        state, entries, commits = State(SETTINGS), [], []
        with open_store() as store:
            for batch in written:
                store.commit(batch, epoch=1)
                state.apply(batch)
                assert store.load(SETTINGS) == state
                for write in batch:
                    match write:
                        case Append(Entry() as item):
                            entries.append(item)
                        case Append(Commit() as item):
                            commits.append(item)
                        case _:
                            commits = [item for old in commits for item in changed(old, write)]
            assert store.entries(limit=100) == entries
            for job_id in JOB_IDS:
                newest_first = [item for item in reversed(commits) if item.job_id == job_id]
                assert store.commits(job_id, limit=100) == newest_first
                for gang, step in itertools.product(RANKS, range(12)):
                    upto = [item for item in newest_first if item.gang == gang and item.step <= step]
                    assert store.commit_upto(job_id, gang, step) == (upto[0] if upto else None)

    def test_a_new_store_is_empty(self, open_store):
        with open_store() as store:
            assert store.load(SETTINGS) == State(SETTINGS)

    def test_what_is_loaded_is_not_what_is_stored(self, store):
        store.load(SETTINGS).put(GANG)
        assert store.load(SETTINGS).gangs == {}

    @pytest.mark.parametrize("first", [1, 2])
    def test_the_last_of_several_writes_to_a_row_counts(self, store, first):
        old, new = Gang("a", 0, attempt=first), Gang("a", 0, attempt=3 - first)
        store.commit([Put(old), Put(new)], epoch=1)
        assert store.load(SETTINGS).gangs == {("a", 0): new}
        store.commit([Delete(new), Put(old)], epoch=1)
        assert store.load(SETTINGS).gangs == {("a", 0): old}
        store.commit([Put(new), Delete(new)], epoch=1)
        assert store.load(SETTINGS).gangs == {}

    def test_the_numbers_of_the_timeline_go_on(self, store):
        store.commit([Append(entry(41))], epoch=1)
        assert store.load(SETTINGS).next_seq == 42

    def test_jobs_come_back_oldest_first(self, store):
        created = {"b": 1, "c": 2, "a": 3}
        spec = JobSpec("train", ("true",), world_size=1)
        for job_id, at in created.items():
            job = Job(job_id, "", spec, Desired.RUNNING, JobState.PENDING, "created", created_ms=at)
            store.commit([Put(job)], epoch=1)
        assert list(store.load(SETTINGS).unfinished) == list(created)

    def test_many_rows_in_one_batch(self, store):
        workers = [Worker("a", rank, gang=0, state=WorkerState.WAITING) for rank in range(2_000)]
        store.commit([Put(worker) for worker in workers], epoch=1)
        state = store.load(SETTINGS)
        assert list(state.workers.values()) == workers
        assert state.tallies == {"a": {WorkerState.WAITING: 2_000}}


class TestFence:
    """P7: a deposed leader can write nothing."""

    def test_an_epoch_that_is_over_writes_nothing(self, store):
        store.commit([SetEpoch(2)], epoch=2)
        before = store.load(SETTINGS)
        for writes in ([], [Put(GANG), Append(entry(1)), *made(commit("a", 1))]):
            with pytest.raises(DeposedError, match="epoch 1 is over, it is epoch 2 now"):
                store.commit(writes, epoch=1)
        assert store.load(SETTINGS) == before
        assert store.entries(limit=10) == []
        assert store.commits("a", limit=10) == []

    def test_an_epoch_that_never_began_writes_nothing(self, store):
        with pytest.raises(DeposedError):
            store.commit([Put(GANG)], epoch=2)
        assert store.load(SETTINGS).gangs == {}

    def test_of_two_that_take_over_from_the_same_leader_one_leads(self, store):
        store.commit([SetEpoch(2), Append(entry(1))], epoch=2)
        with pytest.raises(DeposedError, match="epoch 2 can't begin after epoch 2"):
            store.commit([SetEpoch(2), Append(entry(2))], epoch=2)
        assert store.entries(limit=10) == [entry(1)]

    def test_an_epoch_never_shrinks(self, store):
        store.commit([SetEpoch(5)], epoch=5)
        with pytest.raises(DeposedError):
            store.commit([SetEpoch(4)], epoch=4)
        assert store.load(SETTINGS).epoch == 5

    def test_an_epoch_begins_with_the_rest_of_its_batch_or_not_at_all(self, store):
        store.commit([Append(entry(1))], epoch=1)
        with pytest.raises(StoreError):
            store.commit([SetEpoch(2), Put(GANG), Append(entry(1))], epoch=2)
        assert store.load(SETTINGS).epoch == 1
        store.commit([Put(GANG)], epoch=1)
        assert store.load(SETTINGS).gangs == {("a", 0): GANG}

    def test_a_leader_writes_as_itself_while_it_takes_over(self, store):
        with pytest.raises(DeposedError):
            store.commit([SetEpoch(2), Put(GANG)], epoch=1)
        assert store.load(SETTINGS).epoch == 1


class TestHistories:
    def test_nothing_is_appended_over_what_is_there(self, store):
        store.commit([Append(entry(1)), *made(commit("a", 5))], epoch=1)
        for again in ([Append(entry(1, "other"))], made(commit("a", 5, attempt=2))):
            with pytest.raises(StoreError):
                store.commit([Put(GANG), Append(entry(2)), *again], epoch=1)
        assert store.load(SETTINGS).gangs == {}
        assert store.entries(limit=10) == [entry(1)]
        assert store.commits("a", limit=10) == [commit("a", 5)]

    def test_entries_are_paged_by_what_comes_after(self, store):
        all_of_them = [entry(seq, "ab"[seq % 2]) for seq in range(1, 8)]
        store.commit([Append(item) for item in all_of_them], epoch=1)
        assert store.entries(limit=3) == all_of_them[:3]
        assert store.entries(after=3, limit=3) == all_of_them[3:6]
        assert store.entries(after=6, limit=3) == all_of_them[6:]
        assert store.entries(after=7, limit=3) == []

    def test_entries_of_one_job(self, store):
        all_of_them = [entry(seq, ("", "a", "b")[seq % 3]) for seq in range(1, 10)]
        store.commit([Append(item) for item in all_of_them], epoch=1)
        of_a = [item for item in all_of_them if item.job_id == "a"]
        assert store.entries(job_id="a", limit=2) == of_a[:2]
        assert store.entries(job_id="a", after=of_a[1].seq, limit=2) == of_a[2:]
        assert store.entries(job_id="none", limit=2) == []

    def test_commits_are_paged_newest_first(self, store):
        # In scope "rank", gangs commit the same step.
        oldest_first = [commit("a", step, gang) for step in (1, 2, 10) for gang in (0, 1)]
        others = [commit("b", 2)]
        store.commit([*made(*others, *oldest_first)], epoch=1)
        pages, before = [], None
        while page := store.commits("a", limit=3, before=before):
            pages.append(page)
            before = (page[-1].step, page[-1].gang)
        assert [len(page) for page in pages] == [3, 3]
        assert [item for page in pages for item in page] == oldest_first[::-1]

    def test_those_of_a_job_are_dropped_with_it(self, store):
        store.commit([*made(commit("a", 1), commit("b", 1)), Append(entry(1, "a"))], epoch=1)
        store.commit([*made(commit("a", 2)), DropHistory("a"), *made(commit("a", 1))], epoch=1)
        assert store.commits("a", limit=10) == [commit("a", 1)]
        assert store.commits("b", limit=10) == [commit("b", 1)]
        assert store.entries(job_id="a", limit=10) == [entry(1, "a")]

    def test_one_commit_is_dropped_and_may_be_made_again(self, store):
        store.commit([*made(*(commit("a", step, gang) for step in (1, 2) for gang in (0, 1)))], epoch=1)
        again = commit("a", 2, attempt=2)
        store.commit([DropCommit("a", 0, 2), *made(again)], epoch=1)
        store.commit([*made(commit("a", 3)), DropCommit("a", 0, 3), DropCommit("a", 0, 9)], epoch=1)
        assert store.commits("a", limit=9) == [commit("a", 2, 1), again, commit("a", 1, 1), commit("a", 1)]

    def test_a_transaction_that_fails_drops_and_drains_nothing(self, store):
        degraded = commit("a", 1, local=(0,))
        store.commit([*made(degraded, commit("a", 2)), Append(entry(1))], epoch=1)
        with pytest.raises(StoreError):
            store.commit([MarkDrained("a", 0, 1, 0), DropCommit("a", 0, 2), Append(entry(1))], epoch=1)
        assert store.commits("a", limit=9) == [commit("a", 2), degraded]

    def test_the_file_of_a_rank_is_drained_whichever_transaction_made_the_commit(self, store):
        store.commit([*made(commit("a", 1, local=(0, 1)))], epoch=1)
        store.commit(
            [MarkDrained("a", 0, 1, 0), MarkDrained("a", 1, 1, 0), MarkDrained("a", 0, 9, 0)], epoch=1
        )
        assert store.commits("a", limit=9) == [commit("a", 1, local=(1,))]
        store.commit([*made(commit("a", 2, local=(0, 1))), MarkDrained("a", 0, 2, 1)], epoch=1)
        assert store.commits("a", limit=1) == [commit("a", 2, local=(0,))]

    def test_the_newest_commit_of_a_gang_upto_a_step(self, store):
        store.commit([*made(commit("a", 1), commit("a", 5), commit("a", 3, 1), commit("b", 4))], epoch=1)
        assert store.commit_upto("a", 0, 5) == commit("a", 5)
        assert store.commit_upto("a", 0, 4) == commit("a", 1)
        assert store.commit_upto("a", 1, 2**63 - 1) == commit("a", 3, 1)
        assert store.commit_upto("a", 0, 0) is None
