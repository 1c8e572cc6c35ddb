"""What many watchers of one job cost: how late they see a change, and what others wait meanwhile."""

import asyncio
import json
import resource
import sys
import time
from asyncio.subprocess import PIPE
from dataclasses import dataclass, field

import grpc

from benchmarks.figures import Table, cpu_seconds, median
from benchmarks.heartbeats import Agent, submit
from benchmarks.server import coordinator
from benchmarks.summary import p99
from holdfast import wire
from holdfast.v1 import job_pb2, job_pb2_grpc

WATCHERS = (1, 100, 1_000)
WORKERS = 8
BEATS = 10
BEAT_S = 1.0
ASK_S = 0.02
A_CONNECTION = 50
"""Streams of one connection."""


@dataclass
class Seen:
    """When each watcher came to see a step."""

    step: int = 0
    late: list[float] = field(default_factory=list)
    count: int = 0
    began: float = 0.0
    all: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, step: int, watchers: int) -> None:
        self.step, self.count, self.began = step, watchers, time.perf_counter()
        self.all.clear()

    def note(self) -> None:
        self.late.append(time.perf_counter() - self.began)
        self.count -= 1
        if not self.count:
            self.all.set()


async def watch(stub: job_pb2_grpc.JobServiceStub, job_id: str, seen: Seen) -> None:
    at = 0
    async for answer in stub.WatchJob(job_pb2.WatchJobRequest(job_id=job_id)):
        step = max(worker.step for worker in answer.job.workers)
        if at < seen.step <= step:
            at = seen.step
            seen.note()


async def ask(target: str, job_id: str) -> None:
    """In a process of its own: what somebody else waits for one answer, until nobody asks any more."""
    took = []
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    async with wire.open_channel(target) as channel:
        stub = job_pb2_grpc.JobServiceStub(channel)
        while not over.done():
            began = time.perf_counter()
            await stub.GetJob(job_pb2.GetJobRequest(job_id=job_id))
            took.append(time.perf_counter() - began)
            await asyncio.sleep(ASK_S)
    print(json.dumps(took))


async def start_asking(target: str, job_id: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "benchmarks.watchers", target, job_id]
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)


async def run(target: str, pid: int, watchers: int) -> tuple[str, ...]:
    agent = Agent(0, target, WORKERS)
    await agent.connect(expect_work=True)
    await submit(target, WORKERS)
    await agent.take_work()
    own = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target, options=own) for _ in range(-(-watchers // A_CONNECTION))]
    stubs = [job_pb2_grpc.JobServiceStub(channel) for channel in channels]
    seen, last = Seen(), []
    async with wire.open_channel(target) as channel:
        stub = job_pb2_grpc.JobServiceStub(channel)
        (job,) = (await stub.ListJobs(job_pb2.ListJobsRequest())).jobs
        tasks = [asyncio.create_task(watch(stubs[n % len(stubs)], job.id, seen)) for n in range(watchers)]
        other = await start_asking(target, job.id)
        for beat in range(BEATS + 1):
            if beat == 1:  # the first is for connecting
                seen.late, last, before, began = [], [], cpu_seconds(pid), time.perf_counter()
            seen.begin(beat + 1, watchers)
            await agent.beat()
            await seen.all.wait()
            last.append(time.perf_counter() - seen.began)
            await asyncio.sleep(max(0.0, seen.began + BEAT_S - time.perf_counter()))
        others = json.loads((await other.communicate(b""))[0])
        cpu = (cpu_seconds(pid) - before) / (time.perf_counter() - began)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(agent.close(), *(channel.close() for channel in channels))
    figures = (median(seen.late), p99(seen.late), median(last), median(others), p99(others))
    return (f"{watchers:,}", *(f"{figure * 1e3:.0f}" for figure in figures), f"{cpu:.0%}")


def measure() -> list[Table]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = []
    for watchers in WATCHERS:
        with coordinator() as (target, pid):
            rows.append(asyncio.run(run(target, pid, watchers)))
    head = (
        "watchers",
        "seen after, ms",
        "p99, ms",
        "by all, ms",
        "GetJob meanwhile, ms",
        "p99, ms",
        "coordinator, of a core",
    )
    note = (
        f"From a heartbeat, one a second with the progress of {WORKERS} workers, to the watchers of their job, "
        f"{A_CONNECTION} to a connection, all in one process that reads what they see; and what others wait for "
        "an answer meanwhile. A coordinator waits 30 ms before it shows a change. Bar: all 1,000 within a second."
    )
    return [Table("Watchers of one job", note, head, tuple(rows))]


if __name__ == "__main__":
    asyncio.run(ask(*sys.argv[1:]))
