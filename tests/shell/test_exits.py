"""What is known of an end, whoever was down, stopped or killed when it came."""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from holdfast.v1 import job_pb2
from holdfast_agent.agent import Agent, AgentConfig
from holdfast_agent.core import Key, Stop, WorkerSpawned
from holdfast_agent.crew import _wake_shim
from holdfast_agent.shim import _Alone, start_time
from holdfast_agent.workdir import StateDir
from tests.agent.fake_coordinator import PATIENCE_S, key, start, stop
from tests.agent.processes import alive, gone, line_of, shims, until

DEAF = "trap '' TERM; echo up; while :; do sleep 0.01; done"
FOREVER = ("sleep", "1000")
IMPORTS = (sys.executable, "-S", "-c", "print('out')\nimport foo")


def read(path, record):
    return json.loads((path / record).read_bytes())


class TestEvidence:
    async def test_the_last_lines_and_the_one_that_matters(self, house):
        house.start(*IMPORTS)
        found = await house.exit()
        assert found.status.line == "ModuleNotFoundError: No module named 'foo'"
        assert found.tail.startswith("Traceback (most recent call last):\n")
        assert found.tail.endswith(found.status.line)
        assert found.status.kind == job_pb2.EXIT_KIND_EXITED

    async def test_when_it_was(self, house):
        before = time.monotonic_ns()
        house.sh("exit 1")
        found = await house.exit()
        assert before < found.ended_ns < time.monotonic_ns()

    async def test_not_by_the_clock_of_another_boot(self, house):
        house.sh("exit 1", boot_id="another")
        assert (await house.exit()).ended_ns == 0

    async def test_also_when_the_agent_was_down(self, house, mark):
        patterns = [[0, "nothing"], [2, "^Module.*foo'$"], [3, "out"]]
        path = house.start(
            sys.executable, "-S", "-c", "import time; time.sleep(0.2); import foo", log_rules=patterns
        )
        await house.spawned()
        (shim,) = shims(mark)
        await house.crew.stop(workers=False)
        await gone(shim)
        (worker,), _ = await house.restart()
        assert worker.ended.exit.status.line == "ModuleNotFoundError: No module named 'foo'"
        assert list(worker.ended.exit.matched_rules) == [2]
        assert worker.ended.exit.ended_ns == read(path, "exit.json")["ended_ns"]

    async def test_rules_look_into_both_outputs(self, house):
        house.sh(
            "echo on stdout; echo on stderr >&2; exit 3", log_rules=[[0, "on stdout"], [1, "on std(err)"]]
        )
        assert list((await house.exit()).matched_rules) == [0, 1]

    async def test_no_rule_is_asked_about_a_success(self, house):
        house.sh("echo x", log_rules=[[0, "x"]])
        found = await house.exit()
        assert (list(found.matched_rules), found.status.line) == ([], "")

    async def test_a_full_disk_is_told_as_such(self, house):
        house.start(sys.executable, "-S", "-c", "open('/dev/full', 'w').write('x' * 9999)")
        found = await house.exit()
        assert found.status.kind == job_pb2.EXIT_KIND_DISK_FULL
        assert found.status.message == "exit code 1, disk full"
        assert "No space left on device" in found.status.line

    async def test_memory_that_was_not_to_be_had_is_told_as_such(self, house):
        house.start(sys.executable, "-S", "-c", "bytearray(1 << 62)")
        found = await house.exit()
        assert (found.status.kind, found.status.line) == (job_pb2.EXIT_KIND_OUT_OF_MEMORY, "MemoryError")

    async def test_one_that_takes_too_long_is_named(self, house, monkeypatch):
        monkeypatch.setattr("holdfast_agent.log_rules.WITHIN_S", 0.5)
        line = "a" * 500 + "b"
        house.sh(f"echo {line}; exit 3", log_rules=[[1, "(a+)+$"]])
        found = await house.exit()
        assert found.status.message == "exit code 3; the log of rule 2 took too long to look for"


