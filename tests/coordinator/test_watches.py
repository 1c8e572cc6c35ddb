"""Watches of everything: what there is, a mark, every change once; with slow readers, over restarts."""

import asyncio
import contextlib

import grpc
import pytest

from holdfast import wire
from holdfast.client import Client
from holdfast.v1 import job_pb2, job_pb2_grpc
from holdfast_coordinator.changes import Changes, Topic
from holdfast_coordinator.core.effects import Append, Delete, Put
from holdfast_coordinator.core.jobspec import JobSpec
from holdfast_coordinator.core.model import Desired, Entry, Gang, Job, JobState, Worker, WorkerState
from tests.ports import free_port

pytest_plugins = ["tests.client.cli_fixtures"]

PATIENCE = 60
SPEC = job_pb2.JobSpec(name="a", command=["x"], world_size=2)
STOPPED = job_pb2.JOB_STATE_STOPPED


def make_job(name):
    return Job(name, "", JobSpec("a", ("x",), 1), Desired.RUNNING, JobState.PENDING, "created", 1)


class TestChanges:
    """Who is told what."""

    def test_each_is_told_of_its_topic(self):
        changes = Changes()
        worker = Worker("j", 0, 0, WorkerState.STARTING, node="n1")
        with (
            changes.watch(Topic.JOBS) as jobs,
            changes.watch(Topic.WORKERS) as workers,
            changes.watch(Topic.NODES) as nodes,
            changes.watch(Topic.EVENTS) as events,
            changes.watch(Topic.EVENTS, "k") as of_k,
        ):
            changes.note([Put(worker), Append(Entry(1, 1, "X", "x", job_id="j"))])
            told = [watch.take() for watch in (jobs, workers, nodes, events, of_k)]
            assert told == [(), ("j",), ("n1",), ("",), ()]
            changes.note([Put(Gang("j", 0)), Append(Entry(2, 1, "X", "x", job_id="k"))])
            assert [watch.take() for watch in (jobs, workers, of_k)] == [("j",), ("j",), ("k",)]
        changes.note([Put(make_job("j"))])
        assert not changes._watches

    def test_what_changes_often_is_due_once(self):
        changes = Changes()
        with changes.watch(Topic.JOBS) as watch:
            for _ in range(1_000):
                changes.note([Put(make_job("j"))])
            assert watch.take() == ("j",)
            assert watch.take() == ()

    def test_nothing_is_kept_for_what_came_and_went_unseen(self):
        changes = Changes()
        with changes.watch(Topic.JOBS) as watch:
            watch.take(["old"])
            for n in range(1_000):
                changes.note([Put(make_job(f"j{n}")), Delete(make_job(f"j{n}"))])
            changes.note([Delete(make_job("old"))])
            assert watch.take() == ("old",)
            assert not watch._due

    def test_the_end_of_what_is_being_shown_is_told(self):
        """It was looked at, then deleted, then shown."""
        changes = Changes()
        with changes.watch(Topic.JOBS) as watch:
            changes.note([Put(make_job("j"))])
            assert watch.take() == ("j",)
            changes.note([Delete(make_job("j"))])
            assert watch.is_news("j", b"as it was")
            assert watch.take() == ("j",)
            assert watch.is_news("j", None)
            assert not watch.is_news("j", None)

    def test_what_is_as_it_was_is_no_news(self):
        with Changes().watch(Topic.JOBS) as watch:
            assert [watch.is_news("j", content) for content in (b"1", b"1", b"2", b"")] == [
                True,
                False,
                True,
                True,
            ]


@contextlib.asynccontextmanager
async def reading(stream):
    """Read a stream with patience, and leave it."""

    async def next_one():
        async with asyncio.timeout(PATIENCE):
            return await anext(stream)

    yield next_one
    await stream.aclose()


async def until(next_one, found):
    """Read until something is found; return all that was read."""
    seen = []
    while not seen or not found(seen[-1]):
        seen.append(await next_one())
    return seen


def shown(change):
    kind = change.WhichOneof("change")
    name = change.job.id if kind == "job" else change.node.name if kind == "node" else change.deleted
    return kind, name


async def test_all_jobs_then_a_mark_then_changes(client):
    ids = [(await client.create_job(SPEC)).id for _ in range(3)]
    async with reading(client.watch_jobs()) as next_one:
        there = [shown(await next_one()) for _ in range(4)]
        assert sorted(there[:3]) == sorted(("job", job_id) for job_id in ids)
        assert there[3] == ("ready", "")
        await client.stop_job(ids[1])
        changes = await until(next_one, lambda c: c.job.state == STOPPED)
        assert {shown(change) for change in changes} == {("job", ids[1])}
        assert not changes[-1].job.workers
        await client.delete_job(ids[1])
        assert [shown(c) for c in await until(next_one, lambda c: c.deleted)][-1] == ("deleted", ids[1])
        new = await client.create_job(SPEC)
        assert shown(await next_one()) == ("job", new.id)


async def test_workers_are_shown_to_who_asks(client, agent, job_in):
    job = await client.create_job(SPEC)
    await job_in(job.id, job_pb2.JOB_STATE_RUNNING)
    async with (
        reading(client.watch_jobs(with_workers=True)) as with_them,
        reading(client.watch_jobs()) as without,
    ):
        for next_one in (with_them, without):
            await until(next_one, lambda c: c.ready)
        agent.progress(0, 7)
        changes = await until(with_them, lambda c: c.job.workers and c.job.workers[0].step == 7)
        assert len(changes[-1].job.workers) == 2
        await client.stop_job(job.id, force=True)  # steps are no change to who sees no workers
        changes = await until(without, lambda c: c.job.state == STOPPED)
        assert all(change.job.desired == job_pb2.DESIRED_STATE_STOPPED for change in changes)


