"""The dashboard in Chromium: until something is on screen, and what it costs to be looked at, with 1,000 workers shown.

Coordinator and gateway are real, and so is the browser; the agents are simulated: they start the workers of one job and
report a step of each once a second. The browser's CPU is that of all of its processes.
"""

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.commits import Node
from benchmarks.figures import Table, cpu_seconds, seconds
from benchmarks.heartbeats import submit
from holdfast.client import Client
from tests.dashboard.browser import BUILT, Browser

WORKERS, AGENTS = 1_000, 8
OPENED = 7
SETTLE_S, MEASURED_S = 5.0, 20.0
PAGE = "#/jobs/{}?logs=off"


def missing() -> str:
    """What can't be measured here, and why; empty: all can."""
    if shutil.which("node") is None or shutil.which("chromium") is None:
        return "not measured: needs Node.js and Chromium (`make node browser`)"
    return "" if BUILT.is_file() else "not measured: run `make dashboard` first"


async def beat(nodes: list[Node]) -> None:
    """Report a step of every worker once a second, the nodes one after the other."""
    due = time.monotonic()
    while True:
        for node in nodes:
            due += 1 / len(nodes)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await node.beat()


def start(command: list[str]) -> tuple["subprocess.Popen[str]", str]:
    """Start a server that prints its address first."""
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def serve_gateway(target: str) -> None:
    """Run a gateway on a free port, and print its address."""
    from holdfast.cli.common import set_up_logs
    from holdfast_gateway.config import GatewayConfig
    from holdfast_gateway.server import Gateway

    set_up_logs()

    async def serve() -> None:
        gateway = Gateway(GatewayConfig("127.0.0.1:0", target))
        print(await gateway.start(), flush=True)
        await gateway.wait()

    asyncio.run(serve())


def browser_cpu() -> float:
    """CPU seconds so far of Chromium and what it has started."""
    mine = psutil.Process().children(recursive=True)
    return sum(cpu_seconds(process.pid) for process in mine if "chrom" in process.name())


async def look(target: str, base: str, folder: Path) -> tuple[list[float], list[float], float]:
    """Seconds to the first paint and to the ranks, of each opening; and the share of a core when steady."""
    nodes = [Node(n, target, slots=WORKERS // AGENTS) for n in range(AGENTS)]
    beating = browser = None
    try:
        await asyncio.gather(*(node.connect(expect_work=True) for node in nodes))
        await submit(target, WORKERS)
        await asyncio.gather(*(node.take_work_of(WORKERS // AGENTS) for node in nodes))
        beating = asyncio.create_task(beat(nodes))
        async with Client(target) as client:
            job_id = (await anext(client.list_jobs())).id
        browser = Browser(str(shutil.which("node")), str(shutil.which("chromium")), folder, base)
        times = []
        for _ in range(OPENED):
            await asyncio.to_thread(browser, "open", hash=PAGE.format(job_id))
            times.append(await asyncio.to_thread(browser, "paint"))
        await asyncio.sleep(SETTLE_S)
        before, began = browser_cpu(), time.monotonic()
        await asyncio.sleep(MEASURED_S)
        share = (browser_cpu() - before) / (time.monotonic() - began)
        assert "1,000" in str(await asyncio.to_thread(browser, "see", "dl.figures"))
        return [first for first, _ in times], [ranks for _, ranks in times], share
    finally:
        if browser:
            await asyncio.to_thread(browser.close)
        if beating:
            beating.cancel()
        await asyncio.gather(*(node.close() for node in nodes))


def run() -> tuple[list[float], list[float], float]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        servers = []
        try:
            coordinator, target = start(
                [sys.executable, "-m", "benchmarks.heartbeats", "holdfast", str(folder / "state")]
            )
            servers.append(coordinator)
            gateway, base = start([sys.executable, "-m", "benchmarks.dashboard", target])
            servers.append(gateway)
            return asyncio.run(look(target, base, folder / "profile"))
        finally:
            for server in servers:
                server.kill()
                server.wait()


def measure() -> list[Table]:
    head = ("what", "figure", "bar")
    note = (
        f"A job's page with {WORKERS:,} ranks that report a step each second, its logs hidden, in Chromium without "
        f"a GPU: opened {OPENED} times, then looked at for {MEASURED_S:.0f} s."
    )
    if why := missing():
        return [Table("Dashboard", note, head, (("all", why, ""),))]
    first, ranks, share = run()
    rows = (
        ("first paint, s", seconds(first), "1"),
        ("ranks drawn, s", seconds(ranks), ""),
        ("browser when steady, of a core", f"{share:.1%}", "5%"),
    )
    return [Table("Dashboard", note, head, rows)]


if __name__ == "__main__":
    serve_gateway(sys.argv[1])