class TestStoppedShim:
    """SIGSTOP: its worker goes on, and it does what it is told."""

    @pytest.mark.parametrize("force", [True, False])
    async def test_it_can_be_told_to_stop_its_worker(self, house, mark, force):
        house.sh("exec sleep 1000")
        worker = (await house.spawned()).pid
        (shim,) = shims(mark)
        os.kill(shim, signal.SIGSTOP)
        assert alive(worker)
        house.kill(force=force)
        assert (await house.ended())[1] == (signal.SIGKILL if force else signal.SIGTERM)

    async def test_the_end_of_its_worker_is_noticed(self, house, mark):
        house.sh("exec sleep 1000")
        worker = (await house.spawned()).pid
        os.kill(shims(mark)[0], signal.SIGSTOP)
        os.kill(worker, signal.SIGSEGV)
        assert (await house.ended())[1] == signal.SIGSEGV

    async def test_also_by_an_agent_that_came_later(self, house, mark):
        house.sh("exec sleep 1000")
        worker = (await house.spawned()).pid
        os.kill(shims(mark)[0], signal.SIGSTOP)
        await house.restart()
        assert isinstance(await house.event(), WorkerSpawned)
        os.kill(worker, signal.SIGSEGV)
        assert (await house.ended())[1] == signal.SIGSEGV


async def test_a_pid_that_is_anothers_by_now_is_never_signalled(house, mark):
    """Shim and agent were killed, and their pids given to somebody else."""
    path = house.sh("exec sleep 1000")
    worker = (await house.spawned()).pid
    await house.crew.stop(workers=False)
    (shim,) = shims(mark)
    os.kill(shim, signal.SIGKILL)
    await gone(shim, worker)
    innocent = subprocess.Popen(["sleep", "1000"], env={})
    try:
        record = read(path, "shim.json")
        (path / "shim.json").write_text(
            json.dumps(record | {"pid": innocent.pid, "worker_pid": innocent.pid})
        )
        await house.restart()
        assert await house.ended() == (-1, signal.SIGKILL, "killed: its shim was killed", False)
        for how in (Stop.GRACE, Stop.RESTART, Stop.FORCE):
            house.crew.signal(Key("job1", 0, 1), how)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


@pytest.mark.parametrize(("shift", "wakes"), [(0, True), (1, False)])
async def test_a_shim_is_woken_by_the_end_of_its_own_worker_alone(shift, wakes):
    """The worker's pid may be somebody else's by now: that one's end says nothing."""
    shim = subprocess.Popen(["sleep", "1000"], env={})
    worker = subprocess.Popen(["true"], env={})
    pidfd = os.pidfd_open(shim.pid)
    try:
        shim.send_signal(signal.SIGSTOP)
        await until(lambda: state(shim.pid) == "T")
        await asyncio.wait_for(
            _wake_shim(Key("job1", 0, 1), pidfd, worker.pid, start_time(worker.pid) + shift), PATIENCE_S
        )
        assert (state(shim.pid) != "T") is wakes
    finally:
        os.close(pidfd)
        shim.kill()
        shim.wait()
        worker.wait()


def state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


class TestOrphaned:
    """A shim whose agent never comes back."""

    def begin(self, house, **more):
        lock = str(house.state_dir.lock_path)
        return house.sh(DEAF, agent_lock=lock, orphaned_after_s=0.4, grace_ms=100, **more)

    async def test_it_stops_its_worker_after_the_time_that_was_set_and_says_why(self, house, mark):
        path = self.begin(house)
        await house.spawned()
        await line_of(path / "stdout.log")
        (shim,) = shims(mark)
        await house.close(workers=False)
        await gone(shim)
        found = read(path, "exit.json")
        assert (found["signal"], found["killed"], found["alone_s"]) == (signal.SIGKILL, True, 1)

    async def test_the_next_agent_tells_it(self, house, mark, tmp_path):
        path = self.begin(house)
        await house.spawned()
        await line_of(path / "stdout.log")
        (shim,) = shims(mark)
        await house.close(workers=False)
        await gone(shim)
        found = house.crew._witness.recorded_at_start(house.state_dir.attempt(Key("job1", 0, 1))).exit
        assert found.status.kind == job_pb2.EXIT_KIND_ABANDONED
        assert found.status.message == "stopped (killed by SIGKILL): there was no agent for 1 s"


