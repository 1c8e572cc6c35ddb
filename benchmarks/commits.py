"""From the last rank's word that its file is durable to every rank's knowledge that the checkpoint is committed.

The coordinator is real, and so are its store and the agents' streams; the ranks are simulated. Between two commits
one write and fsync beside the store is timed, which is the least that a durable commit can take. Beside it a server
does no more than it must: it keeps the shards as they come; with the last of a step it writes one block, syncs it, and
answers every stream, one of them with all of the shards, which is what a manifest is written from.
"""

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from benchmarks.figures import Table, median
from benchmarks.heartbeats import Agent, submit
from holdfast import wire
from holdfast.v1 import agent_pb2, agent_pb2_grpc

FLEETS = ((4, 2), (1_000, 8), (1_000, 125))
"""Ranks, and agents that they are on."""
COMMITS = 60
BLOCK = bytes(4096)


class Bare(agent_pb2_grpc.AgentServiceServicer):
    """Keeps, syncs, answers."""

    def __init__(self, ranks: int, folder: Path) -> None:
        self._ranks = ranks
        self._file = folder / "bare"
        self._streams: list[asyncio.Queue[agent_pb2.CoordinatorMessage]] = []
        self._steps: dict[int, agent_pb2.AckCommit] = {}

    async def Connect(
        self, requests: AsyncIterator[agent_pb2.AgentMessage], _context: object
    ) -> AsyncIterator[agent_pb2.CoordinatorMessage]:
        hello = await anext(requests)
        welcome = agent_pb2.CoordinatorMessage(epoch=1)
        welcome.welcome.SetInParent()
        yield welcome
        start = agent_pb2.CoordinatorMessage(epoch=1)
        start.start_workers.job_id = "bare"
        for rank in range(hello.hello.capacity.slots):
            start.start_workers.assignments.add(rank=rank, attempt=1)
        yield start
        acks: asyncio.Queue[agent_pb2.CoordinatorMessage] = asyncio.Queue()
        self._streams.append(acks)
        counting = asyncio.create_task(self._count(requests))
        try:
            while True:
                yield await acks.get()
        finally:
            counting.cancel()

    async def _count(self, requests: AsyncIterator[agent_pb2.AgentMessage]) -> None:
        async for message in requests:
            if not message.HasField("shard_prepared"):
                continue
            step = message.shard_prepared.step
            whole = self._steps.setdefault(step, agent_pb2.AckCommit(step=step))
            whole.publish.shards.append(message.shard_prepared.shard)
            if len(whole.publish.shards) == self._ranks:
                synced(self._file)
                short = agent_pb2.CoordinatorMessage(epoch=1, ack_commit=agent_pb2.AckCommit(step=step))
                for acks in self._streams[1:]:
                    acks.put_nowait(short)
                self._streams[0].put_nowait(agent_pb2.CoordinatorMessage(epoch=1, ack_commit=whole))
                del self._steps[step]


async def serve_bare(ranks: int, folder: Path) -> None:
    server = grpc.aio.server(options=wire.server_options())
    agent_pb2_grpc.add_AgentServiceServicer_to_server(Bare(ranks, folder), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


class Node(Agent):
    """An agent whose ranks take checkpoints."""

    async def take_work_of(self, ranks: int) -> None:
        while len(self._keys) < ranks:
            await self.take_work()

    async def prepare(self, step: int, keys: slice) -> None:
        for key in self._keys[keys]:
            message = agent_pb2.AgentMessage(epoch=self._epoch)
            message.shard_prepared.key.CopyFrom(key)
            message.shard_prepared.step = step
            shard = message.shard_prepared.shard
            shard.rank = key.rank
            shard.file = f"rank-{key.rank:05}.attempt-1.safetensors"
            shard.size_bytes = 1 << 30
            shard.digest = f"{step:08x}{key.rank:08x}"
            shard.cursor = (
                '[{"epoch":0,"batch":1000,"samples":1000000,"batch_size":64,"seed":0,"done":false}]'
            )
            await self._stream.write(message)

    async def acked(self, step: int) -> None:
        while (await self._stream.read()).ack_commit.step != step:
            pass


def synced(path: Path) -> float:
    """Seconds for one block to be written and synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    began = time.perf_counter()
    os.write(fd, BLOCK)
    os.fsync(fd)
    took = time.perf_counter() - began
    os.close(fd)
    return took


async def run_fleet(
    ranks: int, size: int, target: str, folder: Path, *, real: bool
) -> tuple[list[float], list[float]]:
    """Seconds of each commit, and of each sync beside it."""
    nodes = [Node(n, target, slots=ranks // size) for n in range(size)]
    try:
        await asyncio.gather(*(node.connect(expect_work=True) for node in nodes))
        if real:
            await submit(target, ranks)
        await asyncio.gather(*(node.take_work_of(ranks // size) for node in nodes))
        commits, syncs = [], []
        for step in range(1, COMMITS + 1):
            await asyncio.gather(*(node.prepare(step, slice(1, None)) for node in nodes))
            await asyncio.gather(*(node.prepare(step, slice(1)) for node in nodes[1:]))
            await asyncio.sleep(0.2 if ranks > 100 else 0.02)  # until all of that is taken in
            syncs.append(synced(folder / "beside"))
            waiting = [asyncio.create_task(node.acked(step)) for node in nodes]
            began = time.perf_counter()
            await nodes[0].prepare(step, slice(1))
            await asyncio.gather(*waiting)
            commits.append(time.perf_counter() - began)
        return commits[5:], syncs[5:]
    finally:
        await asyncio.gather(*(node.close() for node in nodes))


def run_server(command: list[str], ranks: int, size: int, folder: str) -> tuple[float, float]:
    """Median milliseconds of a commit, and of a sync beside it."""
    real = "benchmarks.heartbeats" in command
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        target = server.stdout.readline().strip()
        try:
            commits, syncs = asyncio.run(run_fleet(ranks, size, target, Path(folder), real=real))
        finally:
            server.kill()
    return median(commits) * 1e3, median(syncs) * 1e3


def measure_fleet(ranks: int, size: int) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as folder:
        python = [sys.executable, "-m"]
        least, _ = run_server([*python, "benchmarks.commits", str(ranks), folder], ranks, size, folder)
        ours, sync = run_server([*python, "benchmarks.heartbeats", "holdfast", folder], ranks, size, folder)
    figures = (f"{sync:.2f}", f"{least:.2f}", f"{ours:.2f}", f"{ours / sync:.1f}", f"{ours / least:.1f}")
    return f"{ranks:,}", str(size), *figures


def measure() -> list[Table]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = tuple(measure_fleet(ranks, size) for ranks, size in FLEETS)
    head = (
        *("ranks", "agents", "one fsync, ms", "bare server, ms", "commit, ms"),
        *("beside one fsync", "beside the bare server"),
    )
    note = (
        f"From the last rank's message to the ack that the last agent receives, median of {COMMITS - 5}; all "
        "simulated agents are one Python process, whose receiving is part of it. The bare server keeps the shards, "
        "syncs one block, and answers, once with all of them. Bar: at most 3 times one fsync."
    )
    return [Table("Commit of a checkpoint", note, head, rows)]


if __name__ == "__main__":
    asyncio.run(serve_bare(int(sys.argv[1]), Path(sys.argv[2])))
