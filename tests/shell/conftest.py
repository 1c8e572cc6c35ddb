"""Workers, shims and agents as real processes. Whatever a test starts is killed after it."""

import asyncio
import os

import pytest

from holdfast.v1 import job_pb2
from holdfast_agent import convert
from holdfast_agent.agent import Agent, AgentConfig
from holdfast_agent.core import Key, Stop, WorkerEnded, WorkerSpawned
from holdfast_agent.crew import Crew, Order
from holdfast_agent.groups import AUTO, Groups
from holdfast_agent.node import boot_id
from holdfast_agent.workdir import StateDir
from tests.agent.fake_coordinator import FakeCoordinator, soon
from tests.agent.processes import MARK, kill_all, remove_groups


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """Carried by every process that the test starts."""
    mark = str(tmp_path)
    monkeypatch.setenv(MARK, mark)
    yield mark
    kill_all(mark)
    remove_groups(tmp_path)


@pytest.fixture
async def house(tmp_path, mark):
    """A crew of workers without an agent around it."""
    house = House(tmp_path)
    yield house
    await house.close(workers=True)


class House:
    def __init__(self, tmp_path, *, foreground=False, cgroup=AUTO, limit_memory=False):
        self.path = tmp_path / "state"
        self.state_dir = StateDir(self.path)
        self._foreground = foreground
        self._cgroup, self._limit_memory = cgroup, limit_memory
        self._closed = False
        self._events = asyncio.Queue()
        self._open()

    def _open(self):
        self.groups = Groups(self.state_dir.instance_id, self._cgroup, limit_memory=self._limit_memory)
        self.crew = Crew(
            self.state_dir,
            foreground=self._foreground,
            report=self._events.put_nowait,
            groups=self.groups,
            boot_id=boot_id(),
        )
        self.crew.start()

    def start(
        self,
        *argv,
        job_id="job1",
        rank=0,
        attempt=1,
        grace_ms=10_000,
        cwd="/",
        env=(),
        memory=0,
        preload=(),
        spares=0,
        **more,
    ):
        """Start a worker; returns its directory. `more` goes into start.json."""
        key = Key(job_id, rank, attempt)
        attempt_dir = self.state_dir.attempt(key)
        env = {**os.environ, "HOLDFAST_HEARTBEAT_FILE": str(attempt_dir.heartbeat), **dict(env)}
        begin = {
            "argv": list(argv),
            "env": env,
            "cwd": str(cwd),
            "grace_ms": grace_ms,
            "boot_id": boot_id(),
            "cgroup": self.groups.place(key, memory),
            **more,
        }
        spec = job_pb2.JobSpec(preload=preload, spares=spares)
        self.crew.spawn(Order(key, begin, b"", warmth=convert.warmth(spec, begin) if preload else None))
        return attempt_dir.path

    def sh(self, script, **more):
        return self.start("sh", "-c", script, **more)

    async def event(self):
        """The next thing that became of a worker."""
        return await soon(self._events.get())

    async def spawned(self):
        event = await self.event()
        assert isinstance(event, WorkerSpawned)
        return event

    async def exit(self):
        """The next end, as the coordinator is told of it."""
        while not isinstance(event := await self.event(), WorkerEnded):
            pass
        return event.ended.exit

    async def ended(self):
        """The next end: (code, signal, message, never ran)."""
        found = await self.exit()
        return found.status.code, found.status.signal, found.status.message, found.never_ran

    def kill(self, *, force=True, rank=0, attempt=1):
        self.crew.signal(Key("job1", rank, attempt), Stop.FORCE if force else Stop.GRACE)

    def preload(self, job_id="job1"):
        """What is preloaded for a job."""
        (found,) = [found for found in self.crew.warm.preloads() if found.job_id == job_id]
        return found

    async def restart(self):
        """What is found by an agent that comes after one that was killed: workers and fences."""
        await self.crew.stop(workers=False)
        self._events = asyncio.Queue()
        self._open()
        return self.crew.recover()

    async def close(self, *, workers):
        """Let go of it, as an agent that ends; the second time does nothing."""
        if self._closed:
            return
        self._closed = True
        await self.crew.stop(workers=workers)
        self.state_dir.close()


@pytest.fixture
async def coordinator(tmp_path):
    coordinator = FakeCoordinator(f"unix:{tmp_path}/c.sock")
    await coordinator.start()
    yield coordinator
    await coordinator.stop()


@pytest.fixture
async def agent(tmp_path, mark, coordinator):
    """An agent in this process."""
    config = AgentConfig(coordinator.target, tmp_path / "state", name="node-a", slots=4)
    agent = Agent(config)
    running = asyncio.create_task(agent.run())
    yield agent
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await agent.stop(workers=True)
