"""The services of a real coordinator as any gRPC client finds them, and agents that do not keep to the protocol."""

import asyncio
import time

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from holdfast import wire
from holdfast.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    worker_pb2,
)
from holdfast_coordinator import engine
from holdfast_coordinator.app import ALIVE
from holdfast_coordinator.store.api import StoreFullError

pytest_plugins = ["tests.client.cli_fixtures"]

PATIENCE = 60
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def channel(house):
    async with wire.open_channel(house.target) as found:
        yield found


@pytest.fixture
def jobs(channel):
    return job_pb2_grpc.JobServiceStub(channel)


async def refusal(call):
    """The status of a call that is refused, with its details by kind."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = {}
    for packed in rpc_status.from_call(caught.value).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest):
            found = kind()
            if packed.Unpack(found):
                details[kind.__name__] = found
    return caught.value.code(), caught.value.details(), details


async def test_errors_carry_their_details(jobs):
    code, message, details = await refusal(jobs.GetJob(job_pb2.GetJobRequest(job_id="nope")))
    assert (code, message) == (grpc.StatusCode.NOT_FOUND, "there is no job nope")
    assert details["ErrorInfo"].domain == "holdfast"
    assert details["ErrorInfo"].metadata["remedy"] == "list the jobs to see their ids"
    code, _, details = await refusal(jobs.CreateJob(job_pb2.CreateJobRequest()))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    wrong = [violation.field for violation in details["BadRequest"].field_violations]
    assert wrong == ["name", "command", "world_size"]


@pytest.mark.parametrize("token", ["nonsense", "e30=", "WyJhIl0=", "====", "\N{SNOWMAN}"])
async def test_a_page_token_that_is_none(channel, jobs, token):
    nodes = node_pb2_grpc.NodeServiceStub(channel)
    calls = [
        jobs.ListJobs(job_pb2.ListJobsRequest(page_token=token)),
        jobs.ListEvents(job_pb2.ListEventsRequest(page_token=token)),
    ]
    if token != "WyJhIl0=":  # which is ["a"], and a name of a node
        calls.append(nodes.ListNodes(node_pb2.ListNodesRequest(page_token=token)))
    for call in calls:
        code, message, _ = await refusal(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message == "page_token is not one that this coordinator gave"


async def test_a_request_id_has_a_bound(jobs):
    spec = job_pb2.JobSpec(name="a", command=["x"], world_size=1)
    code, _, details = await refusal(
        jobs.CreateJob(job_pb2.CreateJobRequest(spec=spec, request_id="x" * 129))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["BadRequest"].field_violations[0].field == "request_id"


async def test_a_node_is_found_by_its_name(channel, agent):
    nodes = node_pb2_grpc.NodeServiceStub(channel)
    node = (await nodes.GetNode(node_pb2.GetNodeRequest(name="n1"))).node
    assert (node.name, node.capacity.slots, node.slots_used) == ("n1", 4, 0)
    code, message, _ = await refusal(nodes.GetNode(node_pb2.GetNodeRequest(name="n2")))
    assert (code, message) == (grpc.StatusCode.NOT_FOUND, "there is no node n2")


async def test_a_node_is_cordoned_drained_and_uncordoned(channel, agent):
    nodes = node_pb2_grpc.NodeServiceStub(channel)
    node = (await nodes.CordonNode(node_pb2.CordonNodeRequest(name="n1", reason="disks"))).node
    assert (node.cordoned, node.cordon_reason, node.draining, node.drained) == (True, "disks", False, False)
    assert not node.HasField("drain_by")
    node = (await nodes.DrainNode(node_pb2.DrainNodeRequest(name="n1"))).node
    assert (node.cordoned, node.cordon_reason, node.drained) == (True, "disks", True)
    assert 0 < node.drain_by.ToMilliseconds() / 1000 - time.time() <= 120
    node = (await nodes.UncordonNode(node_pb2.UncordonNodeRequest(name="n1"))).node
    assert (node.cordoned, node.drained) == (False, False)
    for call, request in (
        (nodes.CordonNode, node_pb2.CordonNodeRequest(name="n2")),
        (nodes.UncordonNode, node_pb2.UncordonNodeRequest(name="n2")),
        (nodes.DrainNode, node_pb2.DrainNodeRequest(name="n2")),
    ):
        code, message, _ = await refusal(call(request))
        assert (code, message) == (grpc.StatusCode.NOT_FOUND, "there is no node n2")


@pytest.mark.parametrize("reason", ["x" * 201, "two\nlines", "\x1b[2J"])
async def test_a_reason_is_one_line(channel, agent, reason):
    nodes = node_pb2_grpc.NodeServiceStub(channel)
    for call, request in (
        (nodes.CordonNode, node_pb2.CordonNodeRequest(name="n1", reason=reason)),
        (nodes.DrainNode, node_pb2.DrainNodeRequest(name="n1", reason=reason)),
    ):
        code, _, _ = await refusal(call(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_drain_is_not_over_before_it_began(channel, agent):
    request = node_pb2.DrainNodeRequest(name="n1")
    request.within.FromMilliseconds(-1)
    code, message, _ = await refusal(node_pb2_grpc.NodeServiceStub(channel).DrainNode(request))
    assert (code, message) == (grpc.StatusCode.INVALID_ARGUMENT, "a node can't be empty within -1 ms")


async def test_reflection_names_every_service(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([asked])):
        names = {service.name for service in answer.list_services_response.service}
    assert names >= {"holdfast.v1.JobService", "holdfast.v1.NodeService", "holdfast.v1.AgentService"}
    assert "grpc.health.v1.Health" in names


async def test_reflection_finds_methods_too(channel):
    """As `grpcurl describe` asks for them; protobuf's pool knows only what they are in."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    names = ("holdfast.v1.JobService.CreateJob", "holdfast.v1.JobService", "holdfast.v1.JobService.Nothing")
    asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    method, service, nothing = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    assert method.file_descriptor_response == service.file_descriptor_response
    assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_health_says_whether_it_serves(house, channel, jobs, monkeypatch):
    monkeypatch.setattr(engine, "RETRY_S", 0.01)
    health = health_pb2_grpc.HealthStub(channel)
    watching = health.Watch(health_pb2.HealthCheckRequest(service="holdfast.v1.JobService"))
    async with asyncio.timeout(PATIENCE):
        assert (await watching.read()).status == SERVING

        def full(*_args, **_kwargs):
            raise StoreFullError("no room on the disk")

        with monkeypatch.context() as patch:
            patch.setattr(house._coordinator._store, "commit", full)
            spec = job_pb2.JobSpec(name="a", command=["x"], world_size=1)
            code, message, _ = await refusal(jobs.CreateJob(job_pb2.CreateJobRequest(spec=spec)))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert message == "the coordinator can't serve now: no room on the disk"
            assert (await watching.read()).status == NOT_SERVING
            alive = await health.Check(health_pb2.HealthCheckRequest(service=ALIVE))
            assert alive.status == SERVING, "to be started again would not mend it"
        assert (await watching.read()).status == SERVING