class TestAlone:
    """How a shim knows, by a clock that the test turns."""

    @pytest.fixture
    def clock(self, monkeypatch):
        class Clock:
            now = 1_000.0

        monkeypatch.setattr("holdfast_agent.shim.time.monotonic", lambda: Clock.now)
        return Clock

    def look(self, alone, clock):
        """Let the time come at which it looks."""
        clock.now = alone.look_at
        return alone.for_too_long()

    def test_while_there_is_an_agent_it_is_not_alone(self, clock, tmp_path):
        agent = StateDir(tmp_path)
        alone = _Alone(str(agent.lock_path), 200)
        assert not any(self.look(alone, clock) for _ in range(10))
        agent.close()
        looks = [self.look(alone, clock) for _ in range(5)]
        assert looks == [False, False, False, False, True]
        assert alone.ended_after_s == 200
        assert alone.look_at is None

    def test_an_agent_that_comes_back_ends_it(self, clock, tmp_path):
        agent = StateDir(tmp_path)
        alone = _Alone(str(agent.lock_path), 200)
        agent.close()
        assert not any(self.look(alone, clock) for _ in range(4))
        agent = StateDir(tmp_path)
        assert not self.look(alone, clock)
        agent.close()
        assert not any(self.look(alone, clock) for _ in range(4))
        assert self.look(alone, clock)

    def test_without_a_limit_it_never_looks(self, clock, tmp_path):
        assert _Alone(str(tmp_path), 0).look_at is None
        assert _Alone("", 5).look_at is None

    def test_looking_keeps_no_agent_from_starting(self, tmp_path):
        StateDir(tmp_path).close()
        shim = os.open(tmp_path / "lock", os.O_RDONLY)
        fcntl.flock(shim, fcntl.LOCK_SH)
        threading.Timer(0.05, os.close, (shim,)).start()
        StateDir(tmp_path).close()


@pytest.fixture
async def make_agent(tmp_path, mark, coordinator):
    agents = []

    def make(**config):
        agent = Agent(AgentConfig(coordinator.target, tmp_path / "state", name="node-a", slots=4, **config))
        agents.append((agent, asyncio.create_task(agent.run())))
        return agent

    yield make
    for agent, running in agents:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await agent.stop(workers=True)


class TestAgent:
    async def test_hello_says_what_its_clock_says(self, coordinator, make_agent):
        before = time.monotonic_ns()
        make_agent()
        assert before < (await coordinator.session()).hello.monotonic_ns < time.monotonic_ns()

    async def test_survivors_of_a_gang_have_a_grace_of_their_own(self, coordinator, make_agent, tmp_path):
        make_agent()
        session = await coordinator.session()
        session.say(start_workers=start("sh", "-c", DEAF, grace_ms=1_000_000, restart_grace_ms=100))
        await line_of(tmp_path / "state" / "jobs" / "job1" / "0-1" / "stdout.log")
        session.say(stop_workers=stop(key(), restart=True))
        assert (await session.heard("worker_exited")).exit.status.signal == signal.SIGKILL

    async def test_rules_of_the_spec_are_looked_for_on_the_node(self, coordinator, make_agent):
        make_agent()
        session = await coordinator.session()
        rules = [job_pb2.Rule(signals=[9]), job_pb2.Rule(log="uncorrectable ECC")]
        session.say(start_workers=start("sh", "-c", "echo uncorrectable ECC; exit 1", rules=rules))
        assert list((await session.heard("worker_exited")).exit.matched_rules) == [1]

    async def test_left_alone_it_stops_its_workers_and_tells_when_it_is_back(
        self, coordinator, make_agent, mark
    ):
        make_agent(stop_after_disconnect_s=0.3)
        session = await coordinator.session()
        session.say(start_workers=start("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.01; done"))
        pid = (await session.heard("worker_started")).pid
        await coordinator.stop()
        await gone(pid)
        await coordinator.start()
        found = (await coordinator.session()).inventory[0, 1].exit
        assert (found.status.code, found.status.kind) == (0, job_pb2.EXIT_KIND_ABANDONED)
        assert found.status.message == "stopped (exit code 0): its agent had no coordinator for 0.3 s"

    async def test_back_in_time_it_stops_nobody(self, coordinator, make_agent):
        agent = make_agent(stop_after_disconnect_s=1_000)
        session = await coordinator.session()
        session.say(start_workers=start(*FOREVER))
        pid = (await session.heard("worker_started")).pid
        session.end()
        session = await coordinator.session()
        await until(lambda: agent._alone is None)
        assert alive(pid)
