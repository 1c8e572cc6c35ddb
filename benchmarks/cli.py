"""How long the command line takes: `--help`, and `job list` of 1,000 jobs, beside an interpreter that does nothing."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Table, median
from holdfast.client import Client
from holdfast.v1 import job_pb2
from holdfast.wire import Unreachable

JOBS = 1_000
AT_ONCE = 50
WORLD_SIZE = 4
ROUNDS = 15
"""All commands are run in turn, so that a machine that is slow for a while is slow for all."""

HOLDFAST = str(Path(sys.executable).with_name("holdfast"))
COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}
"""As where holdfast is installed: its modules are compiled once, not at every start."""
NOTHING = [sys.executable, "-c", "pass"]


def took(command: list[str], **env: str) -> float:
    """Seconds from the start of a command to its end."""
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, env={**os.environ, **COMPILED, **env}, check=True)
    return time.perf_counter() - began


async def answers(client: Client) -> bool:
    """Whether the coordinator is up."""
    try:
        await client.clock_offset()
    except Unreachable:
        return False
    return True


async def submit(target: str) -> None:
    """Have so many jobs; they wait, since there is no agent."""
    spec = job_pb2.JobSpec(
        name="digits", command=["python", "train.py", "--lr", "0.1"], world_size=WORLD_SIZE
    )
    turns = asyncio.Semaphore(AT_ONCE)
    async with Client(target) as client:
        while not await answers(client):
            await asyncio.sleep(0.1)

        async def one() -> None:
            async with turns:
                await client.create_job(spec)

        await asyncio.gather(*(one() for _ in range(JOBS)))


def measure() -> list[Table]:
    """Start a coordinator, fill it, and run every command so many times."""
    commands = {
        "`holdfast --help`": ([HOLDFAST, "--help"], "200"),
        "`holdfast job --help`": ([HOLDFAST, "job", "--help"], "200"),
        "`holdfast job submit --help`": ([HOLDFAST, "job", "submit", "--help"], "200"),
        f"`holdfast job list` of {JOBS:,} jobs": ([HOLDFAST, "job", "list"], "500"),
        f"`holdfast job list -o json` of {JOBS:,} jobs": ([HOLDFAST, "job", "list", "-o", "json"], "-"),
    }
    with tempfile.TemporaryDirectory() as folder:
        target = f"unix:{folder}/c.sock"
        serve = [HOLDFAST, "coordinator", "--listen", target, "--state-dir", f"{folder}/state"]
        with subprocess.Popen(serve, stderr=subprocess.DEVNULL) as server:
            try:
                asyncio.run(submit(target))
                for command, _ in commands.values():
                    took(command, HOLDFAST_SERVER=target)
                rounds = [
                    [
                        took(NOTHING),
                        *(took(command, HOLDFAST_SERVER=target) for command, _ in commands.values()),
                    ]
                    for _ in range(ROUNDS)
                ]
            finally:
                server.kill()
    nothing, *times = zip(*rounds, strict=True)
    rows = [("`python -c pass`", _ms(nothing), "1", "-")]
    for (name, (_, bar)), found in zip(commands.items(), times, strict=True):
        ratios = [mine / least for mine, least in zip(found, nothing, strict=True)]
        rows.append((name, _ms(found), f"{median(ratios):.1f}", bar))
    note = (
        f"From the start of the process to its end; medians of {ROUNDS} rounds with their range, the ratio beside the "
        f"interpreter of the same round. The jobs have {WORLD_SIZE} ranks each."
    )
    return [Table("Command line", note, ("command", "ms", "ratio", "bar, ms"), tuple(rows))]


def _ms(values: tuple[float, ...]) -> str:
    return f"{median(values) * 1000:.0f} ({min(values) * 1000:.0f} to {max(values) * 1000:.0f})"


if __name__ == "__main__":
    for each in measure():
        print(each.markdown())
