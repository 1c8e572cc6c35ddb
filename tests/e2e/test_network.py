"""P2, P4 on a network that is cut: packets vanish, and neither end is told. Two hosts, each a network namespace."""

import asyncio
import os
import shutil
import subprocess

import psutil
import pytest
from google.protobuf.json_format import Parse

from holdfast.v1 import job_pb2
from tests.e2e.fleet import HOLDFAST, PATIENCE_S, Fleet, committed, pids

pytestmark = pytest.mark.e2e

HUB, FAR = f"holdfast-hub-{os.getpid()}", f"holdfast-far-{os.getpid()}"
HUB_ADDRESS, FAR_ADDRESS = "10.99.0.1", "10.99.0.2"
LOST_AFTER_S = 8


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


def make_hosts():
    """Make two hosts with a cable between them."""
    for host in (HUB, FAR):
        ip("netns", "add", host)
        ip("-n", host, "link", "set", "lo", "up")
    ip("link", "add", "cable", "netns", HUB, "type", "veth", "peer", "cable", "netns", FAR)
    for host, address in ((HUB, HUB_ADDRESS), (FAR, FAR_ADDRESS)):
        ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
        ip("-n", host, "link", "set", "cable", "up")


def remove_hosts():
    for host in (HUB, FAR):
        subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)


def can_make_hosts():
    if shutil.which("ip") is None:
        return False
    try:
        make_hosts()
    except subprocess.CalledProcessError:
        return False
    finally:
        remove_hosts()
    return True


class TwoHosts(Fleet):
    """The coordinator and whoever is near it on one host, the agent `far` on the other."""

    def __init__(self, root):
        super().__init__(root, lost_after=f"{LOST_AFTER_S}s")
        self.target = f"{HUB_ADDRESS}:7070"

    def inside(self, name):
        return ["ip", "netns", "exec", FAR if name == "far" else HUB]

    def start_coordinator(self):
        state = str(self.root / "coordinator")
        options = [
            "--listen",
            self.target,
            "--insecure",
            "--state-dir",
            state,
            "--lost-after",
            self._lost_after,
        ]
        self._start("coordinator", "coordinator", *options)

    def cut(self):
        ip("-n", HUB, "link", "set", "cable", "down")

    def mend(self):
        ip("-n", HUB, "link", "set", "cable", "up")

    async def holdfast(self, *words):
        """What a user on the hub types."""
        command = [*self.inside("user"), HOLDFAST, *words, "--server", self.target]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    async def job(self, job_id, condition):
        """Look at a job until it is as wanted."""
        job = None
        async with asyncio.timeout(PATIENCE_S):
            while job is None or not condition(job):
                seen = await self.holdfast("job", "get", job_id, "-o", "json")
                job = Parse(seen, job_pb2.Job()) if seen else None
        return job


@pytest.fixture
async def hosts(tmp_path):
    make_hosts()
    fleet = TwoHosts(tmp_path)
    await fleet.open()
    try:
        yield fleet
    finally:
        await fleet.close()
        remove_hosts()


@pytest.mark.skipif(not can_make_hosts(), reason="this machine lets the test make no network namespaces")
async def test_a_cut_is_survived_and_a_long_one_is_fenced(hosts):
    (hosts.root / "job.yaml").write_text(hosts.job_file(world=2, steps=100_000))
    hosts.start_coordinator()
    hosts.start_agent("far")
    job_id = ""
    while not job_id:  # until the coordinator is up
        job_id = (await hosts.holdfast("job", "submit", "-f", str(hosts.root / "job.yaml"))).strip()
    before = await hosts.job(job_id, committed(10))
    assert {worker.node for worker in before.workers} == {"far"}

    hosts.cut()
    assert await hosts.holdfast("node", "list")  # takes a while, less than the lease
    hosts.mend()
    later = await hosts.job(job_id, committed(before.last_committed_step + 20))
    assert (pids(later), later.restarts) == (pids(before), 0)

    hosts.start_agent("near")
    hosts.cut()
    moved = await hosts.job(
        job_id, lambda job: {w.node for w in job.workers} == {"near"} and committed(0)(job)
    )
    old = [psutil.Process(pid) for pid in pids(before)]
    assert all(process.is_running() for process in old)  # alone, and not the worse for it
    await hosts.job(job_id, committed(moved.last_committed_step + 10))
    hosts.mend()
    _, alive = await asyncio.to_thread(psutil.wait_procs, old, PATIENCE_S)
    assert not alive
    done = await hosts.job(job_id, committed(moved.last_committed_step + 20))
    assert done.restarts == 1
    assert {worker.attempt for worker in done.workers} == {2}
    await hosts.holdfast("job", "stop", "--force", "--wait", job_id)
    assert not hosts.leftovers()
