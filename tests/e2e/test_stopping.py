"""Stopped just in time, and moved, with real processes: nothing that was done is lost, of no rank."""

import asyncio
import json
import signal
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast.v1 import job_pb2
from tests.e2e.fleet import HOLDFAST, PATIENCE_S, running

pytestmark = pytest.mark.e2e

ENDLESS = str(Path(__file__).with_name("endless.py"))


async def submit(fleet, world, *words, scope="gang", grace_ms=60_000):
    command = [sys.executable, ENDLESS, str(fleet.out), *words]
    return await fleet.submit_command(command, world, scope, grace_ms=grace_ms)


def stepping(beyond=5, attempt=1, node=""):
    """Every rank of this attempt has done some steps."""

    def look(job):
        return running(job) and all(
            w.attempt == attempt
            and w.node.startswith(node)
            and w.HasField("step")
            and w.step > (w.resume_step if w.HasField("resume_step") else 0) + beyond
            for w in job.workers
        )

    return look


def said(fleet, rank, attempt=1):
    """What a rank wrote when it left."""
    found = json.loads((fleet.out / f"{rank}-{attempt}.json").read_text())
    assert found["sum"] == found["last"] * (found["last"] + 1) // 2
    return found


async def committed_steps(fleet, job_id):
    """The newest committed step; by rank, where each commits by itself."""
    found = {}
    async for checkpoint in fleet.client.list_checkpoints(job_id):
        rank = checkpoint.rank if checkpoint.HasField("rank") else None
        found.setdefault(rank, checkpoint.step)
    return found


@pytest.mark.parametrize("scope", ["gang", "rank"])
async def test_a_job_that_is_stopped_has_committed_its_last_step(fleet, scope):
    job_id = await submit(fleet, 4, scope=scope)
    await fleet.until(job_id, stepping())
    await fleet.client.stop_job(job_id)
    job = await fleet.ended(job_id)
    assert job.state == job_pb2.JOB_STATE_STOPPED
    assert [worker.last_exit.code for worker in job.workers] == [0] * 4
    last = {rank: said(fleet, rank)["last"] for rank in range(4)}
    steps = await committed_steps(fleet, job_id)
    assert steps == (last if scope == "rank" else {None: last[0]}), await fleet.story(job_id)
    if scope == "gang":
        assert set(last.values()) == {last[0]}
        assert job.reason == f"stopped by its user at step {last[0]}, which is committed"
    assert {said(fleet, rank)["reason"] for rank in range(4)} == {"job stop"}
    assert not fleet.leftovers()


async def test_a_restart_loses_no_step_of_what_runs_nor_of_what_was_stopped(fleet):
    job_id = await submit(fleet, 2)
    for attempt in (1, 2):
        await fleet.until(job_id, stepping(attempt=attempt))
        if attempt == 2:
            await fleet.client.stop_job(job_id)
            assert (await fleet.ended(job_id)).state == job_pb2.JOB_STATE_STOPPED
        await fleet.client.restart_job(job_id)
        job = await fleet.until(job_id, stepping(attempt=attempt + 1))
        (last,) = {said(fleet, rank, attempt)["last"] for rank in (0, 1)}
        assert {worker.resume_step for worker in job.workers} == {last}, await fleet.story(job_id)
    assert said(fleet, 0, 1)["reason"] == "job restart"
    assert (await fleet.client.job_summary(job_id)).steps_redone == 0
    await fleet.client.stop_job(job_id, force=True)
    await fleet.ended(job_id)


async def moved_without_a_loss(fleet, job_id, world=2):
    """The job goes on on node-b at exactly the step where it left node-a."""
    await fleet.until(job_id, stepping(attempt=2, node="node-b"))
    await fleet.node_until("node-a", lambda node: node.drained)
    (last,) = {said(fleet, rank)["last"] for rank in range(world)}
    job = await fleet.client.stop_job(job_id)
    job = await fleet.ended(job_id)
    assert {said(fleet, rank, 2)["first"] for rank in range(world)} == {last}, await fleet.story(job_id)
    summary = await fleet.client.job_summary(job_id)
    assert (summary.steps_redone, summary.restarts) == (0, 1)
    assert "not charged" in "".join(await fleet.events(job_id, "RestartDecided"))
    return job


async def test_a_drain_moves_a_job_without_a_loss(fleet):
    job_id = await submit(fleet, 2)
    await fleet.until(job_id, stepping(node="node-a"))
    fleet.start_agent("node-b")
    await fleet.node_until("node-b", lambda node: node.slots_used == 0)
    node = await fleet.client.drain_node("node-a", within=timedelta(seconds=60), reason="new disks")
    assert node.cordoned
    await moved_without_a_loss(fleet, job_id)
    assert said(fleet, 0)["reason"] == "node drain: new disks"


