"""Warm starts in a real fleet: a job that is killed again and again ends as if it had not been."""

import os
import signal
import sys

import numpy as np
import psutil
import pytest

from holdfast.v1 import job_pb2
from tests.e2e.fleet import committed, running
from tests.e2e.train import expected

pytestmark = pytest.mark.e2e

KILLS = 20


@pytest.mark.parametrize("scope", ["gang", "rank"])
async def test_workers_from_a_zygote_killed_again_and_again(fleet, scope):
    steps = 800
    job_id = await fleet.submit(scope=scope, steps=steps, preload=["numpy"])
    zygotes, step = set(), 0
    for kill in range(KILLS):

        def went_on(job, kill=kill, step=step):  # so that the backoff stays short
            return committed(step + 1)(job) and job.restarts == kill

        job = await fleet.until(job_id, went_on)
        step = job.last_committed_step
        node = await fleet.client.get_node("node-a")
        zygotes |= {pid for preload in node.preloads for pid in preload.pids}
        if kill == KILLS // 2:
            for pid in zygotes & set(psutil.pids()):
                os.kill(pid, signal.SIGKILL)
        os.kill(job.workers[kill % 2].pid, signal.SIGKILL)
    job = await fleet.until(job_id, lambda job: job.restarts == KILLS and running(job))
    node = await fleet.client.get_node("node-a")
    (preload,) = node.preloads
    assert (preload.job_id, list(preload.modules), preload.forks) == (job_id, ["numpy"], True), preload
    assert preload.started > KILLS // 2, preload  # those cold whose zygote was just dead; and heartbeats lag
    zygotes |= set(preload.pids)
    job = await fleet.succeeded(job_id)
    assert job.restarts == KILLS
    for rank in range(2):
        np.testing.assert_array_equal(np.load(fleet.out / f"{rank}.npy"), expected(rank, steps))
    assert not fleet.leftovers()
    assert len(zygotes) > 1
    psutil.wait_procs([psutil.Process(pid) for pid in zygotes if psutil.pid_exists(pid)], timeout=20)
    assert not [pid for pid in zygotes if psutil.pid_exists(pid)]


async def test_an_import_that_fails_is_the_programs_to_tell(fleet):
    go = fleet.root / "go"
    waits = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    job_id = await fleet.submit_command([sys.executable, "-c", waits], 2, preload=["numpy", "nosuch"])
    await fleet.until(job_id, running)

    reasons = []
    while not any(reasons):  # it comes with a heartbeat, and one may have been sent while it imported
        reasons = [preload.reason for preload in (await fleet.client.get_node("node-a")).preloads]
    assert reasons == ["import nosuch: ModuleNotFoundError: No module named 'nosuch'"]
    go.touch()
    job = await fleet.succeeded(job_id)
    assert (job.restarts, job.state) == (0, job_pb2.JOB_STATE_SUCCEEDED)
