"""The loop: durable before visible, one transaction for many, and starting over when the store fails (P3, P4, P9)."""

import asyncio
import threading

import pytest

from holdfast.v1 import agent_pb2
from holdfast_coordinator import engine as engine_module
from holdfast_coordinator.clock import Clock
from holdfast_coordinator.core import stragglers
from holdfast_coordinator.core.effects import SetEpoch, StartWorkers, Welcome
from holdfast_coordinator.core.events import (
    AgentJoined,
    CheckpointDeleteRequested,
    CheckpointReported,
    JobStopRequested,
    JobSubmitted,
    NodeForgetRequested,
    ShardPrepared,
)
from holdfast_coordinator.core.jobspec import JobSpec
from holdfast_coordinator.core.model import Capacity, Key, NodeState, ReportKind, Shard
from holdfast_coordinator.core.state import Settings
from holdfast_coordinator.engine import Engine, NotLeadingError, RefusedError
from holdfast_coordinator.session import Session
from holdfast_coordinator.store.api import DeposedError, StoreFullError
from holdfast_coordinator.store.memory import MemoryStore

PATIENCE = 60
SETTINGS = Settings(lost_after_ms=10_000, suspect_after_ms=5_000)


class Gate(MemoryStore):
    """Commits while it is open, and fails while it is full."""

    def __init__(self):
        super().__init__()
        self.open, self.waiting, self.full = threading.Event(), threading.Event(), False
        self.open.set()
        self.transactions = 0

    def commit(self, writes, *, epoch):
        if not self.open.is_set():
            self.waiting.set()
        assert self.open.wait(PATIENCE)
        if self.full:
            raise StoreFullError("no room on the disk")
        super().commit(writes, epoch=epoch)
        self.transactions += 1

    async def close_behind(self, work):
        """Close, do some work, and come back when its commit waits at the gate."""
        self.open.clear()
        self.waiting.clear()
        task = asyncio.create_task(work)
        assert await asyncio.to_thread(self.waiting.wait, PATIENCE)
        return task


class HandClock(Clock):
    """Stands still until it is set."""

    def __init__(self):
        self.at = 1_700_000_000_000

    def now(self):
        return self.at


@pytest.fixture
def store():
    return Gate()


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
async def engine(store, clock, monkeypatch):
    monkeypatch.setattr(engine_module, "RETRY_S", 0.005)
    found = Engine(store, SETTINGS, clock)
    loop = asyncio.create_task(found.run())
    async with asyncio.timeout(PATIENCE):
        await found.wait_leading()
    yield found
    store.open.set()
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def join(engine, name="a"):
    """An agent with room for four; returns its session, with the Welcome read."""
    session = Session(f"session-of-{name}")
    engine.open_session(session)
    engine.heard(name)
    room = Capacity(slots=4)
    at = engine.clock.now()
    await engine.post(AgentJoined(at, name, session.id, f"i-{name}", "10.0.0.1", room, ports=(7001, 7002)))
    said = aiter(session.outgoing())
    async with asyncio.timeout(PATIENCE):
        await anext(said)
    return session, said


def submitted(engine, name="j1", request_id=""):
    return JobSubmitted(engine.clock.now(), name, request_id, JobSpec("train", ("train",), 1))


