"""What a StreamLogs call asks of agents, and what it makes of their answers."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from holdfast.v1 import job_pb2
from holdfast_coordinator.core.model import JobState
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
            nodes={name: SimpleNamespace(session=name) for name in ("a", "b", "c")},
        )
        self.connected = set(connected)
        self.changed = None

    async def read(self, ask):
        return ask(self.state)

    def session_of(self, name):
        return SimpleNamespace(id=name) if name in self.connected else None


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


async def test_an_agent_that_goes_away_while_it_is_read():
    found = await read(Engine(("a",), "a"), Relay(a=[chunk(b"one\n"), None]))
    assert found[0].data == b"one\n"
    assert found[1].away.reason == "its agent did not send all of it"


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