async def test_an_agent_is_upgraded_under_a_job_without_a_loss(fleet):
    """As docs/deploy/kubernetes.md says: drain, end the agent as the kubelet does, start the next, take it back."""
    pod = ("--drain-on-term", "--notice-deadline", "240s")
    fleet.kill("node-a")
    fleet.start_agent("node-a", 4, *pod)
    job_id = await submit(fleet, 2)
    await fleet.until(job_id, stepping(node="node-a"))
    fleet.start_agent("node-b")
    await fleet.node_until("node-b", lambda node: node.slots_used == 0)
    drain = [HOLDFAST, "node", "drain", "node-a", "--for-upgrade", "--server", fleet.target]
    process = await asyncio.create_subprocess_exec(*drain, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert (process.returncode, out.decode().splitlines()[-1]) == (0, "  holdfast node uncordon node-a")
    fleet.signal("node-a", signal.SIGTERM)
    assert await asyncio.to_thread(fleet.processes["node-a"].wait, PATIENCE_S) == 0
    fleet.start_agent("node-a", 4, *pod)
    assert not (await fleet.client.uncordon_node("node-a")).cordoned
    await fleet.until(job_id, stepping(attempt=2, node="node-b"))
    await fleet.client.stop_job(job_id)
    await fleet.ended(job_id)
    (last,) = {said(fleet, rank)["last"] for rank in range(2)}
    assert {said(fleet, rank, 2)["first"] for rank in range(2)} == {last}
    assert (await fleet.client.job_summary(job_id)).steps_redone == 0


async def test_a_drain_goes_on_when_coordinator_and_agent_are_killed(fleet):
    job_id = await submit(fleet, 2)
    await fleet.until(job_id, stepping(node="node-a"))
    fleet.start_agent("node-b")
    await fleet.node_until("node-b", lambda node: node.slots_used == 0)
    await fleet.client.drain_node("node-a", within=timedelta(seconds=60))
    fleet.kill("coordinator")
    fleet.kill("node-a")
    fleet.start_coordinator()
    fleet.start_agent("node-a")
    await moved_without_a_loss(fleet, job_id)


async def test_ranks_elsewhere_go_on_when_they_are_independent(fleet):
    fleet.start_agent("node-b", 1)
    await fleet.node_until("node-b", lambda node: node.capacity.slots == 1)
    job_id = await submit(fleet, 5, scope="rank")
    before = await fleet.until(job_id, stepping())
    (there,) = [worker.rank for worker in before.workers if worker.node == "node-b"]
    fleet.start_agent("node-c", 1)
    await fleet.client.drain_node("node-b", within=timedelta(seconds=60))
    job = await fleet.until(job_id, lambda job: running(job) and job.workers[there].node == "node-c")
    assert [worker.attempt for worker in job.workers] == [2 if rank == there else 1 for rank in range(5)]
    assert job.workers[there].resume_step == said(fleet, there)["last"]
    await fleet.client.stop_job(job_id, force=True)
    await fleet.ended(job_id)


async def test_a_spot_notice_in_a_file_moves_a_job_without_a_loss(fleet):
    notice = fleet.root / "notice"
    fleet.kill("node-a")
    fleet.start_agent("node-a", 4, "--notice-file", str(notice), "--notice-deadline", "60s")
    job_id = await submit(fleet, 2)
    await fleet.until(job_id, stepping(node="node-a"))
    fleet.start_agent("node-b")
    await fleet.node_until("node-b", lambda node: node.slots_used == 0)
    notice.write_text('{"action": "terminate"}')
    await moved_without_a_loss(fleet, job_id)
    assert said(fleet, 0)["reason"] == "spot notice: terminate"
    notice.unlink()
    fleet.kill("node-a")
    fleet.start_agent("node-a")
    await fleet.node_until("node-a", lambda node: not node.cordoned)


async def test_an_agent_that_drains_on_sigterm_leaves_nothing_behind(fleet):
    fleet.kill("node-a")
    fleet.start_agent("node-a", 4, "--drain-on-term", "--notice-deadline", "60s")
    job_id = await submit(fleet, 2)
    await fleet.until(job_id, stepping(node="node-a"))
    fleet.start_agent("node-b")
    await fleet.node_until("node-b", lambda node: node.slots_used == 0)
    fleet.signal("node-a", signal.SIGTERM)
    assert await asyncio.to_thread(fleet.processes["node-a"].wait, PATIENCE_S) == 0
    await moved_without_a_loss(fleet, job_id)
    assert said(fleet, 0)["reason"] == "its agent was told to end"


async def test_one_that_does_not_leave_is_stopped_in_time_and_has_its_checkpoint(fleet):
    job_id = await submit(fleet, 2, "stubborn", grace_ms=8_000)
    await fleet.until(job_id, stepping())
    await fleet.client.stop_job(job_id)
    job = await fleet.ended(job_id)
    assert [worker.last_exit.message for worker in job.workers] == ["killed by SIGTERM"] * 2
    (agreed,) = await fleet.events(job_id, "StopAgreed")
    assert agreed == f"job stop: all ranks stop at step {job.last_committed_step}"
    assert "it has not ended in time" in "".join(await fleet.events(job_id, "StopSignalled"))


async def test_what_finds_no_room_elsewhere_waits_for_it_with_its_checkpoint(fleet):
    job_id = await submit(fleet, 2)
    await fleet.until(job_id, stepping())
    await fleet.client.drain_node("node-a", within=timedelta(seconds=60))
    job = await fleet.until(job_id, lambda job: job.reason.startswith("waits for room"))
    assert (job.state, job.last_committed_step) == (job_pb2.JOB_STATE_PENDING, said(fleet, 0)["last"])
    await fleet.client.uncordon_node("node-a")
    await fleet.until(job_id, stepping(attempt=2))
    await fleet.client.stop_job(job_id)
    await fleet.ended(job_id)
    assert said(fleet, 0, 2)["first"] == said(fleet, 0)["last"]