async def test_nothing_is_seen_before_it_is_durable(engine, store):
    session, _ = await join(engine)
    request = await store.close_behind(engine.submit(submitted(engine)))
    read = asyncio.create_task(engine.read(lambda state: list(state.jobs)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not request.done()
    assert not read.done()
    assert session._outbox.empty()
    store.open.set()
    assert await request == "j1"
    assert await read == ["j1"]
    assert isinstance(await anext(aiter(session.outgoing())), StartWorkers)


async def test_what_comes_in_during_a_commit_is_one_transaction(engine, store):
    first = await store.close_behind(engine.submit(submitted(engine, "first")))
    more = [asyncio.create_task(engine.submit(submitted(engine, f"j{n}"))) for n in range(100)]
    await asyncio.sleep(0)
    before = store.transactions
    store.open.set()
    assert await asyncio.gather(first, *more) == ["first", *(f"j{n}" for n in range(100))]
    assert store.transactions == before + 2


async def test_a_request_that_is_repeated_names_the_job_it_made(engine):
    assert await engine.submit(submitted(engine, "j1", "r1")) == "j1"
    assert await engine.submit(submitted(engine, "j2", "r1")) == "j1"


async def test_a_refusal_is_raised_where_it_was_asked_for(engine):
    with pytest.raises(RefusedError, match="there is no job nope"):
        await engine.submit(JobStopRequested(engine.clock.now(), "nope"))


async def test_when_the_store_fails_nothing_has_happened_and_it_starts_over(engine, store, clock):
    session, said = await join(engine)
    store.full = True
    with pytest.raises(NotLeadingError, match="no room on the disk"):
        await engine.submit(submitted(engine))
    await engine.wait_interrupted()
    assert await anext(said, None) is None
    assert session.closed_because == "the coordinator starts over from its store"
    with pytest.raises(NotLeadingError, match="no room on the disk"):
        await engine.submit(submitted(engine))
    with pytest.raises(NotLeadingError):
        await engine.read(lambda state: state)
    clock.at += 3_600_000
    store.full = False
    await engine.wait_leading()
    assert engine.epoch == 2
    assert await engine.read(lambda state: list(state.jobs)) == []
    clock.at += SETTINGS.suspect_after_ms
    node = await engine.read(lambda state: state.nodes["a"])
    assert (node.state, node.session) == (NodeState.SUSPECT, "")  # and not lost: the hour was not its own
    assert await engine.submit(submitted(engine)) == "j1"


async def test_who_waits_behind_a_batch_that_fails_is_told_too(engine, store):
    """And not left waiting for as long as the store fails."""
    failing = await store.close_behind(engine.submit(submitted(engine, "first")))
    waiting = [asyncio.create_task(engine.submit(submitted(engine, "second")))]
    waiting.append(asyncio.create_task(engine.read(lambda state: list(state.jobs))))
    await asyncio.sleep(0)
    store.full = True
    store.open.set()
    async with asyncio.timeout(PATIENCE):
        for request in (failing, *waiting):
            with pytest.raises(NotLeadingError, match="no room on the disk"):
                await request


async def test_a_question_that_fails_is_its_own_matter(engine):
    with pytest.raises(KeyError):
        await engine.read(lambda state: state.jobs["nope"])
    assert await engine.read(lambda state: state.epoch) == 1


async def node_in(engine, state):
    """Wait until node a is in a state."""
    async with asyncio.timeout(PATIENCE):
        while await engine.read(lambda now: now.nodes["a"].state) is not state:
            engine.clock.at += 100
            await asyncio.sleep(0)


async def test_a_node_that_is_silent_is_suspect_and_then_lost(engine, clock):
    await join(engine)
    began = clock.at
    await node_in(engine, NodeState.SUSPECT)
    assert clock.at - began >= SETTINGS.suspect_after_ms
    await node_in(engine, NodeState.LOST)
    assert clock.at - began >= SETTINGS.lost_after_ms


async def test_nothing_is_kept_of_a_node_that_is_forgotten(engine, clock):
    await join(engine)
    engine.heard("x")  # it has said Hello, and may be a node in a moment
    await node_in(engine, NodeState.LOST)
    assert engine.heard_at("a")
    await engine.submit(NodeForgetRequested(clock.at, "a"))
    engine.heard("y")
    clock.at += 1_000
    await engine.read(lambda state: state)
    await engine.read(lambda state: state)
    assert [bool(engine.heard_at(name)) for name in ("a", "x", "y")] == [False, False, True]


async def test_nobody_is_lost_because_this_process_stood_still(engine, clock):
    await join(engine)
    clock.at += 3_600_000
    assert (await engine.read(lambda state: state.nodes["a"].state)) is NodeState.READY
    assert engine.heard_at("a") > clock.at - SETTINGS.suspect_after_ms


async def test_the_pace_of_heartbeats_follows_the_fleet(engine, clock):
    _, said = await join(engine)
    for n in range(2_000):
        engine.open_session(Session(f"another-{n}"))
    clock.at += 1_000
    await engine.read(lambda state: state)
    pace = await anext(said)
    assert not isinstance(pace, Welcome)
    assert pace.heartbeat_interval.ToMilliseconds() == 1_800


async def test_whoever_is_slow_for_a_whole_window_is_noticed(engine, store, clock):
    await join(engine)
    spec = JobSpec("train", ("train",), 3)
    await engine.submit(JobSubmitted(clock.now(), "j1", "", spec))

    async def window(*step_ms):
        """Every rank does ten steps of so many milliseconds."""
        for rank, ms in enumerate(step_ms):
            done[rank] += 10
            spent[rank] += 10 * ms
            progress = agent_pb2.Progress(step=done[rank], steps_done=done[rank])
            progress.stepping.FromMilliseconds(spent[rank])
            report = agent_pb2.WorkerProgress(progress=progress)
            report.key.MergeFrom(agent_pb2.WorkerKey(job_id="j1", rank=rank, attempt=1))
            engine.heard("a", [report])
        clock.at += stragglers.WINDOW_MS
        await engine.read(lambda state: None)
        return await engine.read(
            lambda state: [w.straggler.score for w in state.workers_of(state.jobs["j1"])]
        )

    done, spent = [0, 0, 0], [0, 0, 0]
    transactions = []
    assert await window(100, 100, 900) == [None] * 3  # from where on is not known yet
    for step_ms in ((100, 100, 101), (100, 100, 300), (100, 100, 100), (100, 100, 100)):
        before = store.transactions
        scores = await window(*step_ms)
        transactions.append(store.transactions - before)
        assert scores == [None, None, 8.0 if step_ms[2] == 300 else None]
    assert transactions == [0, 1, 1, 0]  # telemetry writes nothing


async def test_what_asks_the_history_finds_what_came_in_right_before_it(engine, store):
    """A commit and the report that it is corrupt in one go: the report waits until the commit is in the store."""
    session, said = await join(engine)
    await engine.submit(submitted(engine))
    assert isinstance(await anext(said), StartWorkers)
    key, at = Key("j1", 0, 1), engine.clock.now()

    def prepared(step):
        shard = Shard(0, "rank-00000.attempt-1.safetensors", 10, "d", "")
        return ShardPrepared(at, "a", session.id, key, step, shard)

    behind = await store.close_behind(engine.post(prepared(10)))
    await engine.post(prepared(20))
    await engine.post(CheckpointReported(at, "a", session.id, key, ReportKind.CORRUPT, 20, "torn"))
    deleting = CheckpointDeleteRequested(at, "j1", 10)
    request = asyncio.create_task(engine.submit(deleting))
    await behind
    store.open.set()
    with pytest.raises(RefusedError, match="the checkpoint of step 10 of job j1 is its newest"):
        await request
    commit = await engine.read(lambda state: state.gangs["j1", 0].commit)
    assert (commit.step, [made.step for made in store.commits("j1", limit=9)]) == (10, [10])


async def test_when_the_history_cannot_be_read_it_starts_over(engine, store, monkeypatch):
    await engine.submit(submitted(engine))

    def damaged(*_):
        raise StoreFullError("can't be read")

    with monkeypatch.context() as patch:
        patch.setattr(store, "commit_upto", damaged)
        with pytest.raises(NotLeadingError, match="can't be read"):
            await engine.submit(CheckpointDeleteRequested(engine.clock.now(), "j1", 10))
    await engine.wait_leading()
    with pytest.raises(RefusedError, match="has no checkpoint of step 10"):
        await engine.submit(CheckpointDeleteRequested(engine.clock.now(), "j1", 10))


async def test_who_is_deposed_ends_and_refuses_what_waits(store):
    """P7: nothing is read anew, since another's store it is now."""
    found = Engine(store, SETTINGS, HandClock())
    loop = asyncio.create_task(found.run())
    await found.wait_leading()
    session, said = await join(found)
    store.open.clear()
    request = asyncio.create_task(found.submit(submitted(found)))
    assert await asyncio.to_thread(store.waiting.wait, PATIENCE)
    MemoryStore.commit(store, [SetEpoch(2)], epoch=2)
    store.open.set()
    with pytest.raises(NotLeadingError, match="epoch 1 is over"):
        await request
    with pytest.raises(DeposedError, match="another coordinator leads"):
        await loop
    assert await anext(said, None) is None
    assert session.closed_because == "the coordinator leads no longer"
    for call in (found.submit(submitted(found)), found.read(len), found.history(len)):
        with pytest.raises(NotLeadingError):
            await call


async def test_whose_lease_is_over_shows_nothing_of_what_was_under_way(store):
    over = []
    found = Engine(store, SETTINGS, HandClock(), lambda: "".join(over))
    loop = asyncio.create_task(found.run())
    await found.wait_leading()
    request = await store.close_behind(found.submit(submitted(found)))
    read = asyncio.create_task(found.read(lambda state: list(state.jobs)))
    over.append("its lease has run out")
    with pytest.raises(NotLeadingError, match="its lease has run out"):
        await found.read(len)
    store.open.set()
    with pytest.raises(NotLeadingError, match="its lease has run out"):
        await request
    with pytest.raises(DeposedError):
        await loop
    with pytest.raises(NotLeadingError):
        await read
