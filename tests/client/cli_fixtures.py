"""A real coordinator, an agent that does what a test tells it, and the command line in processes of its own."""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast import wire
from holdfast.client import Client
from holdfast.v1 import agent_pb2, agent_pb2_grpc, job_pb2, worker_pb2
from holdfast_coordinator.app import Coordinator, CoordinatorConfig
from tests.ports import free_port

PATIENCE = 60


class House:
    """A coordinator that can be stopped and started again at the same address."""

    def __init__(self, state_dir, **settings):
        self._state_dir = state_dir
        self._settings = settings
        self._coordinator = None
        self.target = f"127.0.0.1:{free_port()}"

    async def start(self):
        self._coordinator = Coordinator(CoordinatorConfig(self.target, self._state_dir, **self._settings))
        self.target = await self._coordinator.start()

    async def stop(self):
        if self._coordinator is not None:
            await self._coordinator.stop()
            self._coordinator = None


class ScriptedAgent:
    """Joins as node n1. It starts what it is told to; workers end when the test says so, or when they are stopped."""

    def __init__(self, target, *, slots=4):
        self._target = target
        self._slots = slots
        self._outbox = asyncio.Queue()
        self._epoch = 0
        self._running = {}  # WorkerKey as bytes -> the key
        self._exits = {}  # of the same, until released
        self.logs = {}  # (rank, attempt, stream) -> bytes
        self._hanging = set()  # pushes that were made to follow
        self.joined = asyncio.Event()
        self._work = [asyncio.create_task(self._live()), asyncio.create_task(self._beat())]

    async def close(self):
        for task in (*self._work, *self._hanging):
            task.cancel()
        await asyncio.gather(*self._work, *self._hanging, return_exceptions=True)

    async def _beat(self):
        while True:
            await asyncio.sleep(1)
            self._say(heartbeat=agent_pb2.Heartbeat())

    def progress(self, rank, step, **metrics):
        beat = agent_pb2.Heartbeat()
        progress = agent_pb2.Progress(step=step, steps_done=step, section="step", metrics=metrics)
        beat.workers.add(key=self._key(rank), progress=progress)
        self._say(heartbeat=beat)

    def prepare(self, rank, step, cursor):
        """A shard of a checkpoint."""
        file = f"rank-{rank:05}.attempt-1.safetensors"
        shard = worker_pb2.Shard(rank=rank, file=file, size_bytes=1, digest="0" * 16, cursor=cursor)
        self._say(shard_prepared=agent_pb2.ShardPrepared(key=self._key(rank), step=step, shard=shard))

    def exit(self, rank, code=0, message="", **progress):
        status = job_pb2.ExitStatus(code=code, message=message or f"exit code {code}")
        self._exit(self._key(rank), status, agent_pb2.Progress(**progress) if progress else None)

    def _key(self, rank):
        return next(key for key in self._running.values() if key.rank == rank)

    def _exit(self, key, status, progress=None):
        name = key.SerializeToString(deterministic=True)
        self._running.pop(name, None)
        self._exits[name] = agent_pb2.WorkerExited(
            key=key, exit=agent_pb2.Exit(status=status, progress=progress)
        )
        self._say(worker_exited=self._exits[name])

    def _say(self, **message):
        self._outbox.put_nowait(agent_pb2.AgentMessage(epoch=self._epoch, **message))

    async def _live(self):
        async with wire.open_channel(self._target) as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)
            while True:
                try:
                    async for message in stub.Connect(self._speak()):
                        self._hear(message, stub)
                except wire.grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)  # between tries, as agents do

    async def _speak(self):
        self._outbox = outbox = asyncio.Queue()
        hello = agent_pb2.Hello(node="n1", instance_id="i1", address="127.0.0.1", ports=range(29500, 29510))
        hello.capacity.slots = self._slots
        hello.capacity.cpus = 8
        hello.capacity.memory_bytes = 16 * 2**30
        for key in self._running.values():
            hello.inventory.add(key=key, pid=1000 + key.rank, pid_start_time=1)
        for ended in self._exits.values():
            hello.inventory.add(key=ended.key, exit=ended.exit)
        yield agent_pb2.AgentMessage(hello=hello)
        while True:
            yield await outbox.get()

    def _hear(self, message, stub):
        self._epoch = message.epoch
        match message.WhichOneof("message"):
            case "welcome":
                self.joined.set()
            case "start_workers":
                start = message.start_workers
                for one in start.assignments:
                    key = agent_pb2.WorkerKey(job_id=start.job_id, rank=one.rank, attempt=one.attempt)
                    self._running[key.SerializeToString(deterministic=True)] = key
                    started = agent_pb2.WorkerStarted(key=key, pid=1000 + one.rank, pid_start_time=1)
                    self._say(worker_started=started)
            case "stop_workers":
                for key in message.stop_workers.keys:
                    if key.SerializeToString(deterministic=True) in self._running:
                        self._exit(key, job_pb2.ExitStatus(code=-1, signal=15, message="killed by SIGTERM"))
            case "release_workers":
                for key in message.release_workers.keys:
                    self._exits.pop(key.SerializeToString(deterministic=True), None)
            case "open_log":
                task = asyncio.create_task(self._push(stub, message.open_log))
                self._hanging.add(task)

    async def _push(self, stub, asked):
        cursors = {(c.rank, c.attempt, c.stream): c.offset for c in asked.cursors}
        call = stub.PushLogs()
        await call.write(agent_pb2.PushLogsRequest(request_id=asked.request_id))
        for (rank, attempt, stream), data in sorted(self.logs.items()):
            offset = cursors.get((rank, attempt, stream), 0)
            if rank == asked.rank and asked.attempt in (0, attempt) and data[offset:]:
                at = job_pb2.LogCursor(rank=rank, attempt=attempt, stream=stream, offset=offset)
                chunk = job_pb2.StreamLogsResponse(cursor=at, data=data[offset:])
                await call.write(agent_pb2.PushLogsRequest(chunk=chunk))
        if asked.follow:
            await call  # more may come
        else:
            await call.done_writing()


