# ruff: noqa: F401, F811  fixtures are imported by name
"""What is repeated, for how long it is waited, and how each status is told: against a scripted coordinator."""

import asyncio

import grpc
import pytest
from google.rpc import code_pb2

from holdfast import wire
from holdfast.client import Client
from holdfast.v1 import job_pb2, job_pb2_grpc
from tests.client.fake_coordinator import status
from tests.client.scripted import coordinator, make_job

AWAY = status(code_pb2.UNAVAILABLE, "away")
GET = job_pb2.GetJobRequest(job_id="k7m2p9xq4w")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (code_pb2.NOT_FOUND, wire.NotFound),
        (code_pb2.ALREADY_EXISTS, wire.AlreadyExists),
        (code_pb2.FAILED_PRECONDITION, wire.FailedPrecondition),
        (code_pb2.RESOURCE_EXHAUSTED, wire.ResourceExhausted),
        (code_pb2.INVALID_ARGUMENT, wire.InvalidSpec),
        (code_pb2.INTERNAL, wire.HoldfastError),
    ],
)
async def test_a_status_becomes_an_exception_with_its_message_and_remedy(coordinator, code, kind):
    coordinator.fail("GetJob", status(code, "it is so", remedy="do this"))
    async with Client(coordinator.target) as client:
        with pytest.raises(wire.HoldfastError) as error:
            await client.get_job("k7m2p9xq4w")
    assert type(error.value) is kind
    assert (error.value.message, error.value.remedy) == ("it is so", "do this")


async def test_a_coordinator_that_can_not_serve_says_so_itself(coordinator):
    full = status(code_pb2.UNAVAILABLE, "the disk is full", remedy="make room")
    coordinator.fail("GetJob", *[full] * 5)  # it is tried again
    async with Client(coordinator.target) as client:
        with pytest.raises(wire.Unreachable, match=r"^the disk is full; make room$"):
            await client.get_job("k7m2p9xq4w")


async def test_a_job_is_created_once_however_often_the_call_is_repeated(coordinator):
    """The answer was lost: each repetition says the same request id."""
    job = coordinator.add_job(make_job())
    coordinator.fail("CreateJob", AWAY, AWAY)
    async with Client(coordinator.target) as client:
        assert await client.create_job(job.spec) == job
    first, *rest = coordinator.asked("CreateJob")
    assert len(rest) == 2
    assert {request.request_id for request in rest} == {first.request_id}
    assert 16 <= len(first.request_id) <= 128


async def test_every_unary_call_has_a_deadline(coordinator):
    coordinator.add_job(make_job())
    async with wire.open_channel(coordinator.target) as channel:
        stub = job_pb2_grpc.JobServiceStub(channel)
        await stub.GetJob(GET)
        await stub.GetJob(GET, timeout=5)
    ours, theirs = coordinator.time_left
    assert 10 < ours < wire.DEADLINE_S + 1
    assert 0 < theirs < 10


async def test_streams_have_none(coordinator):
    coordinator.add_job(make_job())
    coordinator.watched = [make_job(state=job_pb2.JOB_STATE_SUCCEEDED)]
    async with Client(coordinator.target) as client:
        assert len([job async for job in client.watch_job("k7m2p9xq4w")]) == 1
    assert coordinator.time_left[-1] > 1e6


async def test_a_watch_goes_on_when_a_stream_ends_without_a_word_or_breaks(coordinator):
    running = coordinator.add_job(make_job())
    ended = make_job(state=job_pb2.JOB_STATE_SUCCEEDED)
    coordinator.watched = [running]
    seen = []
    async with Client(coordinator.target) as client:
        async for job in client.watch_job(running.id):
            seen.append(job)
            if len(seen) == 1:
                coordinator.watched = [running, ended]
                coordinator.fail("WatchJob", AWAY)
    assert seen == [running, running, ended]


async def test_messages_have_a_bound(coordinator):
    coordinator.add_job(make_job(reason="x" * wire.MAX_MESSAGE_BYTES))
    async with Client(coordinator.target) as client:
        with pytest.raises(wire.ResourceExhausted):
            await client.get_job("k7m2p9xq4w")


def test_servers_let_clients_ping_as_often_as_they_do():
    options = dict(wire.server_options())
    assert options["grpc.keepalive_time_ms"] == wire.KEEPALIVE_MS
    assert options["grpc.http2.min_ping_interval_without_data_ms"] < wire.KEEPALIVE_MS


async def test_a_second_server_on_the_port_is_an_error():
    first = grpc.aio.server(options=wire.server_options())
    port = first.add_insecure_port("127.0.0.1:0")
    await first.start()
    second = grpc.aio.server(options=wire.server_options())
    with pytest.raises(RuntimeError):
        second.add_insecure_port(f"127.0.0.1:{port}")
    await asyncio.gather(first.stop(0), second.stop(0))