class Stream:
    """An agent's stream, said word by word."""

    def __init__(self, channel):
        self._call = agent_pb2_grpc.AgentServiceStub(channel).Connect()

    async def say(self, **message):
        await self._call.write(agent_pb2.AgentMessage(**message))

    async def hello(self, instance_id="i1"):
        hello = agent_pb2.Hello(node="n1", instance_id=instance_id, address="127.0.0.1", ports=[7001])
        hello.capacity.slots = 1
        await self.say(hello=hello)

    async def heard(self):
        async with asyncio.timeout(PATIENCE):
            return await self._call.read()

    async def ended(self):
        """The status that it ends with."""
        try:
            while await self.heard() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            pass
        return await self._call.code(), await self._call.details()


async def test_a_session_opens_with_a_hello(channel):
    stream = Stream(channel)
    await stream.say(heartbeat=agent_pb2.Heartbeat())
    code, why = await stream.ended()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert why == "the stream did not open with a Hello that names its node and instance"


async def test_a_newer_session_of_a_node_ends_the_older(channel):
    older, newer = Stream(channel), Stream(channel)
    await older.hello()
    assert (await older.heard()).HasField("welcome")
    await newer.hello()
    assert (await newer.heard()).HasField("welcome")
    assert await older.ended() == (grpc.StatusCode.ABORTED, "a newer session speaks for this node")


