"""How long the summary of a large job takes, while its workers report; beside a call that asks nothing."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence

from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.figures import Table, median
from benchmarks.heartbeats import Agent, submit
from benchmarks.server import coordinator
from holdfast import wire
from holdfast.v1 import job_pb2, job_pb2_grpc

WORKERS = 1_000
CALLS = 1_000
BEAT_S = 1.0


def p99(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def row(name: str, took: Sequence[float]) -> tuple[str, ...]:
    return (name, *(f"{figure * 1e3:.2f}" for figure in (median(took), p99(took), max(took))))


async def times(call: Callable[[], Awaitable[object]]) -> list[float]:
    """Seconds of each of many calls, one after the other."""
    found = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await call()
        found.append(time.perf_counter() - began)
    return found


async def keep_beating(agent: Agent) -> None:
    while True:
        await agent.beat()
        await asyncio.sleep(BEAT_S)


async def run(target: str) -> list[tuple[str, ...]]:
    agent = Agent(0, target, WORKERS)
    await agent.connect(expect_work=True)
    await submit(target, WORKERS)
    await agent.take_work()
    beating = asyncio.create_task(keep_beating(agent))
    async with wire.open_channel(target) as channel:
        jobs = job_pb2_grpc.JobServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        (job,) = (await jobs.ListJobs(job_pb2.ListJobsRequest())).jobs
        ask = job_pb2.GetJobSummaryRequest(job_id=job.id)
        while not (await jobs.GetJobSummary(ask)).summary.steps:
            await asyncio.sleep(0.05)
        nothing = await times(lambda: health.Check(health_pb2.HealthCheckRequest()))
        summary = await times(lambda: jobs.GetJobSummary(ask))
    beating.cancel()
    await agent.close()
    return [row("health check", nothing), row("summary", summary)]


def measure() -> list[Table]:
    with coordinator() as (target, _):
        rows = asyncio.run(run(target))
    note = (
        f"Time at the client of {CALLS:,} calls, one after another, of a job with {WORKERS:,} workers on one node "
        f"that report every {BEAT_S:.0f} s; the coordinator in a process of its own. Bar: 20 ms for 99 of 100."
    )
    return [
        Table("Summary of a large job", note, ("call", "median, ms", "p99, ms", "longest, ms"), tuple(rows))
    ]
