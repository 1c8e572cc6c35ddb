"""RestartJob and PlanJob of a real coordinator."""

import pytest

from holdfast import wire
from holdfast.v1 import job_pb2

pytest_plugins = ["tests.client.cli_fixtures"]

SPEC = job_pb2.JobSpec(name="a", command=["x"], world_size=2)
SPEC.stop_grace.FromMilliseconds(100)  # the scripted agent does not answer when it is asked to stop in time
RUNNING, STOPPED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_STOPPED


async def test_a_job_is_restarted_while_it_runs_and_after_it_was_stopped(client, agent, job_in):
    job_id = (await client.create_job(SPEC)).id
    await job_in(job_id, RUNNING)
    await client.restart_job(job_id, force=True, request_id="r")
    await client.restart_job(job_id, force=True, request_id="r")  # as one whose answer was lost
    assert (await job_in(job_id, RUNNING)).attempt == 2
    await client.stop_job(job_id, force=True)
    await job_in(job_id, STOPPED)
    assert (await client.restart_job(job_id)).id == job_id
    assert (await job_in(job_id, RUNNING)).attempt == 3
    told = [e.message async for e in client.list_events(job_id) if e.kind == "JobRestartRequested"]
    assert told == [
        "restarted by its user, by force",
        "restarted by its user after it was stopped (stopped by its user, by force)",
    ]
    notes = (await client.explain_job(job_id)).notes
    assert [note.message for note in notes if note.kind == "JobRestartRequested"] == told


async def test_what_can_not_be_restarted_is_said(client, agent, job_in):
    with pytest.raises(wire.NotFound):
        await client.restart_job("nope")
    with pytest.raises(wire.InvalidSpec, match="request_id is longer than 128"):
        await client.restart_job("nope", request_id="x" * 129)
    job_id = (await client.create_job(SPEC)).id
    await job_in(job_id, RUNNING)
    agent.exit(0)
    agent.exit(1)
    await job_in(job_id, job_pb2.JOB_STATE_SUCCEEDED)
    with pytest.raises(wire.FailedPrecondition, match=f"job {job_id} has nothing left to do"):
        await client.restart_job(job_id)


async def test_a_plan_says_where_and_creates_nothing(client, agent):
    plan = await client.plan_job(SPEC)
    assert [(r.rank, r.node, r.local_rank) for r in plan.ranks] == [(0, "n1", 0), (1, "n1", 1)]
    assert plan.waits == ""
    assert plan.spec.restart.budget == 50  # with its defaults
    large = job_pb2.JobSpec(name="a", command=["x"], world_size=5)
    plan = await client.plan_job(large)
    assert list(plan.ranks) == []
    assert plan.waits == "waits for room: short of slots: needs 5, 4 free on 1 node"
    assert [job async for job in client.list_jobs()] == []
    with pytest.raises(wire.InvalidSpec, match="the job can't be: name"):
        await client.plan_job(job_pb2.JobSpec())
