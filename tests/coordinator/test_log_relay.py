"""What a StreamLogs call asks of agents, and what it makes of their answers."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from holdfast.log_wire import Chunk, Pushed
from holdfast.v1 import agent_pb2, job_pb2
from holdfast_coordinator.changes import Changes, Topic
from holdfast_coordinator.core.model import JobState, NodeState
from holdfast_coordinator.engine import NotLeadingError
from holdfast_coordinator.rpc import logs
from holdfast_coordinator.rpc.logs import _Reading

OUT = job_pb2.LOG_STREAM_STDOUT


def chunk(data, offset=0, *, rank=0, attempt=1, skipped=0):
    at = job_pb2.LogCursor(rank=rank, attempt=attempt, stream=OUT, offset=offset)
    return job_pb2.StreamLogsResponse(cursor=at, data=data, skipped=skipped)


class Engine:
    """One job whose ranks are where a test says; nodes without a session are not connected."""

    def __init__(self, homes, node, *, attempt=1, connected=("a", "b", "c"), state=JobState.SUCCEEDED):
        worker = SimpleNamespace(homes=homes, node=node, attempt=attempt)
        spec = SimpleNamespace(world_size=1)
        self.state = SimpleNamespace(
            jobs={"job": SimpleNamespace(id="job", spec=spec, state=state)},
            workers={("job", 0): worker},
            nodes={
                name: SimpleNamespace(name=name, session=name, state=NodeState.READY)
                for name in ("a", "b", "c")
            },
        )
        self.sessions = {name: SimpleNamespace(id=name) for name in connected}
        self.changes = Changes()
        self.broken = None

    async def read(self, ask):
        if self.broken:
            raise self.broken
        return ask(self.state)

    def session_of(self, name):
        return self.sessions.get(name)

    def turns(self, name, state, session=None):
        """A node is of this state, with this session, from now on."""
        self.state.nodes[name].state = state
        self.sessions.pop(name, None)
        if session is not None:
            self.sessions[name] = SimpleNamespace(id=session)
        self.changes.mark(name, Topic.NODES)


class Relay:
    """Agents that answer with what a test gave for their node."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = {}

    async def pump(self, opened, session, into):
        self.asked.setdefault(session.id, []).append(opened)
        for each in self.answers.get(session.id, []):
            if each is None:
                return False
            if callable(each):
                each()
            else:
                await into.put(each)
        return True


async def read(engine, relay, **asked):
    request = job_pb2.StreamLogsRequest(job_id="job", **asked)
    return [found async for found in _Reading(relay, engine, request).chunks()]


async def test_what_is_pushed_twice_comes_once():
    relay = Relay(a=[chunk(b"one\n"), chunk(b"two\n", 4), chunk(b"one\ntwo\nthree\n"), chunk(b"two\n", 4)])
    found = await read(Engine(("a",), "a"), relay)
    assert [(c.cursor.offset, c.data) for c in found] == [(0, b"one\n"), (4, b"two\n"), (8, b"three\n")]


async def test_what_was_freed_is_what_this_reader_has_not():
    relay = Relay(a=[chunk(b"kept\n", 100, skipped=100)])
    cursor = job_pb2.LogCursor(attempt=1, stream=OUT, offset=60)
    assert [c.skipped for c in await read(Engine(("a",), "a"), relay)] == [100]
    assert [c.skipped for c in await read(Engine(("a",), "a"), relay, cursors=[cursor])] == [40]


async def test_nodes_that_are_away_are_named_before_anything_is_read():
    relay = Relay(b=[chunk(b"two\n", attempt=2)])
    found = await read(Engine(("a", "b"), "b", attempt=2, connected=["b"]), relay)
    assert [each.HasField("away") for each in found] == [True, False]
    told = job_pb2.LogsAway(rank=0, node="a", reason="its agent is not connected")
    assert found[0].away == told