async def test_another_agent_may_not_take_the_name_of_one_that_is_connected(channel):
    first, second = Stream(channel), Stream(channel)
    await first.hello()
    await first.heard()
    await second.hello(instance_id="i2")
    code, why = await second.ended()
    assert code is grpc.StatusCode.ABORTED
    assert why == "another agent is connected as node n1; start this one with another --name"


async def test_what_is_said_in_another_epoch_is_dropped(channel, client):
    stream = Stream(channel)
    await stream.hello()
    epoch = (await stream.heard()).epoch
    job = await client.create_job(job_pb2.JobSpec(name="a", command=["x"], world_size=1))
    assert (await stream.heard()).start_workers.job_id == job.id
    key = agent_pb2.WorkerKey(job_id=job.id, rank=0, attempt=1)
    started = agent_pb2.WorkerStarted(key=key, pid=77, pid_start_time=1)
    await stream.say(epoch=epoch + 1, worker_started=started)
    started.pid = 78
    await stream.say(epoch=epoch, worker_started=started)
    async for now in client.watch_job(job.id):
        assert now.workers[0].pid != 77
        if now.workers[0].pid == 78:
            break


async def test_a_second_hello_ends_the_session(channel):
    stream = Stream(channel)
    await stream.hello()
    epoch = (await stream.heard()).epoch
    await stream.say(epoch=epoch, hello=agent_pb2.Hello(node="n1", instance_id="i1"))
    assert await stream.ended() == (grpc.StatusCode.ABORTED, "an agent does not say hello here")


async def test_a_committed_step_is_shown_before_the_heartbeat_that_tells_of_it(channel, client):
    stream = Stream(channel)
    await stream.hello()
    epoch = (await stream.heard()).epoch
    job = await client.create_job(job_pb2.JobSpec(name="a", command=["x"], world_size=1))
    key = agent_pb2.WorkerKey(job_id=(await stream.heard()).start_workers.job_id, rank=0, attempt=1)
    await stream.say(epoch=epoch, worker_started=agent_pb2.WorkerStarted(key=key, pid=78, pid_start_time=1))
    prepared = agent_pb2.ShardPrepared(key=key, step=30)
    prepared.shard.file, prepared.shard.size_bytes = "rank-00000.attempt-1.safetensors", 10
    await stream.say(epoch=epoch, shard_prepared=prepared)
    assert (await stream.heard()).ack_commit.step == 30
    now = await client.get_job(job.id)
    assert (now.last_committed_step, now.workers[0].step) == (30, 30)


async def test_lists_leave_out_what_can_be_long(client):
    spec = job_pb2.JobSpec(name="a", command=["x"], world_size=1)
    spec.datasets.add(name="train", uri="/data").shards.add(file="a.npy", samples=3, size_bytes=40)
    job = await client.create_job(spec)
    assert (await client.get_job(job.id)).spec.datasets == spec.datasets
    (listed,) = [listed async for listed in client.list_jobs()]
    assert not listed.spec.datasets
    async for now in client.watch_job(job.id):
        assert not now.spec.datasets
        break