@dataclass
class Ended:
    code: int
    out: str
    err: str


class Command:
    """`holdfast ...` in a process of its own."""

    def __init__(self, process):
        self._process = process

    async def ended(self):
        async with asyncio.timeout(PATIENCE):
            out, err = await self._process.communicate()
        return Ended(self._process.returncode, out.decode(), err.decode())

    async def line(self):
        return await self._next(self._process.stdout)

    async def error_line(self):
        return await self._next(self._process.stderr)

    async def _next(self, stream):
        async with asyncio.timeout(PATIENCE):
            line = await stream.readline()
        assert line, "it ended"
        return line.decode()

    def signal(self, number):
        self._process.send_signal(number)

    async def kill(self):
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


@pytest.fixture
def house_settings():
    """What its operator decides, as CoordinatorConfig has it."""
    return {}


@pytest.fixture
async def house(tmp_path, house_settings):
    found = House(tmp_path / "coordinator", **house_settings)
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def client(house):
    async with Client(house.target) as found:
        yield found


@pytest.fixture
async def agent(house):
    found = ScriptedAgent(house.target)
    async with asyncio.timeout(PATIENCE):
        await found.joined.wait()
    yield found
    await found.close()


@pytest.fixture
async def start_command(house, tmp_path):
    commands = []

    async def start(*words, cwd=None, **env):
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("holdfast"),
            *words,
            cwd=cwd or tmp_path,
            env=os.environ | {"HOME": str(tmp_path), "HOLDFAST_SERVER": house.target, **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        commands.append(Command(process))
        return commands[-1]

    yield start
    for command in commands:
        await command.kill()


@pytest.fixture
def holdfast(start_command):
    """Run a command to its end."""

    async def run(*words, **more):
        return await (await start_command(*words, **more)).ended()

    return run


@pytest.fixture
def job_in(client):
    """Wait until a job is in a state."""

    async def wait(job_id, state):
        async with asyncio.timeout(PATIENCE):
            async for job in client.watch_job(job_id):
                if job.state == state:
                    return job
        raise AssertionError(f"it never was {job_pb2.JobState.Name(state)}")

    return wait
