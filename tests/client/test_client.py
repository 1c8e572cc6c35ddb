import pytest
from google.rpc import code_pb2

from holdfast import client as client_module
from holdfast import wire
from holdfast.client import Client
from holdfast.v1 import job_pb2, node_pb2
from tests.client.cli_fixtures import coordinator, make_job  # noqa: F401  a fixture
from tests.client.fake_coordinator import status

AWAY = status(code_pb2.UNAVAILABLE, "away")
OUT = job_pb2.LOG_STREAM_STDOUT


@pytest.fixture
async def client(coordinator, monkeypatch):  # noqa: F811
    monkeypatch.setattr(client_module, "RECONNECT_S", 0.01)
    async with Client(coordinator.target) as client:
        yield client


def chunk(data, offset=0, rank=0, attempt=1):
    at = job_pb2.LogCursor(rank=rank, attempt=attempt, stream=OUT, offset=offset)
    return job_pb2.StreamLogsResponse(cursor=at, data=data)


async def test_a_job_is_created_once_however_often_the_call_is_repeated(coordinator, client):
    job = coordinator.add_job(make_job())
    coordinator.fail("CreateJob", AWAY, AWAY)
    assert await client.create_job(job.spec) == job
    first, *rest = coordinator.asked("CreateJob")
    assert first.spec == job.spec
    assert len(rest) == 2
    assert {request.request_id for request in rest} == {first.request_id}
    assert 16 <= len(first.request_id) <= 128


async def test_two_calls_make_two_jobs_unless_they_say_the_same_id(coordinator, client):
    job = coordinator.add_job(make_job())
    await client.create_job(job.spec)
    await client.create_job(job.spec)
    await client.create_job(job.spec, request_id="mine")
    a, b, c = (request.request_id for request in coordinator.asked("CreateJob"))
    assert a != b
    assert c == "mine"


async def test_lists_go_through_all_their_pages(coordinator, client):
    jobs = [coordinator.add_job(make_job(f"job{n}")) for n in range(5)]
    coordinator.events = [job_pb2.Event(seq=n) for n in range(5)]
    coordinator.checkpoints = [job_pb2.Checkpoint(step=n) for n in range(5)]
    coordinator.nodes = [node_pb2.Node(name=f"n{n}") for n in range(5)]
    assert [job async for job in client.list_jobs()] == jobs
    assert [event async for event in client.list_events()] == coordinator.events
    assert [item async for item in client.list_checkpoints("job0")] == coordinator.checkpoints
    assert [node async for node in client.list_nodes()] == coordinator.nodes
    assert len(coordinator.asked("ListJobs")) == 3


async def test_filters_are_passed_on(coordinator, client):
    states = [job_pb2.JOB_STATE_FAILED]
    assert [job async for job in client.list_jobs(states=states, name="digits")] == []
    (request,) = coordinator.asked("ListJobs")
    assert request.filter == job_pb2.JobFilter(states=states, name="digits")


async def test_single_things(coordinator, client):
    job = coordinator.add_job(make_job())
    coordinator.nodes = [node_pb2.Node(name="n1")]
    coordinator.summary = job_pb2.JobSummary(job_id=job.id, restarts=3)
    assert await client.get_job(job.id) == job
    assert await client.stop_job(job.id, force=True) == job
    assert coordinator.asked("StopJob") == [job_pb2.StopJobRequest(job_id=job.id, force=True)]
    assert await client.job_summary(job.id) == coordinator.summary
    assert await client.get_node("n1") == coordinator.nodes[0]
    await client.delete_job(job.id)
    assert coordinator.asked("DeleteJob") == [job_pb2.DeleteJobRequest(job_id=job.id)]


async def test_what_is_not_there(client):
    with pytest.raises(wire.NotFound, match="there is no job nope; list the jobs"):
        await client.get_job("nope")
    with pytest.raises(wire.NotFound, match="there is no node nope"):
        await client.get_node("nope")
    with pytest.raises(wire.NotFound):
        await anext(client.watch_job("nope"))
    with pytest.raises(wire.NotFound):
        await anext(client.stream_logs("nope", follow=True))
    with pytest.raises(wire.NotFound):
        await anext(client.list_checkpoints("nope"))


async def test_a_watch_goes_on_when_the_coordinator_was_away_and_ends_with_the_job(coordinator, client):
    running = coordinator.add_job(make_job())
    ended = make_job(state=job_pb2.JOB_STATE_SUCCEEDED)
    coordinator.watched = [running]
    seen = []
    async for job in client.watch_job(running.id):
        seen.append(job)
        if len(seen) == 1:  # the stream ends without a word; the next one breaks; then it is back
            coordinator.watched = [running, ended]
            coordinator.fail("WatchJob", AWAY)
    assert seen == [running, running, ended]


async def test_logs_go_on_where_they_were_when_the_coordinator_was_away(coordinator, client):
    job = coordinator.add_job(make_job())
    coordinator.log = [chunk(b"one\n"), chunk(b"two\n", offset=4), chunk(b"other\n", rank=1)]
    coordinator.fail("StreamLogs chunk", None, AWAY)  # after the second chunk
    coordinator.fail("StreamLogs", None, AWAY)
    said = [found.data async for found in client.stream_logs(job.id, follow=True)]
    assert said == [b"one\n", b"two\n", b"other\n"]
    *_, last = coordinator.asked("StreamLogs")
    (cursor,) = last.cursors
    assert cursor == job_pb2.LogCursor(rank=0, attempt=1, stream=OUT, offset=8)
    assert last.follow


@pytest.mark.parametrize("stream", ["watch_job", "stream_logs"])
async def test_a_coordinator_that_was_never_there_is_no_reason_to_wait(tmp_path, stream):
    async with Client(f"unix:{tmp_path}/nobody.sock") as client:
        with pytest.raises(wire.Unreachable):
            await anext(getattr(client, stream)("k7m2p9xq4w"))
