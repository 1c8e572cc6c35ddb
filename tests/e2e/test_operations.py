"""What docs/operations.md and docs/worker-contract.md promise, in one life of one job: real processes, real kills."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast
from holdfast.v1 import job_pb2
from tests.e2e.fleet import HOLDFAST, committed, manifest_steps, pids, running

pytestmark = pytest.mark.e2e

PLAIN = str(Path(__file__).parents[2] / "examples/plain_worker.py")
STEPS = 1_000_000


def backup(*arguments):
    done = subprocess.run(
        [HOLDFAST, "backup", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


async def test_a_worker_without_holdfast_outlives_a_coordinator_that_comes_from_a_backup(fleet):
    """Between backup and restore a rank died, so that the backup knows of neither the attempt nor its commits."""
    state, file = fleet.root / "coordinator", fleet.root / "backup.db"
    command = [sys.executable, "-I", "-S", PLAIN, str(STEPS), "0.01"]
    job_id = await fleet.submit_command(command, 2)
    job = await fleet.until(job_id, committed(10))
    backup("create", file, "--state-dir", state)
    assert file.stat().st_mode & 0o777 == 0o600
    os.kill(pids(job)[1], signal.SIGKILL)
    job = await fleet.until(job_id, lambda job: running(job) and job.workers[1].attempt == 2)
    await fleet.until(job_id, committed(job.last_committed_step + 20))
    known = manifest_steps(fleet.root / "checkpoints")[-1]
    assert known > job.last_committed_step

    fleet.kill("coordinator")
    shutil.rmtree(state)
    told = backup("restore", file, "--state-dir", state)
    assert f"job {job_id}: " in told.stderr
    fleet.start_coordinator()
    job = await fleet.until(job_id, lambda job: running(job) and job.workers[1].attempt > 2)
    assert job.workers[0].resume_step >= known, "what was committed since the backup is not lost"
    assert await fleet.events(job_id, "BackupRestored")
    await fleet.until(job_id, committed(job.workers[0].resume_step + 10))
    await fleet.client.stop_job(job_id)
    job = await fleet.ended(job_id)
    assert job.state == job_pb2.JOB_STATE_STOPPED
    assert "is committed" in job.reason, "it heard of the stop, and took its last checkpoint"
    place = fleet.root / "checkpoints" / job_id
    weights = holdfast.load(place)["weights"]
    assert weights == pytest.approx([1 - 0.99**job.last_committed_step] * 64)
    assert (place / "LATEST").read_text() == f"step-{job.last_committed_step:010}\n"
