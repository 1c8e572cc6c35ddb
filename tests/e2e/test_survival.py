"""P1 to P6, P8, P9 with real processes and real SIGKILLs: what dies, and that the job does not."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from holdfast.v1 import job_pb2, node_pb2
from tests.e2e.fleet import HOLDFAST, PATIENCE_S, TRAIN, committed, manifest_steps, pids, running
from tests.e2e.train import expected

pytestmark = pytest.mark.e2e

STEPS = 300


def assert_undisturbed(fleet, world=2, steps=STEPS):
    for rank in range(world):
        np.testing.assert_array_equal(np.load(fleet.out / f"{rank}.npy"), expected(rank, steps))


@pytest.mark.parametrize("scope", ["gang", "rank"])
async def test_a_worker_killed_while_stepping(fleet, scope):
    job_id = await fleet.submit(scope=scope)
    job = await fleet.until(job_id, committed(10))
    os.kill(job.workers[1].pid, signal.SIGKILL)
    job = await fleet.succeeded(job_id)
    assert job.restarts == 1
    assert job.workers[1].attempt == 2
    assert job.workers[0].attempt == (2 if scope == "gang" else 1)
    assert_undisturbed(fleet)
    assert not fleet.leftovers()


@pytest.mark.parametrize("scope", ["gang", "rank"])
async def test_a_worker_killed_between_prepare_and_ack(fleet, scope):
    job_id = await fleet.submit("die-after-checkpoint:1:30", scope=scope)
    job = await fleet.succeeded(job_id)
    assert job.restarts == 1
    assert_undisturbed(fleet)
    steps = manifest_steps(fleet.root / "checkpoints")
    assert steps[-1] == STEPS
    assert len(steps) == len(set(steps)) * (1 if scope == "gang" else 2)


async def test_the_agent_killed_and_started_again(fleet):
    job_id = await fleet.submit()
    before = await fleet.until(job_id, committed(10))
    fleet.kill("node-a")
    fleet.start_agent()
    after = await fleet.succeeded(job_id)
    assert pids(after) == pids(before)
    assert after.restarts == 0
    assert_undisturbed(fleet)


async def test_an_exit_while_the_agent_is_away_is_told_with_its_true_status(fleet):
    flag = fleet.root / "flag"
    job_id = await fleet.submit(f"exit:1:7:{flag}", steps=400)
    job = await fleet.until(job_id, committed(10))
    fleet.kill("node-a")
    flag.touch()
    psutil.wait_procs([psutil.Process(job.workers[1].pid)], timeout=PATIENCE_S)
    flag.unlink()
    fleet.start_agent()
    await fleet.until(job_id, lambda job: job.restarts == 1 and running(job))
    assert "exit code 7" in "\n".join(await fleet.events(job_id, "WorkerExited"))


async def test_the_coordinator_killed_and_started_again(fleet):
    job_id = await fleet.submit()
    before = await fleet.until(job_id, committed(10))
    fleet.kill("coordinator")
    fleet.start_coordinator()
    after = await fleet.succeeded(job_id)
    assert pids(after) == pids(before)
    assert after.restarts == 0
    assert_undisturbed(fleet)


async def test_agent_and_coordinator_killed_together(fleet):
    job_id = await fleet.submit()
    before = await fleet.until(job_id, committed(10))
    fleet.kill("coordinator")
    fleet.kill("node-a")
    fleet.start_agent()
    fleet.start_coordinator()
    after = await fleet.succeeded(job_id)
    assert pids(after) == pids(before)
    assert after.restarts == 0
    assert_undisturbed(fleet)


async def test_an_agent_stopped_beyond_its_lease_is_fenced(nervous_fleet):
    fleet = nervous_fleet
    job_id = await fleet.submit(steps=1_000)
    before = await fleet.until(job_id, committed(10))
    fleet.signal("node-a", signal.SIGSTOP)
    fleet.start_agent("node-b")
    moved = await fleet.until(job_id, lambda job: {w.node for w in job.workers} == {"node-b"})
    old = [psutil.Process(pid) for pid in pids(before)]
    assert all(process.is_running() for process in old)  # they step on, and prepare, and must not be heard
    await fleet.until(job_id, committed(moved.last_committed_step + 10))
    fleet.signal("node-a", signal.SIGCONT)
    _, alive = await asyncio.to_thread(psutil.wait_procs, old, PATIENCE_S)
    assert not alive
    job = await fleet.until(job_id, committed(moved.last_committed_step + 100))
    checkpoints = [c async for c in fleet.client.list_checkpoints(job_id)]
    newer = [c.attempt for c in checkpoints if c.step > moved.last_committed_step]
    assert set(newer) == {2}
    assert job.restarts == 1
    job = await fleet.client.stop_job(job_id, force=True)
    await fleet.ended(job_id)
    assert not fleet.leftovers()


async def test_a_pod_that_dies_is_known_by_its_stream(fleet):
    """Its lease is that of any node, a hundred seconds, and outlasts this test."""
    fleet.start_agent("node-b", 4, "--workers-end-with-agent")
    for name in ("node-a", "node-b"):
        await fleet.node_until(name, lambda node: node.state == node_pb2.NODE_STATE_READY)
    await fleet.client.cordon_node("node-a")
    job_id = await fleet.submit()
    await fleet.until(job_id, committed(10))
    await fleet.client.uncordon_node("node-a")
    fleet.kill("node-b")
    job = await fleet.succeeded(job_id)
    assert {worker.node for worker in job.workers} == {"node-a"}
    assert job.restarts == 1
    assert_undisturbed(fleet)
    lost = (
        "node node-b was lost: its stream broke, and its workers end with its agent, which did not come back"
    )
    assert [told.endswith(lost) for told in await fleet.events(job_id, "WorkerLost")] == [True, True]


async def test_a_worker_that_forks_and_dies_leaves_nobody(fleet):
    script = "sleep 1000 & setsid sleep 1000 & (setsid sh -c 'sleep 1000 & exec sleep 1000' &) ; exit 3"
    job_id = await fleet.submit_command(["sh", "-c", script], 1, restart=job_pb2.RestartPolicy(budget=1))
    job = await fleet.ended(job_id)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert "exit code 3" in job.reason
    assert not fleet.leftovers()


async def test_a_stopped_job_stops_all_and_says_who(fleet):
    job_id = await fleet.submit_command(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], 2)
    await fleet.until(job_id, running)
    await fleet.client.stop_job(job_id)
    job = await fleet.ended(job_id)
    assert job.state == job_pb2.JOB_STATE_STOPPED
    assert [w.last_exit.message for w in job.workers] == ["killed by SIGKILL"] * 2
    assert not fleet.leftovers()


async def test_a_job_that_fits_nowhere_waits_and_says_what_is_short(fleet):
    job_id = await fleet.submit(world=6)
    job = await fleet.until(job_id, lambda job: "short of" in job.reason)
    assert job.state == job_pb2.JOB_STATE_PENDING
    assert job.reason == "waits for room: short of slots: needs 6, 4 free on 1 node"
    fleet.start_agent("node-b", slots=2)
    await fleet.succeeded(job_id)
    assert_undisturbed(fleet, world=6)


def run_in(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / "run.log").open("ab") as log:
        return subprocess.Popen(
            [HOLDFAST, "run", *arguments], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


async def test_the_whole_tree_killed_and_resumed(tmp_path):
    (tmp_path / "out").mkdir()
    steps = 300
    train = [sys.executable, TRAIN, str(steps), str(tmp_path / "out")]
    run = run_in(tmp_path, "-n", "2", "--name", "job", "--", *train)
    checkpoints = tmp_path / ".holdfast" / "runs" / "job" / "checkpoints"
    async with asyncio.timeout(PATIENCE_S):
        while not (checkpoints.exists() and manifest_steps(checkpoints)):
            assert run.poll() is None
            await asyncio.sleep(0.02)
    workers = [psutil.Process(int(p.read_text())) for p in (tmp_path / "out").glob("pid-*")]
    assert len(workers) == 2
    run.kill()
    run.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, workers, PATIENCE_S)
    assert not alive
    resumed_from = manifest_steps(checkpoints)[-1]
    again = await asyncio.to_thread(run_in, tmp_path, "--resume")
    assert await asyncio.to_thread(again.wait, PATIENCE_S) == 0, (tmp_path / "run.log").read_text()
    assert 10 <= resumed_from < steps
    for rank in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / "out" / f"{rank}.npy"), expected(rank, steps))