class TestCheckpoints:
    """Of a job of one rank, whose agent says what a worker would."""

    @pytest.fixture
    async def stream(self, channel, client):
        stream = Stream(channel)
        await stream.hello()
        stream.epoch = (await stream.heard()).epoch
        spec = job_pb2.JobSpec(name="a", command=["x"], world_size=1, checkpoint_uri="s3://bucket/ckpt")
        stream.job = (await client.create_job(spec)).id
        stream.key = agent_pb2.WorkerKey(job_id=stream.job, rank=0, attempt=1)
        assert (await stream.heard()).start_workers.job_id == stream.job
        started = agent_pb2.WorkerStarted(key=stream.key, pid=78, pid_start_time=1)
        await stream.say(epoch=stream.epoch, worker_started=started)
        return stream

    async def commit(self, stream, step, *, local_only=False, **metrics):
        prepared = agent_pb2.ShardPrepared(key=stream.key, step=step)
        prepared.shard.file, prepared.shard.size_bytes = "rank-00000.attempt-1.safetensors", 10
        prepared.shard.local_only = local_only
        for name, value in metrics.items():
            prepared.shard.metrics[name] = value
        await stream.say(epoch=stream.epoch, shard_prepared=prepared)
        return (await stream.heard()).ack_commit

    async def report(self, stream, kind, step, message=""):
        report = worker_pb2.Report(kind=kind, step=step, message=message)
        reported = agent_pb2.CheckpointReported(key=stream.key, report=report)
        await stream.say(epoch=stream.epoch, checkpoint_reported=reported)
        return (await stream.heard()).note_report

    async def test_one_is_looked_at_with_what_names_its_files(self, stream, client):
        await self.commit(stream, 10, loss=0.5, bad=float("nan"))
        await self.commit(stream, 20, loss=0.25)
        newest, first = [await client.get_checkpoint(stream.job, step) for step in (None, 10)]
        assert (newest.checkpoint.step, first.checkpoint.step) == (20, 10)
        assert dict(first.checkpoint.metrics) == {"loss": 0.5}
        assert first.checkpoint.uri == "s3://bucket/ckpt"
        assert (first.checkpoint.world_size, first.checkpoint.shard_count) == (1, 1)
        assert [shard.file for shard in first.record.shards] == ["rank-00000.attempt-1.safetensors"]
        listed = [checkpoint async for checkpoint in client.list_checkpoints(stream.job)]
        assert listed == [newest.checkpoint, first.checkpoint]

    async def test_what_is_not_there_is_not_found(self, stream, client):
        with pytest.raises(wire.NotFound, match=f"job {stream.job} has no checkpoint;"):
            await client.get_checkpoint(stream.job)
        await self.commit(stream, 10)
        for call in (
            client.get_checkpoint(stream.job, 11),
            client.delete_checkpoint(stream.job, 11),
            client.pin_checkpoint(stream.job, 11, "good"),
        ):
            with pytest.raises(wire.NotFound, match=f"job {stream.job} has no checkpoint of step 11"):
                await call
        with pytest.raises(wire.FailedPrecondition, match="commit their checkpoints together; name no rank"):
            await client.get_checkpoint(stream.job, 10, rank=0)

    async def test_while_the_job_runs_a_worker_is_asked_to_delete_one(self, stream, client):
        for step in (10, 20):
            await self.commit(stream, step)
        assert await client.delete_checkpoint(stream.job, 10) is None
        assert [c.step async for c in client.list_checkpoints(stream.job)] == [20]
        assert list((await self.commit(stream, 30)).drop) == [10]
        noted = await self.report(stream, worker_pb2.Report.KIND_DROPPED, 10)
        assert (noted.kind, noted.step, noted.key) == (worker_pb2.Report.KIND_DROPPED, 10, stream.key)
        assert list((await self.commit(stream, 40)).drop) == []

    async def test_once_it_has_ended_the_record_is_handed_out(self, stream, client, job_in):
        for step in (10, 20):
            await self.commit(stream, step)
        exited = agent_pb2.WorkerExited(key=stream.key)
        exited.exit.status.code = 0
        await stream.say(epoch=stream.epoch, worker_exited=exited)
        await job_in(stream.job, job_pb2.JOB_STATE_SUCCEEDED)
        record = await client.delete_checkpoint(stream.job, 10)
        assert (record.step, record.shards[0].file) == (10, "rank-00000.attempt-1.safetensors")
        with pytest.raises(wire.FailedPrecondition, match="is its newest"):
            await client.delete_checkpoint(stream.job, 20)

    async def test_the_story_of_a_job_is_told(self, stream, client):
        exited = agent_pb2.WorkerExited(key=stream.key)
        exited.exit.status.code, exited.exit.status.message = 1, "exit code 1"
        await stream.say(epoch=stream.epoch, worker_exited=exited)
        assert (await stream.heard()).HasField("release_workers")
        story = await client.explain_job(stream.job)
        assert (story.summary.job_id, story.summary.restarts) == (stream.job, 1)
        (incident,) = story.incidents
        assert (incident.attempt, incident.rank, incident.cause) == (1, 0, "rank 0 on node n1: exit code 1")
        with pytest.raises(wire.NotFound, match="there is no job nowhere"):
            await client.explain_job("nowhere")

    async def test_a_pin_is_shown_and_holds(self, stream, client):
        for step in (10, 20):
            await self.commit(stream, step)
        assert (await client.pin_checkpoint(stream.job, 10, "good")).pin == "good"
        assert [c.pin async for c in client.list_checkpoints(stream.job)] == ["", "good"]
        with pytest.raises(wire.FailedPrecondition, match='is pinned as "good"; unpin it first'):
            await client.delete_checkpoint(stream.job, 10)
        assert (await client.pin_checkpoint(stream.job, 10, "")).pin == ""
        with pytest.raises(wire.InvalidSpec, match="is no name of a pin"):
            await client.pin_checkpoint(stream.job, 10, "two words")

    async def test_a_degraded_job_is_shown_so_until_it_is_drained(self, stream, client):
        await self.commit(stream, 10, local_only=True)
        assert (await client.get_job(stream.job)).degraded
        assert (await client.get_checkpoint(stream.job)).checkpoint.degraded
        await self.report(stream, worker_pb2.Report.KIND_DRAINED, 10)
        assert not (await client.get_job(stream.job)).degraded
        summary = await client.job_summary(stream.job)
        assert (summary.degraded_commits, summary.degraded) == (1, False)
        assert [c.degraded async for c in client.list_checkpoints(stream.job)] == [False]

    async def test_a_corrupt_one_is_gone_when_that_is_noted(self, stream, client):
        for step in (10, 20):
            await self.commit(stream, step)
        await self.report(stream, worker_pb2.Report.KIND_CORRUPT, 20, "no" * 1_000)
        assert [c.step async for c in client.list_checkpoints(stream.job)] == [10]
        assert (await stream.heard()).stop_workers.keys[0] == stream.key
        told = [e.message async for e in client.list_events(stream.job) if e.kind == "CheckpointQuarantined"]
        message = f"step 20 failed verification: {'no' * 500}; resumed from instead is step 10"
        assert told == [message]

    async def test_a_report_of_a_kind_that_nobody_knows_ends_the_session(self, stream):
        report = agent_pb2.CheckpointReported(key=stream.key, report=worker_pb2.Report(step=1))
        await stream.say(epoch=stream.epoch, checkpoint_reported=report)
        code, why = await stream.ended()
        assert code is grpc.StatusCode.ABORTED
        assert why == "a report of kind 0 is none that this coordinator knows"


async def test_what_a_node_has_preloaded_is_what_it_said_last(channel):
    nodes = node_pb2_grpc.NodeServiceStub(channel)

    async def shown():
        return (await nodes.GetNode(node_pb2.GetNodeRequest(name="n1"))).node.preloads

    async def until(wanted):
        async with asyncio.timeout(PATIENCE):
            while [(p.job_id, list(p.pids)) for p in await shown()] != wanted:
                await asyncio.sleep(0.01)

    async def say(preloads):
        beat = agent_pb2.Heartbeat(preloads=preloads)
        await stream.say(epoch=epoch, heartbeat=beat)

    stream = Stream(channel)
    await stream.hello()
    epoch = (await stream.heard()).epoch
    said = node_pb2.Preload(job_id="a", pids=[7], modules=["numpy"])
    await say(agent_pb2.Preloads(preloads=[said]))
    await until([("a", [7])])
    assert list(await shown()) == [said]
    await say(None)  # nothing new
    await say(agent_pb2.Preloads())
    await until([])
    await say(agent_pb2.Preloads(preloads=[said]))
    await until([("a", [7])])
    newer = Stream(channel)
    await newer.hello()
    await newer.heard()
    await until([])
