"""From the last rank's word that its file is durable to every rank's knowledge that the checkpoint is committed.

The coordinator is real, and so are its store and the agents' streams; the ranks are simulated. Between two commits
one write and fsync beside the store is timed, which is the least that a durable commit can take.
"""

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Table, median
from benchmarks.heartbeats import Agent, submit
from holdfast.v1 import agent_pb2

FLEETS = ((4, 2), (1_000, 8), (1_000, 125))
"""Ranks, and agents that they are on."""
COMMITS = 60
BLOCK = bytes(4096)


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


async def run_fleet(ranks: int, size: int, target: str, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of each commit, and of each sync beside it."""
    nodes = [Node(n, target, slots=ranks // size) for n in range(size)]
    try:
        await asyncio.gather(*(node.connect(expect_work=True) for node in nodes))
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


def measure_fleet(ranks: int, size: int) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.heartbeats", "holdfast", folder]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            assert server.stdout is not None
            target = server.stdout.readline().strip()
            try:
                commits, syncs = asyncio.run(run_fleet(ranks, size, target, Path(folder)))
            finally:
                server.kill()
    ratio = median(commits) / median(syncs)
    return (
        f"{ranks:,}",
        str(size),
        f"{median(syncs) * 1e3:.2f}",
        f"{median(commits) * 1e3:.2f}",
        f"{ratio:.2f}",
    )


def measure() -> list[Table]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = tuple(measure_fleet(ranks, size) for ranks, size in FLEETS)
    head = ("ranks", "agents", "one fsync, ms", "commit, ms", "ratio")
    note = (
        f"From the last rank's message to the ack that the last rank's agent receives, median of {COMMITS - 5}; all "
        "simulated agents are one Python process, whose receiving is part of it. Bar: at most 3."
    )
    return [Table("Commit of a checkpoint", note, head, rows)]