class TestAgentsThatGoAway:
    """While their log is read."""

    @pytest.fixture
    def engine(self):
        return Engine(("a",), "a")

    @pytest.fixture
    def relay(self):
        return Relay(a=[chunk(b"one\n"), None], again=[chunk(b"one\ntwo\n")])

    async def test_one_that_comes_back_is_asked_for_the_rest(self, engine, relay):
        reading = _Reading(relay, engine, job_pb2.StreamLogsRequest(job_id="job")).chunks()
        assert (await anext(reading)).data == b"one\n"
        rest = asyncio.create_task(anext(reading))
        for state, session in ((NodeState.SUSPECT, None), (NodeState.READY, "again")):
            await asyncio.sleep(0)
            engine.turns("a", state, session)
        assert (await rest).data == b"two\n"
        assert relay.asked["again"][0].cursors[0].offset == 4
        assert [each async for each in reading] == []

    async def test_one_whose_node_is_lost_is_told_of(self, engine, relay):
        reading = _Reading(relay, engine, job_pb2.StreamLogsRequest(job_id="job")).chunks()
        await anext(reading)
        engine.turns("a", NodeState.LOST)
        (last,) = [each async for each in reading]
        assert last.away.reason == "its agent did not send all of it"

    @pytest.mark.parametrize(("within", "connected"), [("GONE_WITHIN_S", True), ("BACK_WITHIN_S", False)])
    async def test_one_that_is_there_and_does_not_and_one_that_stays_away(
        self, engine, relay, monkeypatch, within, connected
    ):
        monkeypatch.setattr(logs, within, 0.01)
        if not connected:
            relay.answers["a"].insert(1, lambda: engine.turns("a", NodeState.SUSPECT))
        found = await read(engine, relay)
        assert [each.away.reason for each in found[1:]] == ["its agent did not send all of it"]

    async def test_the_last_of_a_job_that_is_followed_waits_for_one_that_is_expected(self):
        engine, relay = Engine(("a",), "a"), Relay(again=[chunk(b"one\n")])
        engine.watch = lambda _: contextlib.nullcontext()
        engine.turns("a", NodeState.SUSPECT)
        found = asyncio.create_task(read(engine, relay, follow=True))
        await asyncio.sleep(0.01)
        engine.turns("a", NodeState.READY, "again")
        assert [each.data for each in await found] == [b"one\n"]


@pytest.mark.parametrize("at", ["the beginning", "the end of a job that is followed"])
async def test_a_state_that_cannot_be_read_is_no_end(at):
    engine = Engine(("a",), "a", state=JobState.RUNNING)
    error = NotLeadingError("the disk is full")

    @contextlib.contextmanager
    def watch(_):
        async def wait():
            engine.broken = error

        yield SimpleNamespace(wait=wait, clear=lambda: None)

    engine.watch = watch
    if at == "the beginning":
        engine.broken = error
    with pytest.raises(NotLeadingError):
        await read(engine, Relay(), follow=True)


class TestTail:
    async def test_it_is_taken_where_the_rank_is(self):
        relay = Relay()
        await read(Engine(("a", "b"), "b", attempt=3), relay, tail=5)
        assert set(relay.asked) == {"b"}
        assert relay.asked["b"][0].tail == 5

    async def test_everywhere_when_nobody_knows_where_that_is(self):
        relay = Relay()
        await read(Engine(("a", "b"), ""), relay, tail=5)
        assert [opened.tail for asked in relay.asked.values() for opened in asked] == [5, 5]

    async def test_it_is_taken_once(self):
        relay = Relay()
        cursor = job_pb2.LogCursor(attempt=2, stream=OUT, offset=60)
        await read(Engine(("a", "b"), "b", attempt=3), relay, tail=5, cursors=[cursor])
        for opened in (relay.asked["a"][0], relay.asked["b"][0]):
            assert not opened.HasField("tail")
            assert opened.first_attempt == 2

    async def test_of_an_attempt_that_is_named_on_every_node(self):
        relay = Relay()
        await read(Engine(("a", "b"), "b", attempt=3), relay, tail=5, attempt=1)
        assert [asked[0].tail for asked in relay.asked.values()] == [5, 5]

    async def test_a_rank_that_moves_on_is_followed_from_its_first_line(self):
        engine, relay = Engine(("a", "b"), "b", attempt=3, state=JobState.RUNNING), Relay()

        @contextlib.contextmanager
        def watch(job_id):
            async def wait():
                while set(relay.asked) != {"a", "b"}:
                    await asyncio.sleep(0)
                engine.state.jobs["job"].state = JobState.SUCCEEDED

            yield SimpleNamespace(wait=wait, clear=lambda: None)

        engine.watch = watch
        await read(engine, relay, tail=5, follow=True)
        assert relay.asked["b"][0].tail == 5
        assert relay.asked["a"][0].follow
        assert relay.asked["a"][0].first_attempt == 4


