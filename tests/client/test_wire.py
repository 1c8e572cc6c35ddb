"""What a status means to people, and that both ends agree on the bounds."""

import asyncio

import grpc
import psutil
import pytest

from holdfast import wire
from holdfast.client import Client
from holdfast.v1 import job_pb2, job_pb2_grpc
from holdfast_coordinator.app import Coordinator, CoordinatorConfig
from tests.ports import free_port

pytest_plugins = ["tests.client.cli_fixtures"]

PATIENCE_S = 60


async def refused(target, call):
    async with wire.open_channel(target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(job_pb2_grpc.JobServiceStub(channel))
    return wire.from_rpc_error(error.value, target)


async def test_a_spec_that_cannot_be_comes_with_its_fields(house):
    spec = job_pb2.JobSpec(name="a", command=["x"], world_size=0, env={"1A": "b"})
    error = await refused(house.target, lambda jobs: jobs.CreateJob(job_pb2.CreateJobRequest(spec=spec)))
    assert isinstance(error, wire.InvalidSpec)
    assert [violation.field for violation in error.violations] == ["world_size", "env.1A"]
    assert error.violations[0].description == "0 is not between 1 and 100000"


async def test_a_remedy_is_part_of_the_sentence(house):
    error = await refused(house.target, lambda jobs: jobs.GetJob(job_pb2.GetJobRequest(job_id="nope")))
    assert isinstance(error, wire.NotFound)
    assert str(error) == "there is no job nope; list the jobs to see their ids"


async def test_nobody_there():
    target = f"127.0.0.1:{free_port()}"
    error = await refused(target, lambda jobs: jobs.GetJob(job_pb2.GetJobRequest(job_id="nope")))
    assert isinstance(error, wire.Unreachable)
    assert str(error).startswith(f"the coordinator at {target} is not reachable; start one with")


async def test_of_several_that_serve_is_called_and_of_none_is_said_so(house):
    """What does not answer is passed over."""
    nobody = f"127.0.0.1:{free_port()}"
    for _ in range(2):
        error = await refused(
            f"{nobody},{house.target}", lambda jobs: jobs.GetJob(job_pb2.GetJobRequest(job_id="nope"))
        )
        assert isinstance(error, wire.NotFound)
    both = f"{nobody},127.0.0.1:{free_port()}"
    error = await refused(both, lambda jobs: jobs.GetJob(job_pb2.GetJobRequest(job_id="nope")))
    assert isinstance(error, wire.Unreachable)
    assert str(error).startswith(f"none of the coordinators at {both} serves; start one")


@pytest.mark.parametrize("target", ["10.0.0.1:7070,b:7070", "10.0.0.1:1,[::1]:1", "10.0.0.1:1,10.0.0.2", ","])
def test_lists_that_cannot_be(target):
    with pytest.raises(wire.InvalidSpec):
        wire.open_channel(target)


@pytest.mark.parametrize(
    ("target", "start"),
    [
        (wire.DEFAULT_TARGET, "`holdfast coordinator`,"),
        ("localhost:9", "`holdfast coordinator --listen localhost:9`,"),
        ("unix:/run/c.sock", "`holdfast coordinator --listen unix:/run/c.sock`,"),
        ("10.0.0.1:7070", "`holdfast coordinator --listen 10.0.0.1:7070` there,"),
    ],
)
def test_what_to_start_when_nobody_is_there(target, start):
    metadata = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata)
    assert f"start one with {start} or" in str(wire.from_rpc_error(error, target))


async def test_a_message_of_the_largest_size_arrives(house):
    spec = job_pb2.JobSpec(name="a", command=["x"], world_size=0, env={"A": "b" * (5 * 2**20)})
    error = await refused(house.target, lambda jobs: jobs.CreateJob(job_pb2.CreateJobRequest(spec=spec)))
    assert isinstance(error, wire.InvalidSpec)  # and not ResourceExhausted: gRPC's own bound is 4 MiB


async def test_a_connection_that_is_old_is_left_and_ends_no_call(tmp_path, monkeypatch):
    """Who is connected looks a name up again, then; and what is read over the old one is read on."""
    monkeypatch.setattr(wire, "CONNECTION_AGE_MS", 100)
    coordinator = Coordinator(CoordinatorConfig(f"127.0.0.1:{free_port()}", tmp_path))
    address = await coordinator.start()
    port = int(address.rpartition(":")[2])
    async with Client(address) as client:
        job = await client.create_job(job_pb2.JobSpec(name="a", command=["x"], world_size=1))
        watched = client.watch_job(job.id)
        assert (await anext(watched)).state == job_pb2.JOB_STATE_PENDING
        connections = set()
        while len(connections) < 5:
            assert (await client.get_job(job.id)).id == job.id
            open_now = psutil.Process().net_connections("tcp")
            connections |= {each.laddr.port for each in open_now if each.raddr and each.raddr.port == port}
        await client.stop_job(job.id)
        async with asyncio.timeout(PATIENCE_S):
            assert [job.state async for job in watched][-1] == job_pb2.JOB_STATE_STOPPED
    await coordinator.stop()
