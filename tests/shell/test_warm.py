"""Zygotes and spares: whose children workers are, who dies with whom, and what starts cold after all (P4, P8)."""

import asyncio
import operator
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from holdfast.v1 import agent_pb2
from holdfast_agent import warm
from holdfast_agent.core import WorkerSpawned
from tests.agent.fake_coordinator import key, start, stop
from tests.agent.processes import PYTHON, alive, gone, line_of, marked, name, names, until

SLEEPS = "import sys, time; print(*(m in sys.modules for m in ('colorsys', 'numpy')), flush=True); time.sleep(1000)"
FOREVER = (sys.executable, "-c", SLEEPS)
WARM, COLD = "True False", "False False"


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid):
    return [child for child in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _is_child(child, pid)]


def _is_child(pid, of):
    try:
        return parent(pid) == of
    except (FileNotFoundError, ProcessLookupError):
        return False


def named(mark, wanted):
    return [pid for pid, called in names(mark).items() if called == wanted]


def left(mark):
    """Names of what is no worker's: without shims, which go a moment after they have told of an end."""
    return sorted(n for n in names(mark).values() if n not in ("holdfast-shim", "holdfast-ahead"))


async def waits(house, count=1, job_id="job1"):
    """Wait until so many processes have imported; gives their pids."""
    return await until(lambda: len(pids := house.preload(job_id).pids) == count and pids)


async def preloaded(house, command=FOREVER, **how):
    """A worker that started warm; gives its pid and that of its zygote."""
    path = house.start(*command, preload=["colorsys"], **how)
    pid = (await house.spawned()).pid
    assert await line_of(path / "stdout.log") == WARM
    return pid, house.preload().pids[0]


