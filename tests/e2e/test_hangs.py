"""Hangs of real processes: noticed by the step, whatever else still moves; told with their stack; restarted."""

import os
import signal
import sys
from pathlib import Path

import pytest

from holdfast.v1 import job_pb2
from tests.e2e.fleet import running

pytestmark = pytest.mark.e2e

HANGING = str(Path(__file__).with_name("hanging.py"))


def policy(action="restart", **limits_s):
    made = job_pb2.HangPolicy(action=job_pb2.HangAction.Value(f"HANG_ACTION_{action.upper()}"))
    for section, seconds in limits_s.items():
        made.limits[section].FromSeconds(seconds)
    return made


async def submit(fleet, how, steps=200, scope="gang", **given):
    command = [sys.executable, HANGING, str(steps), how]
    return await fleet.submit_command(command, 2, scope, **given)


async def lines(fleet, job_id, kind):
    return [event async for event in fleet.client.list_events(job_id) if event.kind == kind]


async def test_a_lock_held_for_ever_is_told_with_its_stack_though_a_thread_beats_on(fleet):
    job_id = await submit(fleet, "lock", hang=policy(step=2))
    job = await fleet.succeeded(job_id)
    told = await lines(fleet, job_id, "WorkerHung")
    culprit = next(event for event in told if event.rank == 1)
    assert "rank 1 on node node-a hung in section step for" in culprit.message
    assert "(limit 2 s, set in the spec) after step 10, in stuck_here (hanging.py:" in culprit.message
    assert '"MainThread"' in culprit.evidence
    assert "stuck_here (hanging.py" in culprit.evidence
    assert "touch_for_ever (hanging.py" in culprit.evidence
    assert "native state:" in culprit.evidence
    assert "rank 1 begins" in culprit.evidence
    assert HANGING not in culprit.evidence  # a command line may hold a secret
    assert job.restarts == 1
    (exited,) = [event for event in await lines(fleet, job_id, "WorkerExited") if event.rank == 1][:1]
    assert exited.message.startswith("killed by SIGKILL, stopped because it hung in section step")
    assert not fleet.leftovers()


async def test_a_stopped_worker_is_told_as_such_and_restarted_alone(fleet):
    job_id = await submit(fleet, "none", steps=1_500, scope="rank", hang=policy(step=2))
    job = await fleet.until(job_id, lambda job: running(job) and job.workers[0].step >= 10)
    os.kill(job.workers[0].pid, signal.SIGSTOP)
    job = await fleet.succeeded(job_id)
    (told,) = await lines(fleet, job_id, "WorkerHung")
    assert (told.rank, told.message.endswith(", stopped by a signal")) == (0, True)
    assert "T (stopped)" in told.evidence
    assert [worker.attempt for worker in job.workers] == [2, 1]
    assert not fleet.leftovers()


async def test_a_hang_is_shown_until_it_is_over_whoever_was_away_when_it_was(fleet):
    flag = fleet.root / "flag"
    job_id = await submit(fleet, f"flag:{flag}", steps=50_000, hang=policy("notify", step=2))
    job = await fleet.until(job_id, lambda job: job.workers[1].HasField("hang"))
    hang = job.workers[1].hang
    assert (hang.section, hang.limit.seconds, hang.learned) == ("step", 2, False)
    fleet.kill("coordinator")
    fleet.kill("node-a")
    flag.touch()
    fleet.start_coordinator()
    fleet.start_agent()
    job = await fleet.until(job_id, lambda job: not job.workers[1].HasField("hang"))
    (over,) = await lines(fleet, job_id, "HangOver")
    assert over.message.startswith("rank 1 on node node-a moves again, after ")
    assert job.restarts == 0
    await fleet.client.stop_job(job_id, force=True)
    await fleet.ended(job_id)


async def test_a_section_that_takes_longer_than_any_step_is_no_hang(fleet):
    job_id = await submit(fleet, "long:5", hang=policy(setup=60, step=2, eval=60))
    job = await fleet.succeeded(job_id)
    assert await lines(fleet, job_id, "WorkerHung") == []
    assert job.restarts == 0