@pytest.mark.parametrize("since", [False, True])
async def test_since_goes_along(since):
    relay = Relay()
    request = job_pb2.StreamLogsRequest(job_id="job")
    if since:
        request.since.FromSeconds(7)
    async for _ in _Reading(relay, Engine(("a",), "a"), request).chunks():
        pass
    (opened,) = relay.asked["a"]
    assert opened.HasField("since") is since
    assert opened.since.seconds == (7 if since else 0)


class TestFeeds:
    """What an agent pushes, on its way into the queue of who asked."""

    @pytest.fixture
    def relay(self):
        return logs.LogRelay(None)

    @pytest.fixture
    async def asked(self, relay):
        """A pump that waits for the agent, and the queue that it fills."""
        into = asyncio.Queue(1)
        opened = agent_pb2.OpenLog(request_id="asked")
        pump = asyncio.create_task(relay.pump(opened, SimpleNamespace(send=lambda _: None), into))
        await asyncio.sleep(0)
        yield pump, into
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)

    @staticmethod
    async def pushes(*messages, breaks=False):
        for message in messages:
            yield message
        if breaks:
            raise ConnectionError

    async def test_it_comes_in_order_and_is_complete_when_the_agent_says_so(self, relay, asked):
        pump, into = asked
        sent = [Pushed("asked"), *(Pushed(chunk=Chunk(chunk(b"", n))) for n in range(3))]
        taking = asyncio.create_task(relay.take(self.pushes(*sent)))
        assert [(await into.get()).cursor.offset for _ in range(3)] == [0, 1, 2]
        assert await taking
        assert await pump

    async def test_a_slow_reader_holds_up_the_agent(self, relay, asked):
        _, into = asked
        taken = []

        async def requests():
            yield Pushed("asked")
            for n in range(9):
                taken.append(n)
                yield Pushed(chunk=Chunk(chunk(b"", n)))

        taking = asyncio.create_task(relay.take(requests()))
        for _ in range(50):
            await asyncio.sleep(0)
        assert taken == [0, 1]  # one is queued, one waits
        for n in range(9):
            assert (await into.get()).cursor.offset == n
        await taking

    async def test_one_that_breaks_off_is_not_complete(self, relay, asked):
        pump, _ = asked
        with pytest.raises(ConnectionError):
            await relay.take(self.pushes(Pushed("asked"), breaks=True))
        assert not await pump

    async def test_one_whose_call_is_cancelled_is_not_either(self, relay, asked):
        """As gRPC does it when the agent is killed."""
        pump, _ = asked

        async def requests():
            yield Pushed("asked")
            await asyncio.Event().wait()

        taking = asyncio.create_task(relay.take(requests()))
        await asyncio.sleep(0)
        taking.cancel()
        async with asyncio.timeout(10):
            assert not await pump

    async def test_one_that_nobody_waits_for(self, relay):
        assert not await relay.take(self.pushes(Pushed("another")))
        assert not await relay.take(self.pushes())
