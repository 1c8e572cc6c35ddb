"""The dashboard in a real browser, over a real gateway, coordinator and agent, with real workers.

One fleet and one browser for all of them.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from holdfast.v1 import job_pb2
from tests.dashboard.browser import DASHBOARD, Browser, need_built
from tests.e2e.fleet import PATIENCE_S, Fleet, committed, running
from tests.needs import need
from tests.ports import free_port

pytestmark = pytest.mark.e2e

TRAINER = [sys.executable, str(Path(__file__).with_name("trainer.py"))]
PAGES = ("#/", "#/jobs", "#/nodes")


@pytest.fixture(scope="module")
def dash(tmp_path_factory):
    """A fleet, a browser, and a job that runs until it is stopped."""
    node, chromium = need("node"), need("chromium")
    need_built()
    root = tmp_path_factory.mktemp("dash")
    with asyncio.Runner() as runner:
        fleet = Fleet(root)
        runner.run(fleet.open())
        port = free_port()
        browser = None
        try:
            fleet.start_coordinator()
            fleet.start_agent(slots=8)
            start_gateway(fleet, port)
            job_id = runner.run(fleet.submit_command(TRAINER, 3))
            runner.run(fleet.until(job_id, running))
            browser = Browser(node, chromium, root / "profile", f"http://127.0.0.1:{port}")
            yield SimpleNamespace(fleet=fleet, run=runner.run, browser=browser, job_id=job_id, port=port)
        finally:
            if browser:
                browser.close()
            runner.run(fleet.close())


def start_gateway(fleet, port):
    fleet.start_gateway(f"127.0.0.1:{port}")
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                return
        except OSError:
            assert fleet.processes["gateway"].poll() is None, (fleet.root / "gateway.log").read_text()
            assert time.monotonic() < until, (fleet.root / "gateway.log").read_text()
            time.sleep(0.05)


@pytest.fixture
def browser(dash):
    """A page that has nothing to complain about afterwards: no error in its console, nothing against its policy."""
    dash.browser("open", hash="#/")
    yield dash.browser
    assert dash.browser("complaints") == []


def test_pure_pieces():
    """Searching, sorting, thinning, addresses: the tests that are in TypeScript."""
    need("node")
    need_built()
    done = subprocess.run(
        ["npm", "test", "--silent"], cwd=DASHBOARD, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_job_that_is_submitted_is_on_screen(dash, browser):
    link = f'a[href="#/jobs/{dash.job_id}"]'
    browser("see", f"table {link}")
    other = dash.run(dash.fleet.submit(world=1, steps=5))
    dash.run(dash.fleet.succeeded(other))
    browser("see", f'.ended a[href="#/jobs/{other}"]')
    browser("click", f"table {link}")
    browser("see", f'code:has-text("{dash.job_id}")')
    browser("see", 'h1:has-text("test")')
    assert browser("hash") == f"#/jobs/{dash.job_id}"


def test_a_killed_rank_shows_its_new_attempt_and_why(dash, browser):
    job = dash.run(dash.fleet.until(dash.job_id, committed(25)))
    browser("open", hash=f"#/jobs/{dash.job_id}?view=table")
    browser("see", "li[data-kind=CheckpointCommitted]")
    os.kill(job.workers[1].pid, signal.SIGKILL)
    why = browser("see", "li[data-kind=RestartDecided]")
    assert "rank 1 on node node-a: killed by SIGKILL" in why
    assert "restarts from step" in why
    browser("see", 'tr:has(input[aria-label="Logs of rank 1"]) td:nth-child(8):has-text("2")')
    browser("see", 'tr:has(input[aria-label="Logs of rank 1"]) td:has-text("killed by SIGKILL")')
    browser("see", 'svg[aria-label^="Timeline: 2 attempts"]')
    print(f"on screen {browser('delay', kind='RestartDecided')} ms after the event")


def test_logs_and_curves_are_live(dash, browser):
    job_id = dash.run(dash.fleet.submit_command(TRAINER, 2, "rank"))
    browser("open", hash=f"#/jobs/{job_id}")
    browser("see", '.lines li:has-text("of rank 0")')
    browser("see", '.lines li:has-text("of rank 1")')
    browser("see", 'figure:has-text("loss") .uplot')
    browser("fill", 'label:has-text("Ranks") input', text="1")
    age = browser("see", '.figure:has-text("Age") .value')
    browser("gone", f'.figure:has-text("Age") .value:text-is("{age}")')  # the page was drawn again meanwhile
    browser("press", keys=["Enter"])
    browser("gone", '.lines li:has-text("of rank 0")')
    browser("see", '.lines li:has-text("of rank 1")', many=3)
    assert browser("hash") == f"#/jobs/{job_id}?ranks=1"
    dash.run(dash.fleet.client.stop_job(job_id, force=True))
    browser("see", '.title .state:has-text("stopped")')
    browser("see", 'p.note:has-text("the job has ended")')


def test_stopping_and_restarting_ask_first(dash, browser):
    job_id = dash.run(dash.fleet.submit_command(TRAINER, 1))
    dash.run(dash.fleet.until(job_id, committed(25)))
    browser("open", hash=f"#/jobs/{job_id}")
    browser("click", 'button:text("Stop…")')
    browser("see", 'button:focus:text("Leave it")')
    browser("click", 'button:text("Leave it")')
    browser("gone", "dialog")
    assert dash.run(dash.fleet.client.get_job(job_id)).desired == job_pb2.DESIRED_STATE_RUNNING
    browser("click", 'button:text("Stop…")')
    browser("click", 'button:text("Stop it")')
    browser("see", '.title .state:has-text("stopped")')
    stopped = dash.run(dash.fleet.ended(job_id))
    assert stopped.state == job_pb2.JOB_STATE_STOPPED
    browser("click", 'button:text("Restart…")')
    browser("click", 'button:text("Restart it")')
    browser("see", '.title .state:has-text("running")')
    again = dash.run(dash.fleet.until(job_id, running))
    assert again.workers[0].resume_step == stopped.last_committed_step
    browser("click", 'button:text("Stop…")')
    browser("click", 'label:has-text("At once")')
    browser("click", 'button:text("Stop it")')
    browser("see", '.title .state:has-text("stopped")')


def test_everything_can_be_done_with_keys(dash, browser):
    browser("tab_to", name="Skip to the page")
    browser("tab_to", name="Jobs")
    browser("press", keys=["Enter"])
    browser("see", 'h1:text("Jobs")')
    browser("tab_to", name="Name")
    browser("press", keys=["Enter"])
    browser("see", 'th[aria-sort="ascending"]:has-text("Name")')
    browser("open", hash=f"#/jobs/{dash.job_id}")
    browser("tab_to", name="3 ranks")
    browser("press", keys=["ArrowRight", "ArrowRight"])
    browser("see", '#rank-here:has-text("rank 1: running")')
    browser("press", keys=["Enter"])
    assert browser("hash") == f"#/jobs/{dash.job_id}?ranks=1"
    browser("press", keys=["End", "Enter"])
    assert browser("hash") == f"#/jobs/{dash.job_id}?ranks=1-2"
    browser("focus", 'button:text("Stop…")')
    browser("press", keys=["Enter"])
    browser("see", "dialog[open]")
    browser("press", keys=["Escape"])
    browser("gone", "dialog")
    browser("see", 'button:focus:text("Stop…")')


def test_a_reload_shows_the_same(dash, browser):
    browser("open", hash="#/jobs")
    browser("fill", "input[type=search]", text=f"test {dash.job_id[:5]}")
    browser("choose", 'label:has-text("State") select', value="running")
    browser("click", 'th button:has-text("Restarts")')
    browser("see", f'tr[data-job="{dash.job_id}"]')
    before = browser("hash")
    browser("reload")
    browser("see", f'tr[data-job="{dash.job_id}"]')
    assert browser("hash") == before
    assert browser("value", "input[type=search]") == f"test {dash.job_id[:5]}"
    assert browser("value", 'label:has-text("State") select') == "running"
    browser("see", 'th[aria-sort="ascending"]:has-text("Restarts")')


def test_axe_finds_nothing(dash, browser):
    """In the dark, of all that it looks for, contrast: the rest is the same."""
    for page in (
        *PAGES,
        f"#/jobs/{dash.job_id}?ranks=0&routine=off",
        f"#/jobs/{dash.job_id}?view=table&logs=off",
    ):
        browser("open", hash=page)
        browser("see", ".lines li" if "ranks=" in page else "tbody tr")
        assert browser("axe", theme="light") == [], page
        assert browser("axe", theme="dark", rules=["color-contrast"]) == [], page
    browser("click", 'button:text("Stop…")')
    browser("see", "dialog[open]")
    assert browser("axe", theme="light") == [], "the dialog"
    assert browser("axe", theme="dark", rules=["color-contrast"]) == [], "the dialog"


def test_nodes_are_cordoned_and_drained_after_asking(dash, browser):
    browser("open", hash="#/nodes")
    browser("click", 'button:text("Cordon…")')
    browser("see", 'dialog:has-text("Cordon node-a?")')
    browser("click", 'button:text("Cordon it")')
    browser("see", 'tr[data-node="node-a"] .state:has-text("cordoned")')
    assert dash.run(dash.fleet.client.get_node("node-a")).cordoned
    browser("click", 'button:text("Uncordon…")')
    browser("click", 'button:text("Uncordon it")')
    browser("see", 'tr[data-node="node-a"] td:text("takes it")')
    assert not dash.run(dash.fleet.client.get_node("node-a")).cordoned
    browser("click", 'button:text("Drain…")')
    browser("see", 'dialog:has-text("Drain node-a?")')
    browser("click", 'button:text("Drain it")')
    browser("see", 'tr[data-node="node-a"] .state:has-text("drained")')
    assert dash.run(dash.fleet.client.get_node("node-a")).drained
    dash.run(dash.fleet.client.uncordon_node("node-a"))
    browser("see", 'tr[data-node="node-a"] td:text("takes it")')


def test_what_is_not_there_is_said_in_a_sentence(dash, browser):
    browser("open", hash="#/jobs/nothere")
    assert "nothere" in browser("see", "[role=alert]")
    (complaint,) = browser("complaints")  # one, since it is not asked for again and again
    assert complaint == "Failed to load resource: the server responded with a status of 404 (Not Found)"


def test_a_lost_connection_is_shown_and_made_good(dash, browser):
    browser("open", hash=f"#/jobs/{dash.job_id}?routine=off")
    browser("see", "li[data-kind=JobCreated]")
    dash.fleet.kill("gateway")
    assert "What is shown is old: it is as of" in browser("see", ".banner")
    browser("see", "main.old")
    job = dash.run(dash.fleet.client.get_job(dash.job_id))
    os.kill(job.workers[2].pid, signal.SIGKILL)
    dash.run(dash.fleet.until(dash.job_id, lambda now: now.attempt > job.attempt and running(now)))
    start_gateway(dash.fleet, dash.port)
    browser("gone", ".banner")
    browser("see", 'li[data-kind=RestartDecided]:has-text("rank 2 on node node-a: killed by SIGKILL")')
    assert len(set(browser("texts", "li[data-kind=JobCreated]"))) == 1
    dash.fleet.kill("coordinator")
    browser("see", '.banner:has-text("The coordinator is away.")')
    dash.fleet.start_coordinator()
    browser("gone", ".banner")
    assert all("ERR_" in text or "50" in text for text in browser("complaints"))
