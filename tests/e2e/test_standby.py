"""P4, P7, P9 with two coordinators over PostgreSQL: the leader is killed, and no worker notices."""

import asyncio
import subprocess
from contextlib import suppress

import pytest

from holdfast.client import Client
from holdfast.wire import Unreachable
from tests.agent.processes import until
from tests.e2e.fleet import HOLDFAST, PATIENCE_S, Fleet, committed, pids
from tests.e2e.test_survival import STEPS, assert_undisturbed
from tests.ports import free_port
from tests.postgres import written

pytestmark = pytest.mark.e2e


IN_A_MOUNT_NAMESPACE = ["unshare", "--mount", "--propagation", "private"]


def can_mount():
    done = subprocess.run(
        [*IN_A_MOUNT_NAMESPACE, "mount", "--bind", "/", "/"], capture_output=True, check=False
    )
    return done.returncode == 0


class Pair(Fleet):
    """Two coordinators over one database, and an agent that knows both."""

    def __init__(self, root, url):
        super().__init__(root)
        port = free_port()
        self.addresses = [f"127.0.0.{host}:{port}" for host in (2, 3)]
        self.target = ",".join(self.addresses)
        self._store = written(url)

    def start_coordinator(self, address):
        options = ["--listen", address, "--state-dir", str(self.root / f"coordinator-{address}")]
        options += ["--store", self._store, "--lost-after", "100s", "--insecure"]
        self._start(address, "coordinator", *options)

    async def leader(self):
        """The address of the one that serves."""

        async with asyncio.timeout(PATIENCE_S):
            while True:
                for address in self.addresses:
                    with suppress(Unreachable):
                        async with Client(address) as client:
                            await client.get_node("node-a")
                            return address


async def test_the_leader_killed_with_a_standby_there(tmp_path, postgres):
    fleet = Pair(tmp_path, postgres.make_database())
    await fleet.open()
    try:
        for address in fleet.addresses:
            fleet.start_coordinator(address)
        fleet.start_agent()
        job_id = await fleet.submit()
        before = await fleet.until(job_id, committed(10))
        leader = await fleet.leader()
        fleet.kill(leader)
        after = await fleet.succeeded(job_id)
        assert await fleet.leader() != leader
        assert pids(after) == pids(before)
        assert after.restarts == 0
        assert_undisturbed(fleet, steps=STEPS)
        assert not fleet.leftovers()
        for log in tmp_path.glob("127.0.0.1:*.log"):
            assert "Traceback" not in log.read_text()
    finally:
        await fleet.close()


class Named(Pair):
    """The agent knows a name, which leads to one coordinator at a time."""

    NAME = "coordinator.test"

    def __init__(self, root, url):
        super().__init__(root, url)
        self._hosts = root / "hosts"

    def lead_to(self, address):
        """What a name server does some time after a takeover. The file stays the same, for it is mounted."""
        self._hosts.write_text(f"{address.rpartition(':')[0]} {self.NAME}\n")

    def start_agent(self, name="node-a"):
        target = f"{self.NAME}:{self.addresses[0].rpartition(':')[2]}"
        self._start(
            name, "agent", "--coordinator", target, "--name", name, "--state-dir", str(self.root / name)
        )

    def inside(self, name):
        if name in self.addresses:
            return []
        return [
            *IN_A_MOUNT_NAMESPACE,
            "sh",
            "-c",
            f'mount --bind {self._hosts} /etc/hosts && exec "$@"',
            "sh",
        ]


@pytest.mark.skipif(not can_mount(), reason="this machine lets the test mount nothing")
async def test_a_name_that_led_to_a_standby_and_then_to_the_leader(tmp_path, postgres):
    fleet = Named(tmp_path, postgres.make_database())
    await fleet.open()
    try:
        first, second = fleet.addresses
        fleet.lead_to(first)
        fleet.start_coordinator(first)
        fleet.start_agent()
        job_id = await fleet.submit(steps=100_000)
        before = await fleet.until(job_id, committed(10))
        fleet.start_coordinator(second)
        fleet.kill(first)
        assert await fleet.leader() == second
        fleet.start_coordinator(first)
        await until(lambda: "can't serve now" in (tmp_path / "node-a.log").read_text())
        fleet.lead_to(second)
        after = await fleet.until(job_id, committed(before.last_committed_step + 100))
        assert (pids(after), after.restarts) == (pids(before), 0)
    finally:
        await fleet.close()


async def test_a_state_that_is_moved_into_the_database_while_workers_run(fleet, postgres):
    store = written(postgres.make_database())
    job_id = await fleet.submit()
    before = await fleet.until(job_id, committed(10))
    fleet.kill("coordinator")
    move = [HOLDFAST, "backup", "move", "--state-dir", str(fleet.root / "coordinator"), "--store", store]
    moved = subprocess.run(move, capture_output=True, text=True, check=True)
    assert moved.stdout == f"holdfast coordinator --store '{store}'\n"
    fleet.start_coordinator("--store", store)
    after = await fleet.succeeded(job_id)
    assert (pids(after), after.restarts) == (pids(before), 0)
    assert after.last_committed_step > before.last_committed_step
    assert_undisturbed(fleet)
