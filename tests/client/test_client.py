"""The Python client, against a real coordinator."""

import asyncio

import pytest

from holdfast import wire
from holdfast.client import Client
from holdfast.v1 import job_pb2
from tests.ports import free_port

pytest_plugins = ["tests.client.cli_fixtures"]

SPEC = job_pb2.JobSpec(name="a", command=["x"], world_size=2)
SPEC.stop_grace.FromMilliseconds(100)  # the scripted agent does not answer when it is asked to stop in time
OUT, ERR = job_pb2.LOG_STREAM_STDOUT, job_pb2.LOG_STREAM_STDERR


async def test_a_request_id_makes_one_job_and_none_makes_two(client):
    first = await client.create_job(SPEC, request_id="r")
    assert (await client.create_job(SPEC, request_id="r")).id == first.id
    assert (await client.create_job(SPEC)).id != (await client.create_job(SPEC)).id


async def test_lists_go_over_pages(client, monkeypatch):
    monkeypatch.setattr("holdfast.client.PAGE", 3)
    made = [(await client.create_job(SPEC)).id for _ in range(7)]
    assert sorted([job.id async for job in client.list_jobs()]) == sorted(made)
    kinds = [event.kind async for event in client.list_events()]
    assert kinds.count("JobCreated") == 7
    seqs = [event.seq async for event in client.list_events()]
    assert seqs == sorted(set(seqs))
    assert [event.seq async for event in client.list_events(after=seqs[1])] == seqs[2:]


async def test_lists_are_filtered(client):
    stopped = await client.create_job(SPEC)
    await client.stop_job(stopped.id)
    other = await client.create_job(job_pb2.JobSpec(name="b", command=["x"], world_size=1))
    states = [job_pb2.JOB_STATE_STOPPED]
    assert [job.id async for job in client.list_jobs(states=states)] == [stopped.id]
    assert [job.id async for job in client.list_jobs(name="b")] == [other.id]


async def test_a_job_is_watched_to_its_end(client, agent, job_in):
    job = await client.create_job(SPEC)
    watching = asyncio.create_task(collect(client.watch_job(job.id)))
    await job_in(job.id, job_pb2.JOB_STATE_RUNNING)
    agent.exit(0)
    agent.exit(1)
    states = [job.state for job in await watching]
    assert states[-1] == job_pb2.JOB_STATE_SUCCEEDED
    assert job_pb2.JOB_STATE_RUNNING in states


async def test_watching_goes_on_when_the_coordinator_was_away(house, client, agent, job_in):
    job = await client.create_job(SPEC)
    await job_in(job.id, job_pb2.JOB_STATE_RUNNING)
    seen = client.watch_job(job.id)
    await anext(seen)
    await house.stop()
    agent.exit(0)
    agent.exit(1)
    await house.start()
    assert [job.state async for job in seen][-1] == job_pb2.JOB_STATE_SUCCEEDED


async def test_logs_go_on_without_gap_or_repeat(house, client, agent, job_in):
    job = await client.create_job(SPEC)
    await job_in(job.id, job_pb2.JOB_STATE_RUNNING)
    agent.logs = {(0, 1, OUT): b"one\n", (1, 1, OUT): b"uno\n"}
    got = {}
    chunks = client.stream_logs(job.id, follow=True)
    for _ in range(2):
        add(got, await anext(chunks))
    assert got == agent.logs
    await house.stop()
    agent.logs[0, 1, OUT] += b"two\n"
    agent.logs[1, 1, ERR] = b"oh\n"
    agent.exit(0)
    agent.exit(1)
    await house.start()
    async for chunk in chunks:
        add(got, chunk)
    assert got == agent.logs


async def test_logs_of_some_ranks_and_attempts(client, agent, job_in):
    job = await client.create_job(SPEC)
    await job_in(job.id, job_pb2.JOB_STATE_RUNNING)
    agent.logs = {(rank, attempt, OUT): b"%d\n" % rank for rank in (0, 1) for attempt in (1, 2)}
    places = [c.cursor async for c in client.stream_logs(job.id, ranks=[1], attempt=2)]
    assert [(at.rank, at.attempt) for at in places] == [(1, 2)]


async def test_nobody_waits_for_a_coordinator_that_was_never_there():
    async with Client(f"127.0.0.1:{free_port()}") as nobody:
        with pytest.raises(wire.Unreachable):
            await anext(nobody.watch_job("a"))
        with pytest.raises(wire.Unreachable):
            await anext(nobody.stream_logs("a", follow=True))


async def test_what_is_not_there_is_said(client):
    for call in (
        client.get_job("nope"),
        client.stop_job("nope"),
        client.delete_job("nope"),
        client.job_summary("nope"),
        client.get_node("nope"),
        collect(client.watch_job("nope")),
        collect(client.stream_logs("nope")),
        collect(client.list_checkpoints("nope")),
    ):
        with pytest.raises(wire.NotFound):
            await call


async def test_a_running_job_is_not_deleted(client, agent, job_in):
    job = await client.create_job(SPEC)
    await job_in(job.id, job_pb2.JOB_STATE_RUNNING)
    with pytest.raises(wire.FailedPrecondition):
        await client.delete_job(job.id)
    await client.stop_job(job.id)
    await job_in(job.id, job_pb2.JOB_STATE_STOPPED)
    await client.delete_job(job.id)
    with pytest.raises(wire.NotFound):
        await client.get_job(job.id)


async def test_nodes(client, agent):
    assert [node.name async for node in client.list_nodes()] == ["n1"]
    assert (await client.get_node("n1")).capacity.slots == 4


async def collect(items):
    return [item async for item in items]


def add(got, chunk):
    at = (chunk.cursor.rank, chunk.cursor.attempt, chunk.cursor.stream)
    assert chunk.cursor.offset == len(got.get(at, b""))
    got[at] = got.get(at, b"") + chunk.data
