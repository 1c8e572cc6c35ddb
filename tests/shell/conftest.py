"""Workers, shims and agents as real processes. Whatever a test starts is killed after it."""

import asyncio
import os

import pytest

from holdfast.v1 import job_pb2
from holdfast_agent import convert
from holdfast_agent.agent import Agent, AgentConfig
from holdfast_agent.core import Key, WorkerEnded, WorkerSpawned
from holdfast_agent.crew import Crew, Order
from holdfast_agent.workdir import StateDir
from tests.agent.fake_coordinator import FakeCoordinator, soon
from tests.agent.processes import MARK, kill_all


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """Carried by every process that the test starts."""
    mark = str(tmp_path)
    monkeypatch.setenv(MARK, mark)
    yield mark
    kill_all(mark)


@pytest.fixture
async def house(tmp_path, mark):
    """A crew of workers without an agent around it."""
    house = House(tmp_path)
    yield house
    await house.close(workers=True)


class House:
    def __init__(self, tmp_path, *, foreground=False):
        self.path = tmp_path / "state"
        self.state_dir = StateDir(self.path)
        self._foreground = foreground
        self._events = asyncio.Queue()
        self._open()

    def _open(self):
        self.crew = Crew(self.state_dir, foreground=self._foreground, report=self._events.put_nowait)
        self.crew.start()

    def start(
        self, *argv, job_id="job1", rank=0, attempt=1, grace_ms=10_000, cwd="/", env=(), preload=(), spares=0
    ):
        """Start a worker; returns its directory."""
        key = Key(job_id, rank, attempt)
        attempt_dir = self.state_dir.attempt(key)
        env = {**os.environ, "HOLDFAST_HEARTBEAT_FILE": str(attempt_dir.heartbeat), **dict(env)}
        begin = {"argv": list(argv), "env": env, "cwd": str(cwd), "grace_ms": grace_ms}
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

    async def ended(self):
        """The next end: (code, signal, message, never ran)."""
        while not isinstance(event := await self.event(), WorkerEnded):
            pass
        found = event.ended.exit
        return found.status.code, found.status.signal, found.status.message, found.never_ran

    def kill(self, *, force=True, rank=0, attempt=1):
        self.crew.signal(Key("job1", rank, attempt), force=force)

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
