"""How soon a death is known, and what watching costs while nothing happens."""

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.figures import Table, cpu_seconds, median
from holdfast.v1 import job_pb2
from tests.e2e.fleet import Fleet, running

WORLD = 8
KILLS = 1_000
IDLE_S = 20.0
IDLE = "import holdfast, time; run = holdfast.init(); run.step(); time.sleep(1_000)"


async def open_fleet(folder: str) -> Fleet:
    fleet = Fleet(Path(folder))
    await fleet.open()
    fleet.start_coordinator()
    fleet.start_agent(slots=WORLD)
    return fleet


async def notice() -> list[float]:
    """Milliseconds from each SIGKILL to the coordinator's event."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = await open_fleet(folder)
        try:
            policy = job_pb2.RestartPolicy(budget=10 * KILLS)
            job_id = await fleet.submit_command(
                ["sleep", "1000"], WORLD, "rank", restart=policy, backoff_ms=0
            )
            killed: dict[tuple[int, int], float] = {}
            chosen = random.Random(0)
            async for job in fleet.client.watch_job(job_id):
                up = job_pb2.WORKER_STATE_RUNNING
                fresh = [w for w in job.workers if w.state == up and (w.rank, w.attempt) not in killed]
                if not fresh:
                    continue
                worker = chosen.choice(fresh)
                killed[worker.rank, worker.attempt] = time.time()
                os.kill(worker.pid, signal.SIGKILL)
                if len(killed) == KILLS:
                    break
            await fleet.until(job_id, running)
            return [
                (event.at.ToNanoseconds() / 1e9 - killed[event.rank, event.attempt]) * 1e3
                async for event in fleet.client.list_events(job_id)
                if event.kind == "WorkerExited"
            ]
        finally:
            await fleet.close()


async def idle() -> tuple[float, float]:
    """Share of a core, and private memory in MiB, of an agent with its nursery and shims, workers left out."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = await open_fleet(folder)
        try:
            job_id = await fleet.submit_command([sys.executable, "-c", IDLE], WORLD, "rank")
            job = await fleet.until(job_id, running)
            await asyncio.sleep(3)
            workers = {worker.pid for worker in job.workers}
            agent = psutil.Process(fleet.processes["node-a"].pid)
            # A shim belongs to the nursery, which is the agent's.
            family = [agent, *(p for p in agent.children(recursive=True) if p.pid not in workers)]
            before = sum(cpu_seconds(process.pid) for process in family)
            await asyncio.sleep(IDLE_S)
            spent = sum(cpu_seconds(process.pid) for process in family) - before
            memory = sum(process.memory_full_info().uss for process in family)
            return spent / IDLE_S, memory / 2**20
        finally:
            await fleet.close()


def measure() -> list[Table]:
    found = asyncio.run(notice())
    share, memory = asyncio.run(idle())
    rows = (
        (f"kill to event, {len(found):,} kills: median, ms", f"{median(found):.1f}", ""),
        ("the same: 99th percentile, ms", f"{np.quantile(found, 0.99):.1f}", "100"),
        (f"CPU of an agent with {WORLD} workers that do nothing, % of a core", f"{share:.2%}", "1%"),
        ("its private memory with nursery and shims, MiB", f"{memory:.0f}", "80"),
    )
    note = (
        f"SIGKILL of random ones of {WORLD} workers, to the time of the coordinator's event; CPU over {IDLE_S:g} s. "
        "Coordinator, agent and workers on one machine."
    )
    return [Table("Supervision", note, ("what", "measured", "bar"), rows)]
