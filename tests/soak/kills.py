"""Kills, again and again: of workers, and of their agent while they work.

What is shown: every death is noticed, soon and as what it was; nothing healthy is restarted; nothing is left behind,
and nothing grows; and what is trained is what an undisturbed run trains.
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from holdfast.v1 import job_pb2, node_pb2
from tests.e2e.fleet import PATIENCE_S, Fleet, pids, running
from tests.e2e.train import expected

WORLD = 8
PROGRAM = str(Path(__file__).with_name("program.py"))
ROOT = str(Path(__file__).parent.parent.parent)
GREW_BYTES = 16 * 2**20
GREW_DESCRIPTORS = 2 * WORLD
"""Of the agent, each worker has two; they may all be down when they are counted first."""


@dataclass
class Findings:
    """What a soak saw. Times in seconds."""

    noticed: list[float] = field(default_factory=list)
    """From each kill of a worker to the event that tells of it."""
    adopted: list[float] = field(default_factory=list)
    """From each start of an agent to its node being ready."""

    def lines(self) -> list[str]:
        return [
            f"{what}: {len(found)}, median {np.median(found):.3f} s, p99 {np.quantile(found, 0.99):.3f} s, "
            f"worst {max(found):.3f} s"
            for what, found in (("kills noticed", self.noticed), ("agents back", self.adopted))
            if found
        ]


class Size:
    """Descriptors and private memory of a process."""

    def __init__(self, process: "psutil.Process | int") -> None:
        self._process = psutil.Process(process) if isinstance(process, int) else process
        self.descriptors, self.memory = self._now()

    def check(self) -> None:
        """Raise AssertionError when it has grown."""
        descriptors, memory = self._now()
        name = " ".join(self._process.cmdline()[1:4])
        assert descriptors <= self.descriptors + GREW_DESCRIPTORS, (
            f"{name}: {self.descriptors} descriptors, then {descriptors}"
        )
        assert memory <= self.memory + GREW_BYTES, f"{name}: {self.memory} bytes, then {memory}"

    def _now(self) -> tuple[int, int]:
        return self._process.num_fds(), self._process.memory_full_info().uss


async def start(fleet: Fleet, preload: Sequence[str]) -> str:
    """A job of independent ranks that trains until it is told to finish; its ranks start warm with `preload`."""
    # Many are killed before their first step: the backoff must not grow with them.
    policy = job_pb2.RestartPolicy(budget=1_000_000, jitter=0)
    policy.backoff_cap.FromMilliseconds(50)
    command = [sys.executable, PROGRAM, str(fleet.out)]
    job_id = await fleet.submit_command(
        command, WORLD, "rank", env={"PYTHONPATH": ROOT}, restart=policy, preload=preload
    )
    await fleet.until(job_id, running)
    return job_id


async def finish(fleet: Fleet, job_id: str) -> job_pb2.Job:
    """Let it finish, and hold its result to that of an undisturbed run."""
    (fleet.out / "finish").touch()
    job = await fleet.succeeded(job_id)
    for rank in range(WORLD):
        found = np.load(fleet.out / f"{rank}.npz")
        np.testing.assert_array_equal(found["x"], expected(rank, int(found["steps"])))
    assert not fleet.leftovers(), "processes of the job are left"
    return job


async def kill_workers(
    fleet: Fleet, count: int, seed: int, tell: Callable[[str], None], preload: Sequence[str] = ()
) -> Findings:
    """SIGKILL random workers of a running job, each when it runs."""
    job_id = await start(fleet, preload)
    chosen = random.Random(seed)
    killed: dict[tuple[int, int], float] = {}
    sizes: list[Size] = []
    async for job in fleet.client.watch_job(job_id):
        fresh = [
            w
            for w in job.workers
            if w.state == job_pb2.WORKER_STATE_RUNNING and (w.rank, w.attempt) not in killed
        ]
        if not fresh:
            continue
        worker = chosen.choice(fresh)
        killed[worker.rank, worker.attempt] = time.time()
        os.kill(worker.pid, signal.SIGKILL)
        if len(killed) == count // 5:
            sizes = [Size(process.pid) for process in fleet.processes.values()]
        if len(killed) % 100 == 0:
            tell(f"{len(killed)} workers killed")
        if len(killed) == count:
            break
    await fleet.until(job_id, running)
    for size in sizes:
        size.check()
    job = await finish(fleet, job_id)
    assert job.restarts == count, f"{count} kills, {job.restarts} restarts"
    findings = Findings()
    async for event in fleet.client.list_events(job_id):
        if event.kind == "WorkerExited" and (event.rank, event.attempt) in killed:
            assert event.message.startswith("killed by SIGKILL"), event.message
            findings.noticed.append(event.at.ToNanoseconds() / 1e9 - killed.pop((event.rank, event.attempt)))
    assert not killed, f"nobody noticed that {sorted(killed)} were killed"
    return findings


async def kill_agents(
    fleet: Fleet, count: int, seed: int, tell: Callable[[str], None], preload: Sequence[str] = ()
) -> Findings:
    """SIGKILL the agent of a running job, at random moments, and start it again."""
    job_id = await start(fleet, preload)
    before = pids(await fleet.client.get_job(job_id))
    chosen, findings = random.Random(seed), Findings()
    size = Size(fleet.processes["coordinator"].pid)
    for number in range(1, count + 1):
        killed = time.time()
        fleet.kill("node-a")
        began = time.monotonic()
        fleet.start_agent("node-a", slots=WORLD)
        async with asyncio.timeout(PATIENCE_S):
            while not await _joined(fleet, killed):
                await asyncio.sleep(0.01)
        findings.adopted.append(time.monotonic() - began)
        await asyncio.sleep(chosen.uniform(0, 0.2))
        if number % 50 == 0:
            tell(f"{number} agents killed")
    size.check()
    job = await fleet.until(job_id, running)
    assert pids(job) == before, "a healthy worker was restarted"
    job = await finish(fleet, job_id)
    assert job.restarts == 0
    return findings


async def _joined(fleet: Fleet, after: float) -> bool:
    nodes = [node async for node in fleet.client.list_nodes()]
    return any(
        node.state == node_pb2.NODE_STATE_READY and node.joined_at.ToNanoseconds() / 1e9 > after
        for node in nodes
    )
