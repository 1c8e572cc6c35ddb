"""P4, P7, P9 with two coordinators over PostgreSQL: the leader is killed, and no worker notices."""

import asyncio
from contextlib import suppress

import pytest

from holdfast.client import Client
from holdfast.wire import Unreachable
from tests.e2e.fleet import PATIENCE_S, Fleet, committed, pids
from tests.e2e.test_survival import STEPS, assert_undisturbed
from tests.ports import free_port

pytestmark = pytest.mark.e2e


class Pair(Fleet):
    """Two coordinators over one database, and an agent that knows both."""

    def __init__(self, root, url):
        super().__init__(root)
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.target = ",".join(self.addresses)
        self._store = f"postgresql://holdfast@/{url.url.database}?host={url.url.query['host']}"

    def start_coordinators(self):
        for number, address in enumerate(self.addresses):
            options = ["--listen", address, "--state-dir", str(self.root / f"coordinator-{number}")]
            options += ["--store", self._store, "--lost-after", "100s"]
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
        fleet.start_coordinators()
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
