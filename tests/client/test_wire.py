import asyncio

import grpc
import pytest
from google.rpc import code_pb2

from holdfast import wire
from holdfast.v1 import job_pb2, job_pb2_grpc
from tests.client.cli_fixtures import coordinator, make_job  # noqa: F401  a fixture
from tests.client.fake_coordinator import status

GET = job_pb2.GetJobRequest(job_id="k7m2p9xq4w")


async def refusal(fake, refused):
    """What a client makes of a status."""
    fake.fail("GetJob", refused)
    async with wire.open_channel(fake.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await job_pb2_grpc.JobServiceStub(channel).GetJob(GET)
    return wire.from_rpc_error(raised.value, fake.target)


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
    error = await refusal(coordinator, status(code, "it is so", remedy="do this"))
    assert type(error) is kind
    assert (error.message, error.remedy) == ("it is so", "do this")
    assert str(error) == "it is so; do this"


async def test_bad_fields_are_told_by_their_path(coordinator):
    fields = [("world_size", "0 is not between 1 and 100000"), ("restart.jitter", "2 is not between 0 and 1")]
    error = await refusal(coordinator, status(code_pb2.INVALID_ARGUMENT, "no", violations=fields))
    assert error.violations == tuple(wire.Violation(*field) for field in fields)


async def test_a_coordinator_that_can_not_serve_says_so_itself(coordinator):
    full = status(code_pb2.UNAVAILABLE, "the coordinator can't serve now: the disk is full", remedy="try again")
    coordinator.fail("GetJob", *[full] * 4)  # it is tried again
    error = await refusal(coordinator, full)
    assert isinstance(error, wire.Unreachable)
    assert str(error) == "the coordinator can't serve now: the disk is full; try again"


async def test_nobody_there(tmp_path):
    target = f"unix:{tmp_path}/nobody.sock"
    async with wire.open_channel(target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await job_pb2_grpc.JobServiceStub(channel).GetJob(GET)
    error = wire.from_rpc_error(raised.value, target)
    assert isinstance(error, wire.Unreachable)
    assert str(error) == (
        f"the coordinator at {target} is not reachable; "
        "start one with `holdfast coordinator`, or name another with --server"
    )


async def test_a_unary_call_is_repeated_while_the_coordinator_is_away_for_a_moment(coordinator):
    job = coordinator.add_job(make_job())
    coordinator.fail("GetJob", *[status(code_pb2.UNAVAILABLE, "starting")] * 2)
    async with wire.open_channel(coordinator.target) as channel:
        answer = await job_pb2_grpc.JobServiceStub(channel).GetJob(GET)
    assert answer.job == job
    assert len(coordinator.asked("GetJob")) == 3


async def test_every_unary_call_has_a_deadline(coordinator):
    coordinator.add_job(make_job())
    async with wire.open_channel(coordinator.target) as channel:
        stub = job_pb2_grpc.JobServiceStub(channel)
        await stub.GetJob(GET)
        await stub.GetJob(GET, timeout=5)
    ours, theirs = coordinator.time_left
    assert 10 < ours < wire.DEADLINE_S + 1
    assert 0 < theirs < 10


async def test_no_answer_in_time(coordinator, monkeypatch):
    monkeypatch.setattr(wire, "DEADLINE_S", 0.2)
    coordinator.silent = {"GetJob"}
    coordinator.hold.clear()
    async with wire.open_channel(coordinator.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await job_pb2_grpc.JobServiceStub(channel).GetJob(GET)
    error = wire.from_rpc_error(raised.value, coordinator.target)
    assert isinstance(error, wire.DeadlineExceeded)
    assert str(error) == f"the coordinator at {coordinator.target} did not answer in time; try again"


async def test_messages_have_a_bound(coordinator):
    coordinator.add_job(make_job(reason="x" * wire.MAX_MESSAGE_BYTES))
    async with wire.open_channel(coordinator.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await job_pb2_grpc.JobServiceStub(channel).GetJob(GET)
    assert isinstance(wire.from_rpc_error(raised.value, ""), wire.ResourceExhausted)


def test_servers_keep_alive_and_let_clients_do_so():
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