class TestZygote:
    async def test_the_parent_of_a_worker_is_its_shim(self, house, mark):
        pid, zygote = await preloaded(house)
        assert name(parent(pid)) == "holdfast-shim"
        assert parent(parent(pid)) == zygote
        assert name(parent(zygote)) == "holdfast-spare"
        os.kill(pid, signal.SIGUSR2)
        assert await house.ended() == (-1, signal.SIGUSR2, "killed by SIGUSR2", False)
        assert alive(zygote)

    async def test_many_workers_come_from_one_zygote(self, house):
        for rank in range(4):
            house.start(*FOREVER, rank=rank, preload=["colorsys"])
        pids = {(await house.spawned()).pid for _ in range(4)}
        assert len(pids) == 4
        found = house.preload()
        assert (len(found.pids), found.started, found.forks, found.reason) == (1, 4, True, "")
        assert found.memory_bytes > 2**20

    async def test_the_next_shim_waits_before_it_is_asked_for(self, house, mark):
        await preloaded(house)
        (ahead,) = await until(lambda: named(mark, "holdfast-ahead"))
        house.start(*FOREVER, rank=1, preload=["colorsys"])
        assert parent((await house.spawned()).pid) == ahead
        (another,) = await until(lambda: named(mark, "holdfast-ahead"))
        assert another != ahead

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
    async def test_one_that_is_killed_or_stopped_as_it_waits_stops_no_start(
        self, house, mark, monkeypatch, how
    ):
        pid, _ = await preloaded(house)
        monkeypatch.setattr(warm, "ANSWERS_WITHIN_S", 0.5)
        (ahead,) = await until(lambda: named(mark, "holdfast-ahead"))
        os.kill(ahead, how)
        house.start(*FOREVER, rank=1, preload=["colorsys"])
        assert alive((await house.spawned()).pid)
        await gone(ahead)
        assert alive(pid)

    async def test_sigterm_and_grace_are_as_ever(self, house):
        deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(True, False, flush=True); time.sleep(99)"
        await preloaded(house, (sys.executable, "-c", deaf), grace_ms=100)
        house.kill(force=False)
        assert (await house.ended())[1] == signal.SIGKILL

    async def test_the_zygote_dies_and_workers_go_on(self, house):
        pid, zygote = await preloaded(house)
        os.kill(zygote, signal.SIGKILL)
        house.start(*FOREVER, rank=1, preload=["colorsys"])  # cold, if the agent does not know yet
        await house.spawned()
        await until(lambda: house.preload().pids not in ((), (zygote,)))
        path = house.start(*FOREVER, rank=2, preload=["colorsys"])
        await house.spawned()
        assert await line_of(path / "stdout.log") == WARM
        assert alive(pid)

    async def test_its_parent_dies_and_another_takes_its_place(self, house):
        pid, zygote = await preloaded(house)
        os.kill(parent(zygote), signal.SIGKILL)
        await gone(zygote)
        await until(lambda: house.preload().pids not in ((), (zygote,)))
        assert alive(pid)

    @pytest.mark.parametrize("rounds", range(3))
    async def test_killed_in_the_middle_every_start_ends_in_one_truth(self, house, mark, rounds):
        await preloaded(house, rank=99)
        for rank in range(20):
            house.start(*FOREVER, rank=rank, preload=["colorsys"])
        spawned = [await house.spawned() for _ in range(rounds)]
        os.kill(house.preload().pids[0], signal.SIGKILL)
        while len(spawned) < 20:
            event = await house.event()
            assert isinstance(event, WorkerSpawned), event
            spawned.append(event)
        running = {event.pid for event in spawned}
        assert len(running) == 20
        assert all(alive(pid) and name(parent(pid)) == "holdfast-shim" for pid in running)

    @pytest.mark.parametrize("who", ["zygote", "its parent"])
    async def test_one_that_is_stopped_stops_no_start(self, house, monkeypatch, who):
        pid, zygote = await preloaded(house)
        monkeypatch.setattr(warm, "ANSWERS_WITHIN_S", 0.5)
        os.kill(zygote, signal.SIGSTOP)
        if who != "zygote":
            os.kill(parent(zygote), signal.SIGSTOP)
        house.start(*FOREVER, rank=1, preload=["colorsys"])
        assert alive((await house.spawned()).pid)
        await gone(zygote)
        await until(lambda: house.preload().pids not in ((), (zygote,)))
        assert alive(pid)

    async def test_one_that_dies_again_and_again_is_given_up(self, house, tmp_path):
        (tmp_path / "bomb.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
        path = house.start(*FOREVER, cwd=tmp_path, preload=["bomb"])
        await house.spawned()
        assert await line_of(path / "stdout.log") == COLD
        found = house.preload()
        assert (found.pids, found.reason) == ((), "it died while it imported: without a word")

    async def test_one_that_grows_is_replaced(self, house, monkeypatch):
        pid, zygote = await preloaded(house)
        monkeypatch.setattr(warm, "GROWTH_BYTES", -(2**30))  # any size is too large
        path = house.start(*FOREVER, rank=1, preload=["colorsys"])
        await house.spawned()
        assert await line_of(path / "stdout.log") == WARM
        await until(lambda: house.preload().pids not in ((), (zygote,)))
        await gone(zygote)
        assert alive(pid)

    async def test_restarts_leave_nothing_behind(self, house, mark):
        command = (sys.executable, "-c", "pass")
        house.start(*command, preload=["colorsys"])
        await house.ended()
        (zygote,) = house.preload().pids
        watched = (os.getpid(), zygote, parent(zygote))

        def settled():
            """The last shim is gone and let go of, and the next one waits: how many descriptors there are."""
            rest = children(zygote) == named(mark, "holdfast-ahead") != [] and not house.crew.watched
            return rest and [len(os.listdir(f"/proc/{pid}/fd")) for pid in watched]

        before = await until(settled)
        for attempt in range(2, 102):
            house.start(*command, attempt=attempt, preload=["colorsys"])
            assert (await house.ended())[0] == 0
        # Not more: what tests before this one have left in this process may go meanwhile.
        await until(lambda: (now := settled()) and all(map(operator.le, now, before)))
        assert house.preload().pids == (zygote,)
        assert house.preload().memory_bytes < 100 * 2**20

    async def test_secrets_are_on_no_command_line(self, house, mark):
        await preloaded(house, env={"TOKEN": "a-secret"})
        for pid in marked(mark):
            assert b"a-secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert (house.path / "jobs/job1/preload.json").stat().st_mode & 0o077 == 0

    async def test_random_numbers_are_each_workers_own(self, house):
        code = "import random, numpy; print(random.random(), numpy.random.rand())"
        paths = []
        for rank in range(3):
            path = house.start(sys.executable, "-c", code, rank=rank, preload=["numpy", "random"])
            await house.ended()
            paths.append(path)
        numbers = [word for path in paths for word in (path / "stdout.log").read_text().split()]
        assert len(set(numbers)) == 6

    async def test_a_pool_of_blas_threads_is_no_obstacle_and_comes_back(self, house):
        code = (
            "import os, numpy as np; n = len(os.listdir('/proc/self/task')); a = np.ones((500, 500)); a @ a; "
            "print(n, len(os.listdir('/proc/self/task')) == min(4, os.cpu_count()))"
        )
        path = house.start(sys.executable, "-c", code, preload=["numpy"], env={"OPENBLAS_NUM_THREADS": "4"})
        assert (await house.ended())[0] == 0
        assert (path / "stdout.log").read_text() == "1 True\n"
        assert house.preload().forks


class TestNobodyIsLeft:
    FAMILY = (
        "import os, sys, time\n"
        "for setsid in (False, True):\n"
        "    if not os.fork():\n"
        "        setsid and os.setsid()\n"
        "        if not os.fork(): time.sleep(1000)\n"  # never exec'd: what /proc shows of them is the zygote's
        "        os._exit(0)\n"
        "    os.wait()\n"
        "os.spawnlp(os.P_NOWAIT, 'setsid', 'setsid', 'sleep', '1001')\n"
        "print(True, False, flush=True)\n"
    )

    async def test_when_the_worker_exits(self, house, mark):
        house.start(sys.executable, "-c", self.FAMILY + "sys.exit(4)", preload=["colorsys"])
        assert (await house.ended())[0] == 4
        assert left(mark) == ["holdfast-spare", PYTHON, PYTHON]

    async def test_when_the_shim_is_killed(self, house, mark):
        pid, zygote = await preloaded(house, (sys.executable, "-c", self.FAMILY + "time.sleep(1000)"))
        os.kill(parent(pid), signal.SIGKILL)
        assert await house.ended() == (-1, signal.SIGKILL, "killed: its shim was killed", False)
        assert left(mark) == ["holdfast-spare", PYTHON, PYTHON]
        assert alive(zygote)

    async def test_when_the_job_is_over(self, house, mark):
        _, zygote = await preloaded(house)
        house.crew.warm.end("job1")
        await gone(zygote)
        house.kill()
        await house.ended()
        await until(lambda: list(names(mark).values()) == [PYTHON])  # the nursery

    async def test_when_the_agent_gives_up_its_workers(self, house, mark):
        for rank in range(3):
            house.start(*FOREVER, rank=rank, preload=["colorsys"])
        await house.crew.stop(workers=True)
        await until(lambda: marked(mark) == [])

    async def test_when_no_worker_is_here_for_a_while(self, house, mark, monkeypatch):
        pid, zygote = await preloaded(house)
        house.crew.warm.note_live(lambda: {"job1"})
        house.crew.warm._jobs["job1"]._warmth = _quick(house.crew.warm._jobs["job1"]._warmth)
        house.crew.warm.note_live(set)
        await gone(zygote)
        assert house.crew.warm.preloads() == []
        assert alive(pid)


def _quick(warmth):
    return warm.Warmth(warmth.plan, warmth.spares, 0.01)


REFUSED = [
    (
        "threads",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n",
        "2 thr",
    ),
    ("calls", "import grpc\n", "gRPC was imported"),
    (
        "child",
        "import subprocess\nsubprocess.Popen(['sleep', '1003'])\n",
        "the imports have started a process",
    ),
    (
        "daemon",
        "import os\nif not os.fork():\n    os.fork() or os.execlp('sleep', 'sleep', '1004')\n\n",
        "started a process",
    ),
]
FAILS = [
    ("absent", None, "import absent: ModuleNotFoundError: No module named 'absent'"),
    ("wrong", "1 / 0\n", "import wrong: ZeroDivisionError: division by zero"),
    ("quits", "raise SystemExit(3)\n", "import quits: SystemExit: 3"),
]


class TestFallingBack:
    @pytest.mark.parametrize(("module", "text", "why"), REFUSED, ids=[case[0] for case in REFUSED])
    async def test_what_may_not_fork_becomes_a_worker_itself(self, house, mark, tmp_path, module, text, why):
        (tmp_path / f"{module}.py").write_text(text)
        pids = []
        for attempt in (1, 2):
            path = house.start(*FOREVER, attempt=attempt, cwd=tmp_path, preload=["colorsys", module])
            pids.append((await house.spawned()).pid)
            assert await line_of(path / "stdout.log") == WARM
            assert name(parent(pids[-1])) == "holdfast-shim"
            os.kill(pids[-1], signal.SIGKILL)
            assert (await house.ended())[1] == signal.SIGKILL
            (spare,) = await waits(house)
            assert spare not in pids
        found = house.preload()
        assert why in found.reason
        assert (found.forks, found.started) == (False, 2)

    @pytest.mark.parametrize(("module", "text", "why"), FAILS, ids=[case[0] for case in FAILS])
    async def test_what_cannot_be_imported_is_tried_once(self, house, mark, tmp_path, module, text, why):
        if text is not None:
            (tmp_path / f"{module}.py").write_text(text)
        for attempt in (1, 2):
            path = house.start(*FOREVER, attempt=attempt, cwd=tmp_path, preload=["colorsys", module])
            await house.spawned()
            assert await line_of(path / "stdout.log") == COLD
            house.kill(attempt=attempt)
            await house.ended()
        assert house.preload().reason == why
        await until(lambda: list(names(mark).values()) == [PYTHON])  # the nursery

    @pytest.mark.parametrize(
        ("command", "why"),
        [
            (("sh", "-c", "echo False False; exec sleep 1000"), "sh is no Python interpreter"),
            ((sys.executable, "-I", "-c", SLEEPS), "-I has it ignore PYTHONPATH"),
            (
                ("./python", "-c", SLEEPS),
                "./python can't be preloaded: it does not import sitecustomize from PYTHONPATH",
            ),
        ],
    )
    async def test_a_command_that_is_out_of_reach_starts_cold(self, house, tmp_path, command, why):
        wrapper = tmp_path / "python"
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -E "$@"\n')
        wrapper.chmod(0o700)
        path = house.start(*command, cwd=tmp_path, preload=["colorsys"])
        await house.spawned()
        assert await line_of(path / "stdout.log") == COLD
        assert house.preload().reason == why

    async def test_a_module_of_the_programs_own_is_not_hidden(self, house, tmp_path):
        (tmp_path / "select.py").write_text("")
        path = house.start(*FOREVER, cwd=tmp_path, preload=["colorsys"])
        await house.spawned()
        assert await line_of(path / "stdout.log") == COLD
        assert house.preload().reason.startswith("select.py in the program's directory")

    @pytest.mark.parametrize(
        ("command", "cwd", "message"),
        [
            (["/no/python3", "x.py"], "/", "command not found: /no/python3"),
            (
                [sys.executable, "x.py"],
                "/no/where",
                "working directory /no/where can't be used: No such file or directory",
            ),
        ],
    )
    async def test_what_cannot_be_run_says_why_as_ever(self, house, command, cwd, message):
        house.start(*command, cwd=cwd, preload=["colorsys"])
        assert await house.ended() == (-1, 0, message, True)

    async def test_a_full_disk_costs_the_warmth_alone(self, house):
        house.path.joinpath("jobs/job1").mkdir(mode=0o700)
        house.state_dir.write_plan = _no_space
        path = house.start(*FOREVER, preload=["colorsys"])
        await house.spawned()
        assert await line_of(path / "stdout.log") == COLD
        assert house.preload().reason == "it could not be started: [Errno 28] No space left on device"

    async def test_no_process_can_be_forked(self, house):
        """The limit stands for a zygote that can't fork any more."""
        _, zygote = await preloaded(house)
        resource.prlimit(zygote, resource.RLIMIT_NOFILE, (3, 3))
        house.start(*FOREVER, rank=1, preload=["colorsys"])
        assert alive((await house.spawned()).pid)


def _no_space(*_):
    raise OSError(28, "No space left on device")


class TestSpares:
    async def start(self, house, attempt=1, **how):
        path = house.start(*FOREVER, attempt=attempt, preload=["colorsys"], spares=2, **how)
        return (await house.spawned()).pid, await line_of(path / "stdout.log")

    async def test_each_becomes_one_worker_and_is_replaced(self, house, mark):
        assert (await self.start(house))[1] == COLD  # the first start waits for none
        spares = await waits(house, 2)
        assert house.preload().reason == "spares were asked for"
        for attempt, spare in enumerate(spares, 2):
            pid, said = await self.start(house, attempt)
            assert (pid, said) == (spare, WARM)
            assert name(parent(pid)) == "holdfast-shim"
        assert not set(await waits(house, 2)) & set(spares)

    async def test_one_that_dies_while_it_waits_is_replaced(self, house):
        await self.start(house)
        for _ in range(2):
            spares = await waits(house, 2)
            os.kill(spares[0], signal.SIGKILL)
            await until(lambda spare=spares[0]: spare not in house.preload().pids)
        await waits(house, 2)

    async def test_one_that_dies_as_it_is_wanted_is_a_worker_that_was_killed_or_none(self, house):
        await self.start(house)
        for spare in await waits(house, 2):
            os.kill(spare, signal.SIGKILL)
        house.start(*FOREVER, attempt=2, preload=["colorsys"], spares=2)
        event = await house.event()
        assert isinstance(event, WorkerSpawned) or event.ended.exit.status.signal == signal.SIGKILL

    async def test_they_go_with_the_agent_and_workers_stay(self, house, mark):
        await self.start(house)
        await waits(house, 2)
        pid, _ = await self.start(house, 2)
        spares = await waits(house, 2)
        workers, _ = await house.restart()
        await gone(*spares)
        assert alive(pid)
        assert pid in [worker.pid for worker in workers]
        os.kill(pid, signal.SIGUSR2)
        while (found := await house.ended())[1] != signal.SIGUSR2:
            pass
        assert found == (-1, signal.SIGUSR2, "killed by SIGUSR2", False)

    async def test_one_that_is_stopped_stops_no_start(self, house, monkeypatch):
        await self.start(house)
        monkeypatch.setattr(warm, "ANSWERS_WITHIN_S", 0.5)
        for spare in await waits(house, 2):
            os.kill(parent(spare), signal.SIGSTOP)
        assert (await self.start(house, 2))[1] == COLD


class TestAgent:
    """With the whole agent around it."""

    @pytest.fixture
    async def session(self, coordinator, agent):
        return await coordinator.session()

    async def preloads(self, session, wanted):
        async def heard():
            while True:
                beat = await session.heard("heartbeat")
                if beat.HasField("preloads") and wanted(list(beat.preloads.preloads)):
                    return list(beat.preloads.preloads)

        async with asyncio.timeout(20):
            return await heard()

    async def test_it_says_what_is_preloaded_and_ends_it_with_the_job(self, session, mark):
        session.say(start_workers=start(*FOREVER, ranks=(0, 1), preload=["colorsys"]))
        (found,) = await self.preloads(session, lambda found: found and found[0].started == 2)
        assert (found.job_id, list(found.modules), found.forks, found.reason) == (
            "job1",
            ["colorsys"],
            True,
            "",
        )
        assert found.memory_bytes % 2**20 == 0 < found.memory_bytes
        session.say(stop_workers=stop(key(0), key(1), force=True))
        for _ in range(2):
            await session.heard("worker_exited")
        session.say(job_over=agent_pb2.JobOver(job_id="job1"))
        await gone(*found.pids)
        assert await self.preloads(session, lambda found: not found) == []

    async def test_a_job_that_is_forgotten_takes_it_along(self, session):
        session.say(start_workers=start(*FOREVER, preload=["colorsys"]))
        (found,) = await self.preloads(session, lambda found: found and found[0].pids)
        session.say(forget_job=agent_pb2.ForgetJob(job_id="job1"))
        await gone(*found.pids)

    async def test_ranks_are_told_apart(self, session, tmp_path):
        code = (
            "import os; print(os.environ['RANK'], os.environ['HOLDFAST_ATTEMPT'], os.environ['MASTER_PORT'])"
        )
        command = start(
            sys.executable, "-c", code, ranks=(0, 1), attempt=2, master_port=1, preload=["colorsys"]
        )
        session.say(start_workers=command)
        for _ in range(2):
            await session.heard("worker_exited")
        said = [(tmp_path / f"state/jobs/job1/{rank}-2/stdout.log").read_text() for rank in (0, 1)]
        assert said == ["0 2 1\n", "1 2 1\n"]