async def test_nodes_are_watched(house, client, agent):
    async with reading(client.watch_nodes()) as next_one:
        assert [shown(await next_one()) for _ in range(2)] == [("node", "n1"), ("ready", "")]
        await client.create_job(SPEC)
        await until(next_one, lambda c: c.node.slots_used == 2)
        await client.cordon_node("n1", "disks")
        change = (await until(next_one, lambda c: c.node.cordoned))[-1]
        assert change.node.cordon_reason == "disks"


async def test_the_timeline_is_followed(client):
    first = await client.create_job(SPEC)
    async with (
        reading(client.watch_events()) as everything,
        reading(client.watch_events(first.id)) as of_first,
    ):
        assert (await until(everything, lambda e: e.kind == "JobCreated"))[-1].job_id == first.id
        second = await client.create_job(SPEC)
        assert (await until(everything, lambda e: e.kind == "JobCreated"))[-1].job_id == second.id
        await client.stop_job(first.id)
        await client.delete_job(first.id)
        seen = await until(of_first, lambda e: e.kind == "JobDeleted")
        with pytest.raises(StopAsyncIteration):
            await of_first()
    assert seen == [event async for event in client.list_events(first.id)]
    again = [event async for event in client.watch_events(first.id, after=seen[1].seq)]
    assert again == seen[2:]
    assert [event async for event in client.watch_events(first.id, after=seen[-1].seq)] == []


async def test_a_timeline_is_longer_than_what_is_read_at_once(client, monkeypatch):
    monkeypatch.setattr("holdfast_coordinator.rpc.watches.EVENTS_AT_ONCE", 2)
    for _ in range(4):
        await client.create_job(SPEC)
    there = [event async for event in client.list_events()]
    async with reading(client.watch_events()) as next_one:
        assert [await next_one() for _ in there] == there


async def test_what_can_not_be_watched_is_said(client):
    with pytest.raises(wire.NotFound, match="there is no job nope"):
        await anext(client.watch_events("nope"))
    with pytest.raises(wire.FailedPrecondition, match="there is no event 1000 yet"):
        await anext(client.watch_events(after=1_000))
    async with Client(f"127.0.0.1:{free_port()}") as nobody:
        with pytest.raises(wire.Unreachable):
            await anext(nobody.watch_jobs())


async def test_watches_go_on_when_the_coordinator_was_away(house, client):
    ids = [(await client.create_job(SPEC)).id for _ in range(2)]
    async with reading(client.watch_jobs()) as jobs, reading(client.watch_events()) as events:
        await until(jobs, lambda c: c.ready)
        seen = await until(events, lambda e: e.job_id == ids[1])
        await house.stop()
        await house.start()
        async with Client(house.target) as other:
            await other.stop_job(ids[0])
            await other.delete_job(ids[0])
            last = await other.create_job(SPEC)
        changes = await until(jobs, lambda c: c.deleted)
        changes += await until(jobs, lambda c: c.job.id == last.id) if last.id not in str(changes) else []
        names = [shown(change) for change in changes]
        assert ("deleted", ids[0]) in names
        assert ("job", ids[1]) not in names, "it has not changed"
        assert ("ready", "") not in names
        seen += await until(events, lambda e: e.job_id == last.id)
    there = [event async for event in client.list_events()]
    assert seen == there[: len(seen)]


async def test_watchers_that_leave_are_forgotten(house, client):
    changes = house._coordinator._engine.changes
    for stream in (client.watch_jobs(), client.watch_nodes(), client.watch_events(), client.watch_events()):
        if stream.__name__ == "watch_events":
            await client.create_job(SPEC)
        await anext(stream)
        await stream.aclose()
    async with asyncio.timeout(PATIENCE):
        while changes._watches:
            await asyncio.sleep(0.01)


async def test_a_watch_ends_when_the_state_is_read_anew(house, client):
    """Whoever watched begins anew: what it was shown may be other than what is there."""
    async with wire.open_channel(house.target) as channel:
        call = job_pb2_grpc.JobServiceStub(channel).WatchJobs(job_pb2.WatchJobsRequest())
        assert (await call.read()).ready
        house._coordinator._engine.changes.end("it starts over from its store")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(PATIENCE):
                await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "it starts over from its store" in caught.value.details()


async def test_a_reader_that_does_not_read_is_sent_no_more_than_fits(house, client):
    """And when it reads at last it is shown what there is now, once, not what it missed."""
    spec = job_pb2.JobSpec(
        name="a", command=["x" * 1_000] * 250, world_size=1
    )  # 250 KB: far more than a window
    job_id = (await client.create_job(spec)).id
    looked = 0
    async with wire.open_channel(house.target) as channel:
        call = job_pb2_grpc.JobServiceStub(channel).WatchJobs(job_pb2.WatchJobsRequest())
        assert (await call.read()).job.id == job_id
        for _ in range(30):
            await client.stop_job(job_id, force=True)
            await client.delete_job(job_id)
            job_id = (await client.create_job(spec)).id
            (watch,) = next(iter(house._coordinator._engine.changes._watches.values()))
            looked = max(looked, len(watch._due) + len(watch._shown))
        assert looked < 10
        async with asyncio.timeout(PATIENCE):
            while (await call.read()).job.id != job_id:
                pass
