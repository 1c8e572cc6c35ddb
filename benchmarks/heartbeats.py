"""The coordinator's CPU a heartbeat as the fleet grows, beside a grpc.aio server that does nothing with the same.

Both servers run in a process of their own, with the same options. The fleet is one process with a real connection
an agent. Every agent runs two workers of one job, and every heartbeat carries the progress of both.
"""

import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from benchmarks.figures import Table, cpu_seconds, median
from holdfast import wire
from holdfast.v1 import agent_pb2, agent_pb2_grpc, job_pb2, job_pb2_grpc

FLEETS = (100, 1_000, 5_000)
WORKERS = 2
MEASURED_S = 9.0
ROUNDS = 3
"""Both servers are measured in turn, so that a machine that is slow for a while is slow for both."""
CONNECTING_AT_ONCE = 100


class Bare(agent_pb2_grpc.AgentServiceServicer):
    """Reads, and does nothing."""

    async def Connect(
        self, requests: AsyncIterator[agent_pb2.AgentMessage], _context: object
    ) -> AsyncIterator[agent_pb2.CoordinatorMessage]:
        await anext(requests)
        welcome = agent_pb2.CoordinatorMessage(epoch=1)
        welcome.welcome.SetInParent()
        yield welcome
        async for _ in requests:
            pass


async def serve_bare() -> None:
    server = grpc.aio.server(options=wire.server_options())
    agent_pb2_grpc.add_AgentServiceServicer_to_server(Bare(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def serve_holdfast(state_dir: str) -> None:
    from holdfast.cli.common import set_up_logs
    from holdfast_coordinator.__main__ import serve
    from holdfast_coordinator.app import CoordinatorConfig

    set_up_logs()
    config = CoordinatorConfig("127.0.0.1:0", Path(state_dir), lost_after_ms=600_000)
    await serve(config, stop=asyncio.Event(), ready=lambda target: print(target, flush=True))


class Agent:
    """One agent as the coordinator sees it."""

    def __init__(self, number: int, target: str, slots: int = WORKERS) -> None:
        self._slots = slots
        self._name = f"node-{number:05d}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(target, options=options)
        self._epoch = 0
        self._keys: list[agent_pb2.WorkerKey] = []
        self._step = 0

    async def connect(self, *, expect_work: bool) -> None:
        self._stream = agent_pb2_grpc.AgentServiceStub(self._channel).Connect()
        hello = agent_pb2.AgentMessage()
        hello.hello.node = hello.hello.instance_id = self._name
        hello.hello.address = "127.0.0.1"
        hello.hello.capacity.slots = self._slots
        hello.hello.ports.append(1)
        await self._stream.write(hello)
        self._epoch = (await self._stream.read()).epoch
        if not expect_work:
            self._keys = [agent_pb2.WorkerKey(job_id="none", rank=rank, attempt=1) for rank in range(WORKERS)]

    async def take_work(self) -> None:
        """Receive StartWorkers, and say that they run."""
        while not self._keys:
            message = await self._stream.read()
            for a in message.start_workers.assignments:
                key = agent_pb2.WorkerKey(job_id=message.start_workers.job_id, rank=a.rank, attempt=a.attempt)
                self._keys.append(key)
                started = agent_pb2.AgentMessage(epoch=self._epoch)
                started.worker_started.key.CopyFrom(key)
                started.worker_started.pid = 1
                await self._stream.write(started)

    async def beat(self) -> None:
        self._step += 1
        message = agent_pb2.AgentMessage(epoch=self._epoch)
        message.heartbeat.SetInParent()
        for key in self._keys:
            item = message.heartbeat.workers.add(key=key)
            item.progress.step = item.progress.steps_done = self._step
            item.progress.section = "step"
        await self._stream.write(message)

    async def close(self) -> None:
        self._stream.cancel()
        await self._channel.close()


async def beat_paced(agents: list[Agent], interval: float) -> int:
    """Let every agent beat once an interval, spread over it; return how many messages that were."""
    sent = 0
    began = time.monotonic()
    for turn in range(int(MEASURED_S / interval)):
        for n, agent in enumerate(agents):
            due = began + (turn + n / len(agents)) * interval
            if (wait := due - time.monotonic()) > 0.001:
                await asyncio.sleep(wait)
            await agent.beat()
            sent += 1
    return sent


async def submit(target: str, world_size: int) -> None:
    async with wire.open_channel(target) as channel:
        spec = job_pb2.JobSpec(name="fleet", command=["true"], world_size=world_size)
        await job_pb2_grpc.JobServiceStub(channel).CreateJob(job_pb2.CreateJobRequest(spec=spec))


async def run_fleet(kind: str, size: int, target: str, pid: int) -> float:
    """CPU microseconds of the server a heartbeat."""
    real = kind == "holdfast"
    agents = [Agent(n, target) for n in range(size)]
    try:
        for at in range(0, size, CONNECTING_AT_ONCE):
            some = agents[at : at + CONNECTING_AT_ONCE]
            await asyncio.gather(*(agent.connect(expect_work=real) for agent in some))
        if real:
            await submit(target, size * WORKERS)
            await asyncio.gather(*(agent.take_work() for agent in agents))
        await beat_paced(agents, 1.0)
        from holdfast_coordinator.core.liveness import heartbeat_interval_ms

        before = cpu_seconds(pid)
        sent = await beat_paced(agents, heartbeat_interval_ms(size) / 1000)
        return (cpu_seconds(pid) - before) / sent * 1e6
    finally:
        await asyncio.gather(*(agent.close() for agent in agents))


def cpu_a_message(kind: str, size: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.heartbeats", kind, folder]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, text=True) as server:
            assert server.stdout is not None
            target = server.stdout.readline().strip()
            try:
                return asyncio.run(run_fleet(kind, size, target, server.pid))
            finally:
                server.kill()


def measure() -> list[Table]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = []
    for size in FLEETS:
        pairs = [(cpu_a_message("bare", size), cpu_a_message("holdfast", size)) for _ in range(ROUNDS)]
        bare, ours = (median(side) for side in zip(*pairs, strict=True))
        ratios = [mine / least for least, mine in pairs]
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((f"{size:,}", f"{bare:.0f}", f"{ours:.0f}", ratio))
    head = ("agents", "bare server, µs", "coordinator, µs", "ratio")
    note = (
        f"CPU of the server process a heartbeat, each with the progress of {WORKERS} workers, at the interval that the "
        f"coordinator sets for the fleet; medians of {ROUNDS} rounds, the ratio with its range. Bar: at most 1.4."
    )
    return [Table("Heartbeats", note, head, tuple(rows))]


if __name__ == "__main__":
    if sys.argv[1] == "bare":
        asyncio.run(serve_bare())
    else:
        asyncio.run(serve_holdfast(sys.argv[2]))
