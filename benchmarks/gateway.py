"""What HTTP costs over gRPC, and a thousand who look at one job over it.

Coordinator and gateway run in processes of their own, as people start them. The job's workers are those of an agent
that is only a connection (see heartbeats.py); both ways of asking take turns, so that a machine that is slow for a
while is slow for both.
"""

import asyncio
import http.client
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil

from benchmarks.figures import Table, cpu_seconds, median
from benchmarks.heartbeats import WORKERS, Agent, submit
from holdfast.client import Client
from holdfast.v1 import job_pb2, job_pb2_grpc

HOLDFAST = str(Path(sys.executable).with_name("holdfast"))
CALLS = 1_000
WATCHERS = 1_000
CHANGES = 20
BAR_MS = 3.0


class Place:
    """A coordinator and a gateway."""

    def __init__(self, folder: str) -> None:
        self.coordinator = self._start("coordinator", "--listen", "127.0.0.1:0", "--state-dir", folder)
        self.target = self._address(self.coordinator)
        self.gateway = self._start("gateway", "--listen", "127.0.0.1:0", "--server", self.target)
        self.netloc = self._address(self.gateway).removeprefix("http://")

    def _start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen([HOLDFAST, *command], stderr=subprocess.PIPE, text=True)

    def _address(self, process: subprocess.Popen[str]) -> str:
        assert process.stderr is not None
        while (line := process.stderr.readline()) and " listens on " not in line:
            pass
        return line.rpartition(" ")[2].strip()

    def close(self) -> None:
        for process in (self.gateway, self.coordinator):
            process.kill()
            process.communicate()


@contextmanager
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as folder:
        found = Place(folder)
        try:
            yield found
        finally:
            found.close()


async def job_id(target: str) -> str:
    async with Client(target) as client:
        return (await client.list_jobs_page(size=1)).jobs[0].id


def overhead(where: Place) -> tuple[list[float], list[float]]:
    """Milliseconds of GetJob by gRPC, and of GET /jobs/{id}, one after the other, each over one open connection."""
    asyncio.run(submit(where.target, WORKERS))
    job = asyncio.run(job_id(where.target))
    connection = http.client.HTTPConnection(where.netloc)
    calls: list[float] = []
    gets: list[float] = []
    with grpc.insecure_channel(where.target) as channel:
        stub = job_pb2_grpc.JobServiceStub(channel)
        for _ in range(CALLS):
            began = time.perf_counter()
            stub.GetJob(job_pb2.GetJobRequest(job_id=job))
            calls.append((time.perf_counter() - began) * 1000)
            began = time.perf_counter()
            connection.request("GET", f"/jobs/{job}")
            connection.getresponse().read()
            gets.append((time.perf_counter() - began) * 1000)
    connection.close()
    return calls[CALLS // 10 :], gets[CALLS // 10 :]


class Watcher:
    """A reader of a job's stream, that counts its events."""

    async def open(self, netloc: str, job: str) -> None:
        host, _, port = netloc.partition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        self._writer.write(f"GET /jobs/{job}/stream HTTP/1.1\r\nHost: {netloc}\r\n\r\n".encode())
        await self.next()

    async def next(self) -> float:
        """Wait for an event; when it was there."""
        while not (await self._reader.readline()).startswith(b"event: job"):
            pass
        return time.perf_counter()

    def close(self) -> None:
        self._writer.close()


async def watched(where: Place) -> tuple[list[float], float, float, float]:
    """Milliseconds from a heartbeat to the last of all watchers, CPU of both a change, mebibytes of the gateway."""
    agent = Agent(0, where.target)
    await agent.connect(expect_work=True)
    await agent.take_work()
    job = await job_id(where.target)
    watchers = [Watcher() for _ in range(WATCHERS)]
    for at in range(0, WATCHERS, 50):
        await asyncio.gather(*(watcher.open(where.netloc, job) for watcher in watchers[at : at + 50]))
    await asyncio.sleep(2)  # what has changed by the start is told
    took: list[float] = []
    cpu = [cpu_seconds(process.pid) for process in (where.gateway, where.coordinator)]
    for _ in range(CHANGES):
        began = time.perf_counter()
        hearing = [asyncio.create_task(watcher.next()) for watcher in watchers]
        await agent.beat()
        took.append((max(await asyncio.gather(*hearing)) - began) * 1000)
    spent = [
        (cpu_seconds(process.pid) - before) / CHANGES * 1000
        for process, before in zip((where.gateway, where.coordinator), cpu, strict=True)
    ]
    memory = psutil.Process(where.gateway.pid).memory_info().rss / 2**20
    for watcher in watchers:
        watcher.close()
    await agent.close()
    return took, spent[0], spent[1], memory


def measure() -> list[Table]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with place() as where:
        calls, gets = overhead(where)
        took, gateway, coordinator, memory = asyncio.run(watched(where))
    rows = [("GetJob over gRPC", *_shown(calls)), ("GET /jobs/{id}", *_shown(gets))]
    more = [get - call for call, get in zip(calls, gets, strict=True)]
    rows.append(("what HTTP adds", *_shown(more)))
    note = f"Milliseconds of {len(calls):,} calls each, in turn. Bar: HTTP adds {BAR_MS:g} ms at the median."
    figures = (
        (
            "from a heartbeat to the last watcher, ms",
            f"{median(took):.0f} ({min(took):.0f} to {max(took):.0f})",
        ),
        ("CPU of the gateway a change, ms", f"{gateway:.0f}"),
        ("CPU of the coordinator a change, ms", f"{coordinator:.1f}"),
        ("memory of the gateway, MiB", f"{memory:.0f}"),
    )
    watching = (
        f"{WATCHERS:,} readers of one job's stream of events, {CHANGES} changes of it one after the other."
    )
    return [
        Table("The gateway over gRPC", note, ("call", "median", "p99"), tuple(rows)),
        Table("Watchers of one job over HTTP", watching, ("figure", "value"), figures),
    ]


def _shown(values: list[float]) -> tuple[str, str]:
    return f"{median(values):.2f}", f"{sorted(values)[len(values) * 99 // 100]:.2f}"
