"""The agent is killed, stopped, started again: workers run on, and nothing that they did is lost (P4)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent import standing_agent
from tests.agent.fake_coordinator import key, start, stop
from tests.agent.processes import PYTHON, alive, gone, line_of, marked, names, shims, until

FOREVER = ("sleep", "1000")


@pytest.fixture
def launch(tmp_path, mark, coordinator):
    """Starts agents as processes of their own, all on one state directory."""
    agents = []

    def launch(*options):
        command = [
            sys.executable,
            standing_agent.__file__,
            coordinator.target,
            str(tmp_path / "state"),
            *options,
        ]
        agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        agents.append(agent)
        return agent

    yield launch
    for agent in agents:
        agent.kill()
        agent.wait()
        agent.stdout.close()


async def killed(agent):
    agent.kill()
    await gone(agent.pid)
    agent.wait()


async def started(session, *command, **more):
    session.say(start_workers=start(*command, **more))
    return (await session.heard("worker_started")).pid


async def test_a_new_agent_finds_the_workers_of_one_that_was_killed(coordinator, launch):
    agent = launch()
    session = await coordinator.session()
    pid = await started(session, *FOREVER)
    await killed(agent)
    assert alive(pid)
    launch()
    session = await coordinator.session()
    assert (session.inventory[0, 1].pid, session.inventory[0, 1].HasField("exit")) == (pid, False)
    session.say(start_workers=start(*FOREVER))
    await session.settled()
    assert session.count("worker_started") == 0  # P6
    os.kill(pid, signal.SIGKILL)
    assert (await session.heard("worker_exited")).exit.status.signal == signal.SIGKILL


@pytest.mark.parametrize(
    ("end", "message"), [(signal.SIGTERM, "exit code 7"), (signal.SIGKILL, "killed by SIGKILL")]
)
async def test_an_end_meanwhile_is_reported_as_it_was(coordinator, launch, tmp_path, mark, end, message):
    agent = launch()
    session = await coordinator.session()
    pid = await started(session, "sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done")
    await line_of(tmp_path / "state/jobs/job1/0-1/stdout.log")
    await killed(agent)
    os.kill(pid, end)
    await until(lambda: marked(mark) == [])  # the shim too
    launch()
    session = await coordinator.session()
    assert session.inventory[0, 1].exit.status.message == message


async def test_an_agent_that_is_told_to_end_leaves_its_workers(coordinator, launch, mark):
    agent = launch()
    session = await coordinator.session()
    pid = await started(session, *FOREVER)
    agent.terminate()
    said, _ = agent.communicate(timeout=60)
    assert agent.returncode == 0
    assert "its workers go on" in said
    assert sorted(names(mark).values()) == ["holdfast-shim", "sleep"]
    assert alive(pid)


async def test_a_foreground_agent_that_is_killed_takes_its_workers_with_it(coordinator, launch, mark):
    agent = launch("foreground")
    session = await coordinator.session()
    pid = await started(session, *FOREVER, grace_ms=1_000_000)
    deaf = await started(session, "sh", "-c", "trap '' TERM; while :; do sleep 0.01; done", job_id="job2")
    await killed(agent)
    await gone(pid, deaf)
    await until(lambda: marked(mark) == [])


@pytest.mark.parametrize("spares", [0, 2])
async def test_what_was_preloaded_goes_with_the_agent_and_warm_workers_stay(
    coordinator, launch, mark, tmp_path, spares
):
    forever = (sys.executable, "-c", "import sys, time; print('colorsys' in sys.modules); time.sleep(1000)")
    agent = launch()
    session = await coordinator.session()
    for attempt in range(1, 9):  # with spares the first starts are cold
        pid = await started(session, *forever, attempt=attempt, preload=["colorsys"], spares=spares)
        path = tmp_path / f"state/jobs/job1/0-{attempt}/stdout.log"
        if await line_of(path) == "True":
            break
        beats = [await session.beat() for _ in range(5)]
        assert beats
    else:
        raise AssertionError("no start was warm")
    assert "holdfast-spare" in names(mark).values()
    await killed(agent)
    await until(lambda: sorted(names(mark).values()) == ["holdfast-shim", PYTHON])
    launch()
    session = await coordinator.session()
    assert session.inventory[0, attempt].pid == pid
    session.say(start_workers=start(*forever, attempt=attempt + 1, preload=["colorsys"]))
    assert (await session.heard("worker_exited")).exit.status.signal == signal.SIGKILL
    assert (await session.heard("worker_started")).pid != pid
    path = tmp_path / f"state/jobs/job1/0-{attempt + 1}/stdout.log"
    assert await line_of(path) == "True"  # from a zygote of the new agent's


async def test_a_foreground_agent_takes_its_warm_workers_with_it_too(coordinator, launch, mark, tmp_path):
    agent = launch("foreground")
    session = await coordinator.session()
    forever = (sys.executable, "-c", "import sys, time; print('colorsys' in sys.modules); time.sleep(1000)")
    await started(session, *forever, grace_ms=1_000_000, preload=["colorsys"])
    assert await line_of(tmp_path / "state/jobs/job1/0-1/stdout.log") == "True"
    await killed(agent)
    await until(lambda: marked(mark) == [])


async def test_agent_and_workers_killed_in_one_blow(coordinator, launch, mark, tmp_path):
    agent = launch("foreground")
    session = await coordinator.session()
    pids = [await started(session, *FOREVER, job_id=f"job{n}") for n in range(4)]
    for pid in (*pids[:2], agent.pid, *pids[2:]):
        os.kill(pid, signal.SIGKILL)
    agent.wait()
    await until(lambda: marked(mark) == [])
    launch()
    session = await coordinator.session()
    ends = [record.exit.status.message for record in session.hello.inventory]
    assert len(ends) == 4
    assert set(ends) <= {"killed by SIGKILL", "killed by SIGTERM"}


async def test_an_end_is_recorded_when_worker_and_agent_die_in_one_moment(
    coordinator, launch, mark, tmp_path
):
    """The shim learns of both at once, and must not signal a pid that it has just reaped."""
    agent = launch("foreground")
    session = await coordinator.session()
    pid = await started(session, *FOREVER)
    (shim,) = shims(mark)
    os.kill(shim, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    await killed(agent)
    await gone(pid)
    os.kill(shim, signal.SIGCONT)
    await gone(shim)
    assert json.loads((tmp_path / "state/jobs/job1/0-1/exit.json").read_bytes())["signal"] == signal.SIGKILL


async def test_one_state_directory_has_one_agent(coordinator, launch):
    launch()
    await coordinator.session()
    second = launch()
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "another agent uses the state directory" in said
    assert "--state-dir" in said


async def test_an_agent_that_was_frozen_comes_back_and_obeys(coordinator, launch):
    """SIGSTOP for longer than the lease: the coordinator has closed its stream, and superseded its workers."""
    agent = launch()
    session = await coordinator.session()
    pid = await started(session, *FOREVER)
    os.kill(agent.pid, signal.SIGSTOP)
    session.end()
    os.kill(agent.pid, signal.SIGCONT)
    session = await coordinator.session()
    assert session.inventory[0, 1].pid == pid
    session.say(stop_workers=stop(key(), force=True))
    assert (await session.heard("worker_exited")).key == key()
    assert not alive(pid)


async def test_agent_and_coordinator_killed_together(coordinator, launch):
    agent = launch()
    session = await coordinator.session()
    pid = await started(session, *FOREVER)
    agent.kill()
    await coordinator.stop()
    agent.wait()
    coordinator.epoch = 2
    launch()
    await coordinator.start()
    session = await coordinator.session()
    assert session.inventory[0, 1].pid == pid
    assert alive(pid)


async def test_metrics_of_a_log_go_on_where_the_agent_before_was(coordinator, launch, tmp_path):
    """Also what was written, and how it ended, while there was none."""
    for tell in ("one", "two"):
        os.mkfifo(tmp_path / tell)
    one, two = (f"read -r _ <{tmp_path / tell}" for tell in ("one", "two"))
    script = f"echo step 1; echo step 2; {one}; echo step 3; {two}; printf 'step 5'"
    agent = launch()
    session = await coordinator.session()
    pid = await started(session, "sh", "-c", script, log_metrics={"step": r"step (\d+)"})
    while not (beat := await session.beat()).workers or beat.workers[0].progress.step != 2:
        pass
    await killed(agent)
    (tmp_path / "one").write_text("\n")
    await until(lambda: b"step 3" in (tmp_path / "state/jobs/job1/0-1/stdout.log").read_bytes())
    agent = launch()
    session = await coordinator.session()
    while not (beat := await session.beat()).workers or beat.workers[0].progress.step != 3:
        pass
    await killed(agent)
    (tmp_path / "two").write_text("\n")
    await gone(pid)
    launch()
    session = await coordinator.session()
    progress = (await session.heard("worker_exited")).exit.progress
    assert (progress.step, progress.steps_done) == (5, 5)


async def test_who_looks_for_metrics_ends_with_the_agent_and_is_started_anew_when_it_dies(
    coordinator, launch, mark
):
    def scans():
        return [pid for pid in marked(mark) if b"holdfast_agent.log_scan" in _command(pid)]

    agent = launch()
    session = await coordinator.session()
    script = "n=0; while sleep 0.02; do n=$((n+1)); echo step $n; done"
    await started(session, "sh", "-c", script, log_metrics={"step": r"step (\d+)"})
    (first,) = await until(scans)
    os.kill(first, signal.SIGKILL)
    await until(lambda: scans() and scans() != [first])
    step = 0
    while step < 10:
        for worker in (await session.beat()).workers:
            assert worker.progress.step >= step
            step = worker.progress.step
    await killed(agent)
    await until(lambda: not scans())


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
