"""Curves and scrapes of a real fleet, whose coordinator is killed on the way."""

import asyncio
import sys
import urllib.request

import pytest

import holdfast_agent.metrics
import holdfast_coordinator.metrics
from tests import promtool
from tests.e2e.fleet import PATIENCE_S, Fleet, running
from tests.ports import free_port

pytestmark = pytest.mark.e2e

PROGRAM = """
import sys, time
from pathlib import Path
import holdfast

run, step = holdfast.init(), 0
while not Path(sys.argv[1]).exists():
    step += 1
    time.sleep(0.01)
    run.step(loss=1 / step)
    print("step", step, flush=True)
"""


async def scraped(port):
    def ask():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
            return answer.read().decode()

    return promtool.check(await asyncio.to_thread(ask))


def value(families, name, **labels):
    found = [s.value for s in families[name].samples if labels.items() <= s.labels.items()]
    return sum(found) if found else None


async def until(look, condition):
    """Look until it is as wanted."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await look()
            if condition(found):
                return found
            await asyncio.sleep(0.1)


async def test_curves_and_scrapes(tmp_path):
    fleet = Fleet(tmp_path)
    await fleet.open()
    ports = free_port(), free_port()
    try:
        fleet.start_coordinator("--metrics", str(ports[0]))
        fleet.start_agent("node-a", 4, "--metrics", str(ports[1]))
        program, over = tmp_path / "program.py", tmp_path / "over"
        program.write_text(PROGRAM)
        job_id = await fleet.submit_command([sys.executable, str(program), str(over)], 2)
        await fleet.until(job_id, running)
        await watch(fleet, job_id, *ports, over)
    finally:
        await fleet.close()


async def watch(fleet, job_id, coordinator, agent, over):
    async def curves():
        series = await fleet.retried(lambda: fleet.client.job_metrics(job_id))
        return {each.name: list(each.points) for each in series}

    stepping = await until(
        lambda: scraped(coordinator),
        lambda found: (
            value(found, "holdfast_job_steps_total", job_id=job_id)
            and value(found, "holdfast_job_steps_per_second", job_id=job_id)
        ),
    )
    assert set(stepping) >= {each.name for each in holdfast_coordinator.metrics.ALL}
    assert value(stepping, "holdfast_workers", state="running") == 2
    assert value(stepping, "holdfast_slots_used") == 2
    assert value(stepping, "holdfast_store_commit_seconds") > 0
    node = await until(
        lambda: scraped(agent),
        lambda found: value(found, "holdfast_worker_log_bytes_total", job_id=job_id, stream="stdout"),
    )
    assert set(node) >= {each.name for each in holdfast_agent.metrics.ALL}
    assert (value(node, "holdfast_agent_shims"), value(node, "holdfast_agent_connected")) == (2, 1)
    assert value(node, "holdfast_worker_cpu_seconds_total", rank="1") > 0
    assert value(node, "holdfast_worker_resident_memory_bytes", rank="0") > 2**20

    # Written by then, although nobody ended it.
    at = len((await until(curves, lambda found: len(found.get("loss", ())) >= 3))["loss"])
    before = await until(curves, lambda found: len(found["loss"]) >= at + 6)
    fleet.kill("coordinator")
    fleet.start_coordinator("--metrics", str(coordinator))
    after = await until(curves, lambda found: len(found["loss"]) > len(before["loss"]))
    assert after["loss"][:3] == before["loss"][:3]
    assert after["loss"][:at] == before["loss"][:at]
    assert [p.at.ToMilliseconds() for p in after["loss"]] == sorted(
        p.at.ToMilliseconds() for p in after["loss"]
    )
    assert value(await scraped(agent), "holdfast_agent_sessions_total") == 2
    again = await until(
        lambda: scraped(coordinator), lambda found: value(found, "holdfast_job_steps_total", job_id=job_id)
    )
    assert value(again, "holdfast_job_steps_total") >= value(stepping, "holdfast_job_steps_total")

    over.touch()
    await fleet.succeeded(job_id)
    ended = await until(curves, lambda found: "goodput" in found)
    assert {"loss", "goodput", "steps_per_second"} <= set(ended)
    assert value(await scraped(coordinator), "holdfast_job_info", job_id=job_id) is None
    await fleet.client.delete_job(job_id)
