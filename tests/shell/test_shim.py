"""The shim: true ends, whole logs, no survivors (P4, P8)."""

import fcntl
import json
import os
import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from holdfast_agent import shim
from holdfast_agent.core import Key
from tests.agent.processes import alive, gone, line_of, marked, name, names, shims, until

PYTHON = (sys.executable, "-S", "-c")


def nursery(mark):
    """The one child of this process: shims and workers are grandchildren."""
    (pid,) = [pid for pid in marked(mark) if str(pid) in children(os.getpid())]
    return pid


def children(pid):
    return [
        child
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def left(mark):
    """What is neither the nursery nor a shim: that is gone a moment after it has told of an end."""
    others = {pid for pid, called in names(mark).items() if called != "holdfast-shim"}
    return sorted(others - {nursery(mark)})


class TestEnds:
    @pytest.mark.parametrize("code", [0, 1, 137, 255])
    async def test_an_exit_code_is_reported(self, house, code):
        house.sh(f"exit {code}")
        assert await house.ended() == (code, 0, f"exit code {code}", False)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
    async def test_a_signal_is_reported(self, house, number):
        house.sh("exec sleep 1000")
        os.kill((await house.spawned()).pid, number)
        assert await house.ended() == (-1, number, f"killed by {number.name}", False)

    async def test_pid_and_start_time_are_the_workers_own(self, house):
        path = house.sh("echo $$; exec sleep 1000")
        spawned = await house.spawned()
        assert int(await line_of(path / "stdout.log")) == spawned.pid
        with open(f"/proc/{spawned.pid}/stat") as file:
            assert int(file.read().rpartition(")")[2].split()[19]) == spawned.pid_start

    @pytest.mark.parametrize(
        ("command", "cwd", "message"),
        [
            (["no-such-program"], "/", "command not found: no-such-program"),
            (["/no/such"], "/", "command not found: /no/such"),
            (["/etc/passwd"], "/", "command /etc/passwd can't be run: Permission denied"),
            (["true"], "/no/where", "working directory /no/where can't be used: No such file or directory"),
            (["true"], "/etc/passwd", "working directory /etc/passwd can't be used: Not a directory"),
            (["echo", "a\0b"], "/", "command echo can't be run: Invalid argument"),
        ],
    )
    async def test_what_cannot_be_run_never_ran_and_says_why(self, house, command, cwd, message):
        house.start(*command, cwd=cwd)
        assert await house.ended() == (-1, 0, message, True)

    async def test_the_program_is_looked_up_in_the_workers_own_path(self, house, tmp_path):
        program = tmp_path / "bin" / "train"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\nexit 5\n")
        program.chmod(0o700)
        house.start("train", env={"PATH": f"{program.parent}:/bin:/usr/bin"})
        assert (await house.ended())[0] == 5


class TestStopping:
    async def test_grace_lets_a_worker_finish(self, house):
        path = house.sh("trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done")
        await house.spawned()
        await line_of(path / "stdout.log")
        house.kill(force=False)
        assert await house.ended() == (3, 0, "exit code 3", False)

    async def test_who_ignores_sigterm_is_killed_after_the_grace(self, house):
        path = house.sh("trap '' TERM; echo up; while :; do sleep 0.01; done", grace_ms=100)
        await house.spawned()
        await line_of(path / "stdout.log")
        house.kill(force=False)
        assert await house.ended() == (-1, signal.SIGKILL, "killed by SIGKILL", False)

    async def test_the_grace_goes_on_without_the_agent(self, house, mark):
        path = house.sh("trap '' TERM; echo up; while :; do sleep 0.01; done", grace_ms=300)
        await house.spawned()
        await line_of(path / "stdout.log")
        (shim,) = shims(mark)
        house.kill(force=False)
        await house.restart()
        await gone(shim)
        assert json.loads((path / "exit.json").read_bytes())["signal"] == signal.SIGKILL

    async def test_force_does_not_wait_for_the_grace(self, house):
        path = house.sh("trap '' TERM; echo up; while :; do sleep 0.01; done", grace_ms=1_000_000)
        await house.spawned()
        await line_of(path / "stdout.log")
        house.kill(force=False)
        house.kill(force=True)
        assert (await house.ended())[1] == signal.SIGKILL

    async def test_sigterm_reaches_the_whole_group(self, house):
        path = house.sh("(trap 'echo child >>told; exit' TERM; echo up; while :; do sleep 0.01; done) & wait")
        await house.spawned()
        await line_of(path / "stdout.log")
        house.kill(force=False)
        assert (await house.ended())[1] == signal.SIGTERM


class TestNobodyIsLeft:
    """P8: whatever a worker started ends with it."""

    FAMILY = (
        "sleep 1001 & "  # a child
        "setsid sleep 1002 & "  # in a session of its own
        "(setsid sh -c 'sleep 1003 & exit' &) ; "  # double-forked
        "nohup sh -c 'trap \"\" TERM HUP; sleep 1004' >/dev/null 2>&1 & "  # deaf
        "sleep 0.05; echo up; "
    )

    async def test_when_the_worker_exits(self, house, mark):
        house.sh(self.FAMILY + "exit 4")
        assert (await house.ended())[0] == 4
        assert left(mark) == []

    async def test_when_the_worker_is_killed(self, house, mark):
        path = house.sh(self.FAMILY + "exec sleep 1000")
        worker = (await house.spawned()).pid
        await line_of(path / "stdout.log")
        assert len(marked(mark)) > 6
        os.kill(worker, signal.SIGKILL)
        assert (await house.ended())[1] == signal.SIGKILL
        assert left(mark) == []

    async def test_when_the_shim_is_killed(self, house, mark):
        path = house.sh(self.FAMILY + "exec sleep 1000")
        await line_of(path / "stdout.log")
        (shim,) = shims(mark)
        os.kill(shim, signal.SIGKILL)
        assert await house.ended() == (-1, signal.SIGKILL, "killed: its shim was killed", False)
        assert left(mark) == []

    async def test_an_end_does_not_wait_for_who_holds_its_output(self, house, mark):
        house.sh("echo said; setsid sleep 1000 & exit 0")
        assert (await house.ended())[0] == 0
        assert left(mark) == []

    async def test_zombies_are_reaped_while_the_worker_runs(self, house, mark):
        """Orphans that end become the shim's to reap, not the worker's."""
        path = house.sh(
            "(setsid sh -c 'exit 0' &); (setsid sh -c 'exit 0' &); sleep 0.1; echo up; exec sleep 1000"
        )
        await line_of(path / "stdout.log")
        (shim,) = shims(mark)
        await until(lambda: len(children(shim)) == 1)

    async def test_when_the_agent_gives_up_its_workers(self, house, mark):
        for rank in range(4):
            house.sh("exec sleep 1000", rank=rank)
        await house.crew.stop(workers=True)  # some of them are still being started
        assert marked(mark) == []

    async def test_descriptors_stay_as_many_as_they_were(self, house):
        house.sh("exit 0")
        await house.ended()
        await until(lambda: house.crew.watched == 0)
        before = len(os.listdir("/proc/self/fd"))
        for attempt in range(2, 12):
            house.sh("exit 0", attempt=attempt)
            await house.ended()
        house.start("no-such-program", attempt=12)
        await house.ended()
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


class TestOutput:
    async def test_every_byte_arrives_in_order(self, house):
        path = house.start(
            *PYTHON,
            "import sys; sys.stdout.write('x' * 99 + '\\n' * 1); "
            "[sys.stdout.write(f'{n:099}\\n') for n in range(50_000)]; sys.stderr.write('last')",
        )
        await house.ended()
        assert (path / "stdout.log").read_text() == "x" * 99 + "\n" + "".join(
            f"{n:099}\n" for n in range(50_000)
        )
        assert (path / "stderr.log").read_text() == "last"

    async def test_what_is_in_the_pipe_when_the_worker_ends_is_kept(self, house, mark, tmp_path):
        """More than is read at once, which the worker may put there by making the pipe larger."""
        os.mkfifo(tmp_path / "go")
        script = (
            "import fcntl, os; fcntl.fcntl(1, 1031, 1 << 20); os.write(2, b'up\\n'); "
            f"open('{tmp_path}/go').read(); os.write(1, b'x' * 500_000)"
        )
        path = house.start(*PYTHON, script)
        worker = (await house.spawned()).pid
        await line_of(path / "stderr.log")
        (shim,) = shims(mark)
        os.kill(shim, signal.SIGSTOP)
        (tmp_path / "go").write_text("")
        await gone(worker)
        os.kill(shim, signal.SIGCONT)
        assert (await house.ended())[0] == 0
        assert (path / "stdout.log").stat().st_size == 500_000

    async def test_a_full_disk_costs_output_and_nothing_else(self, house, mark):
        """The limit on file sizes stands for the full disk: writes fail from some byte on."""
        limit = 100_000
        await until(lambda: marked(mark))  # its environment shows a moment after it was started
        resource.prlimit(nursery(mark), resource.RLIMIT_FSIZE, (limit, limit))
        path = house.sh("head -c 1000000 /dev/zero; echo all written >&2; exit 6")
        assert await house.ended() == (6, 0, "exit code 6", False)
        assert (path / "stdout.log").stat().st_size == limit
        assert (path / "stderr.log").read_text() == "all written\n"
        assert json.loads((path / "exit.json").read_bytes())["dropped_bytes"] == 1_000_000 - limit

    async def test_of_very_much_the_newest_is_kept_by_the_shim_alone(self, house):
        """The crew is gone, as when the agent was killed; what bounds the disk is the shim."""
        path = house.start("yes", "the same line", log_bytes=2**20)
        await house.spawned()
        workers, _ = await house.restart()
        assert len(workers) == 1
        await house.crew.stop(workers=False)
        log = path / "stdout.log"
        await until(lambda: log.stat().st_size > 50 * 2**20)
        assert log.stat().st_blocks * 512 <= 2**20 + 64 * 1024
        await house.restart()

    async def test_its_end_is_noticed_while_it_floods(self, house):
        house.sh("yes & yes >&2 & sleep 0.2; exit 7", log_bytes=2**20)
        assert (await house.ended())[0] == 7

    async def test_who_could_not_be_killed_and_floods_does_not_keep_it(self, tmp_path):
        """As what has become another user's: whatever is read of its pipe, there is more."""
        readable, writable = os.pipe2(os.O_NONBLOCK)
        before = b"x" * os.write(writable, b"x" * fcntl.fcntl(readable, fcntl.F_GETPIPE_SZ))
        read = b""

        def append(_, data):
            nonlocal read
            read += data
            assert len(read) < 10 * len(before)
            os.write(writable, b"y" * len(data))
            return 0

        found = shim._Shim(str(tmp_path), -1, None, shim._exec, None)
        found._logs, found._pipes = SimpleNamespace(append=append), {readable: "stdout.log"}
        found._pump(readable, last=True)
        assert read.startswith(before)
        for fd in (readable, writable):
            os.close(fd)

    async def test_a_worker_may_close_its_output(self, house):
        house.sh("exec >&- 2>&-; sleep 0.05; exit 2")
        assert (await house.ended())[0] == 2


@pytest.fixture
def under_nohup():
    """As in `nohup holdfast agent &`."""
    ignored = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class TestSurroundings:
    """What a worker finds."""

    async def test_it_inherits_three_descriptors_and_no_more(self, house):
        path = house.start(*PYTHON, "import os; print(sorted(os.listdir('/proc/self/fd'), key=int))")
        await house.ended()
        assert (path / "stdout.log").read_text() == "['0', '1', '2', '3']\n"  # 3 is the listing itself

    async def test_its_signals_are_as_a_shell_would_leave_them(self, under_nohup, house):
        path = house.sh("grep -E 'SigIgn|SigBlk' /proc/self/status | cut -f 2; cat")
        await house.ended()
        libc_s_own = 0b11 << 31  # 32 and 33, which no program can set
        masks = [int(mask, 16) & ~libc_s_own for mask in (path / "stdout.log").read_text().split()]
        assert masks == [0, 0]

    async def test_it_leads_a_session(self, house):
        path = house.start(*PYTHON, "import os; print(os.getpid() == os.getsid(0) == os.getpgid(0))")
        await house.ended()
        assert (path / "stdout.log").read_text() == "True\n"

    async def test_what_it_is_told_is_readable_by_its_user_alone(self, house):
        path = house.sh("exit 0", env={"TOKEN": "secret"})
        await house.ended()
        for file in path.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file

    async def test_its_environment_is_on_no_command_line(self, house, mark):
        house.sh("exec sleep 1000", env={"TOKEN": "a-secret"})
        await house.spawned()
        for pid in marked(mark):
            with open(f"/proc/{pid}/cmdline") as file:
                assert "a-secret" not in file.read()

    async def test_its_shim_holds_nothing_of_the_agents_output(self, house, mark):
        house.sh("exec sleep 1000")
        await house.spawned()
        (shim,) = shims(mark)
        assert {os.readlink(f"/proc/{shim}/fd/{fd}") for fd in range(3)} == {"/dev/null"}


class TestNursery:
    async def test_it_is_started_anew_when_it_dies_and_workers_go_on(self, house, mark):
        house.sh("exec sleep 1000")
        worker = (await house.spawned()).pid
        killed = nursery(mark)
        os.kill(killed, signal.SIGKILL)
        await gone(killed)  # its socket too, which it still holds when its memory is gone
        house.sh("exit 0", rank=1)
        assert (await house.ended())[0] == 0
        assert alive(worker)

    @pytest.mark.parametrize("rounds", range(3))
    async def test_whatever_it_was_doing_when_it_died_every_worker_is_started(self, house, mark, rounds):
        for rank in range(20):
            house.sh("exec sleep 1000", rank=rank)
        spawned = [await house.spawned() for _ in range(rounds)]
        os.kill(nursery(mark), signal.SIGKILL)
        spawned += [await house.spawned() for _ in range(20 - rounds)]
        running = sorted(event.pid for event in spawned)
        await until(lambda: sorted(pid for pid in marked(mark) if name(pid) == "sleep") == running)

    async def test_a_start_that_it_was_asked_for_and_did_not_get_to_is_made_again(self, house, mark):
        house.sh("exit 0", rank=1)
        await house.ended()
        os.kill(nursery(mark), signal.SIGSTOP)
        path = house.sh("exec sleep 1000")
        await until(path.exists)
        os.kill(nursery(mark), signal.SIGKILL)
        assert alive((await house.spawned()).pid)

    async def test_a_module_in_the_working_directory_is_not_ours(self, house, tmp_path, monkeypatch):
        (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
        monkeypatch.chdir(tmp_path)
        await house.restart()
        house.sh("exit 0")
        assert (await house.ended())[0] == 0


class TestAfterTheAgent:
    """What the next agent finds on disk."""

    async def test_a_worker_that_runs_is_watched_again(self, house):
        house.sh("exec sleep 1000")
        before = await house.spawned()
        workers, fences = await house.restart()
        assert [(w.phase, w.pid, w.pid_start) for w in workers] == [("running", before.pid, before.pid_start)]
        assert fences == {("job1", 0): 1}
        os.kill(before.pid, signal.SIGUSR2)
        assert await house.ended() == (-1, signal.SIGUSR2, "killed by SIGUSR2", False)

    async def test_an_end_that_nobody_saw_is_found(self, house, mark):
        house.sh("read -r line <&0; exec sleep 1000")
        worker = (await house.spawned()).pid
        (shim,) = shims(mark)
        await house.crew.stop(workers=False)
        os.kill(worker, signal.SIGKILL)
        await gone(shim)
        (worker,), _ = await house.restart()
        assert worker.phase == "ended"
        assert worker.ended.exit.status.signal == signal.SIGKILL

    async def test_a_shim_that_was_killed_unseen_leaves_nobody(self, house, mark):
        path = house.sh(TestNobodyIsLeft.FAMILY + "exec sleep 1000")
        await line_of(path / "stdout.log")
        (shim,) = shims(mark)
        worker = (await house.spawned()).pid
        await house.crew.stop(workers=False)
        os.kill(shim, signal.SIGKILL)
        await gone(shim, worker)  # without anybody's help
        await house.restart()
        assert await house.ended() == (-1, signal.SIGKILL, "killed: its shim was killed", False)
        assert left(mark) == []

    async def test_a_start_that_never_began_is_undone(self, house):
        attempt, lock = house.state_dir.create(Key("job1", 0, 1), {"argv": ["true"]}, b"")
        os.close(lock)
        assert await house.restart() == ([], {})
        assert not attempt.path.exists()

    @pytest.mark.parametrize("torn", ["exit.json", "shim.json", "start.json"])
    async def test_what_a_power_cut_tore_reads_as_not_there(self, house, torn):
        path = house.sh("exit 0")
        await house.ended()
        (path / torn).write_bytes(bytes(10))
        await house.restart()
        house.sh("exit 5", rank=1)
        while (await house.ended())[0] != 5:
            pass
