"""Two coordinators over one database: one serves, the other says so and takes its place (P7, P9)."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from holdfast import wire
from holdfast.client import Client
from holdfast.v1 import agent_pb2, agent_pb2_grpc, job_pb2, job_pb2_grpc, node_pb2, node_pb2_grpc
from holdfast_coordinator.app import ALIVE, SERVICES, Coordinator, CoordinatorConfig
from holdfast_coordinator.store.api import DeposedError
from tests.ports import free_port
from tests.postgres import PostgresServer

PATIENCE = 60
LEASE_MS, SHORT_MS = 60_000, 4_000
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SPEC = job_pb2.JobSpec(name="a", command=["x"], world_size=1)


@pytest.fixture
async def start(postgres, tmp_path):
    """Starts a coordinator of a name over the database of the test, and gives it with its address."""
    url = postgres.make_database()
    started = []

    async def make(name, lease_ms=LEASE_MS):
        listen = f"127.0.0.1:{free_port()}"
        config = CoordinatorConfig(listen, tmp_path / name, store=url, lease_ms=lease_ms)
        started.append(Coordinator(config))
        return started[-1], await started[-1].start()

    yield make
    for coordinator in started:
        await coordinator.stop()


async def healths(channel, *services):
    stub = health_pb2_grpc.HealthStub(channel)
    return [(await stub.Check(health_pb2.HealthCheckRequest(service=service))).status for service in services]


async def serves(channel):
    """Wait until whoever is there serves."""
    watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
    async with asyncio.timeout(PATIENCE):
        async for answer in watching:
            if answer.status == SERVING:
                break
    watching.cancel()


async def answers(client):
    """Whether somebody serves. The client may not have heard yet who."""
    try:
        return [node async for node in client.list_nodes()] == []
    except wire.Unreachable:
        return False


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def test_a_standby_refuses_everybody_and_takes_over(start):
    first, at_first = await start("first")
    async with wire.open_channel(at_first) as one:
        await serves(one)
        created = await job_pb2_grpc.JobServiceStub(one).CreateJob(job_pb2.CreateJobRequest(spec=SPEC))
        _, at_second = await start("second")
        async with grpc.aio.insecure_channel(at_second) as two:
            assert await healths(two, "", *SERVICES, ALIVE) == [NOT_SERVING] * 4 + [SERVING]
            jobs, nodes = job_pb2_grpc.JobServiceStub(two), node_pb2_grpc.NodeServiceStub(two)
            stream = agent_pb2_grpc.AgentServiceStub(two).Connect()
            for call in (
                jobs.CreateJob(job_pb2.CreateJobRequest(spec=SPEC)),
                jobs.ListEvents(job_pb2.ListEventsRequest()),
                nodes.ListNodes(node_pb2.ListNodesRequest()),
                stream.read(),
            ):
                code, why = await refusal(call)
                assert code is grpc.StatusCode.UNAVAILABLE
                assert why.startswith("the coordinator can't serve now: it is ")
            async with Client(f"{at_second},{at_first}") as either:
                for _ in range(5):
                    assert (await either.get_job(created.job.id)).id == created.job.id
                await first.stop()  # gives its lease back
                await serves(two)
                async with asyncio.timeout(PATIENCE):
                    while not await answers(either):
                        pass
            assert await healths(two, *SERVICES, ALIVE) == [SERVING] * 4
            found = await jobs.GetJob(job_pb2.GetJobRequest(job_id=created.job.id))
            assert found.job.id == created.job.id


async def test_who_is_deposed_says_so_and_ends(start, postgres):
    first, at_first = await start("first")
    async with wire.open_channel(at_first) as one:
        await serves(one)
        stream = agent_pb2_grpc.AgentServiceStub(one).Connect()
        hello = agent_pb2.Hello(node="n1", instance_id="i1", address="127.0.0.1")
        await stream.write(agent_pb2.AgentMessage(hello=hello))
        assert (await stream.read()).HasField("welcome")
        with postgres.connect(first._config.store.url.database) as admin:
            admin.execute("UPDATE leader SET holder = 'someone else'")
        with pytest.raises(DeposedError, match="someone else"):
            await first.wait()
        assert await healths(one, "") == [NOT_SERVING]
        code, why = await refusal(stream.read())
        assert (code, why) == (grpc.StatusCode.ABORTED, "the coordinator leads no longer")


class TestWithoutItsDatabase:
    @pytest.fixture
    def postgres(self):
        """A server of its own: it is stopped, and others need theirs."""
        server = PostgresServer()
        yield server
        server.remove()

    async def test_a_leader_stops_in_time(self, start, postgres):
        first, at_first = await start("first", SHORT_MS)
        async with wire.open_channel(at_first) as one:
            await serves(one)
        postgres.stop()
        with pytest.raises(DeposedError, match="its lease could not be renewed in time"):
            await first.wait()
        await first.stop()
        _, at_second = await start("second")
        async with grpc.aio.insecure_channel(at_second) as two:
            assert await healths(two, "", ALIVE) == [NOT_SERVING, SERVING]
            postgres.start()
            await serves(two)
