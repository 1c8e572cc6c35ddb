"""Logs of real workers: followed while everything around them is killed, and read when their node is gone."""

import asyncio
import glob
import re
import signal
import subprocess
import sys

import pytest

from holdfast.v1 import job_pb2
from tests.e2e.fleet import HOLDFAST, PATIENCE_S, running

pytestmark = pytest.mark.e2e

COUNTS = """
import os, sys, time
path = sys.argv[1]
n = 0
while not os.path.exists(path + "/stop"):
    n += 1
    print(os.environ["HOLDFAST_ATTEMPT"], os.environ["RANK"], n, flush=True)
    if n % 100 == 0:
        time.sleep(0.01)
"""


async def follow(fleet, job_id, into):
    async for chunk in fleet.client.stream_logs(job_id, follow=True):
        assert not chunk.skipped
        assert not chunk.HasField("away"), chunk.away.reason
        at = chunk.cursor
        place = into.setdefault((at.rank, at.attempt), bytearray())
        assert at.offset == len(place)
        place += chunk.data


async def more(into, place, than):
    async with asyncio.timeout(PATIENCE_S):
        while len(into.get(place, b"")) <= than:
            await asyncio.sleep(0.01)
    return len(into[place])


def assert_whole(said, rank, attempt):
    lines = bytes(said).decode().split("\n")
    assert lines.pop() == ""
    assert lines == [f"{attempt} {rank} {n}" for n in range(1, len(lines) + 1)]


async def test_followed_while_agent_coordinator_and_worker_are_killed(fleet):
    job_id = await fleet.submit_command([sys.executable, "-c", COUNTS, str(fleet.out)], world=2)
    job = await fleet.until(job_id, running)
    said = {}
    following = asyncio.create_task(follow(fleet, job_id, said))
    seen = await more(said, (0, 1), 0)
    fleet.kill("node-a")
    fleet.start_agent()
    seen = await more(said, (0, 1), seen + 100_000)
    fleet.kill("coordinator")
    fleet.start_coordinator()
    await more(said, (0, 1), seen + 100_000)
    subprocess.run(["kill", "-9", str(job.workers[1].pid)], check=True)
    await more(said, (1, 2), 10_000)
    (fleet.out / "stop").touch()
    await fleet.succeeded(job_id)
    await asyncio.wait_for(following, PATIENCE_S)
    assert set(said) == {(0, 1), (1, 1), (0, 2), (1, 2)}
    for (rank, attempt), data in said.items():
        if attempt == 1:  # a SIGKILL may cut the last line
            data = data[: data.rfind(b"\n") + 1]
        assert_whole(data, rank, attempt)
        log = fleet.root / f"node-a/jobs/{job_id}/{rank}-{attempt}/stdout.log"
        assert log.read_bytes().startswith(data)


def cli(fleet, *words):
    command = [HOLDFAST, "job", "logs", "--server", fleet.target, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


async def test_of_a_node_that_is_gone_the_archive_has_them(fleet):
    said = "print('from', __import__('os').environ['RANK'], flush=True); import sys; print('oops', file=sys.stderr)"
    job_id = await fleet.submit_command([sys.executable, "-c", said], world=2)
    await fleet.succeeded(job_id)
    logs = fleet.root / "checkpoints" / job_id / "logs"
    async with asyncio.timeout(PATIENCE_S):
        while len(glob.glob(f"{logs}/[0-9]*/*.log.gz")) < 4:  # not those that are only being made
            await asyncio.sleep(0.05)
    fleet.signal("node-a", signal.SIGTERM)
    fleet.processes["node-a"].wait()
    found = await asyncio.to_thread(cli, fleet, job_id)
    assert (found.stdout, found.stderr) == ("[0] from 0\n[1] from 1\n", "[0] oops\n[1] oops\n")
    assert found.returncode == 0
    only = await asyncio.to_thread(cli, fleet, job_id, "--rank", "1", "--grep", "fr.m", "--tail", "1")
    assert (only.stdout, only.stderr, only.returncode) == ("[1] from 1\n", "", 0)


async def test_what_can_not_be_had_is_said_with_its_reason(fleet):
    job_id = await fleet.submit_command(["sleep", "1000"], world=1)
    await fleet.until(job_id, running)
    fleet.kill("node-a")
    found = await asyncio.to_thread(cli, fleet, job_id)
    assert found.returncode == 3
    assert re.fullmatch(
        "holdfast: what rank 0 wrote on node-a can't be read: its agent is not connected, "
        f"and there is no archive of it in .*/checkpoints/{job_id}/logs\n",
        found.stderr,
    )
    fleet.start_agent()
    await fleet.client.stop_job(job_id, force=True)
    await fleet.ended(job_id)


async def test_metrics_come_from_the_log_of_a_program_that_uses_no_library(fleet):
    script = "for n in $(seq 1 40); do echo step $n loss=0.$n; sleep 0.01; done; printf 'step 41 loss=0.5'"
    job_id = await fleet.submit_command(
        ["sh", "-c", script],
        world=2,
        log_metrics={"step": r"step (\d+)", "loss": "loss=([0-9.]+)"},
    )
    job = await fleet.succeeded(job_id)
    for worker in job.workers:
        assert (worker.step, dict(worker.metrics)) == (41, {"loss": 0.5})
    summary = await fleet.client.job_summary(job_id)
    assert summary.steps == 41
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
