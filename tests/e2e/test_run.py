"""`holdfast run` with everything that is in it: real coordinator, agent, shims and workers."""

import os
import pty
import signal
import subprocess
import sys

import psutil
import pytest

from holdfast.cli.exits import EXIT
from tests.e2e.fleet import HOLDFAST, PATIENCE_S, leftovers

pytestmark = pytest.mark.e2e

STEPS = """
import sys, time
import holdfast
run = holdfast.init()
for _ in range(int(sys.argv[1])):
    run.step()
    time.sleep(0.002)
"""


class Run:
    """A `holdfast run` in a process of its own."""

    def __init__(self, folder, arguments, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        self.process = subprocess.Popen([HOLDFAST, "run", *arguments], cwd=folder, **options)

    def ended(self):
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err

    def line(self):
        return self.process.stdout.readline()

    def send(self, number):
        self.process.send_signal(number)


@pytest.fixture
def start(tmp_path):
    """Starts runs, and sees to it that none is left: when a run is killed, so are its workers."""
    runs = []

    def make(*arguments, **options):
        runs.append(Run(tmp_path, arguments, **options))
        return runs[-1]

    yield make
    for run in runs:
        run.process.kill()
        run.process.communicate(timeout=PATIENCE_S)
    psutil.wait_procs(leftovers(tmp_path), timeout=PATIENCE_S)
    assert not leftovers(tmp_path)


def gone(*pids):
    """Whether these processes end."""
    processes = [psutil.Process(int(pid)) for pid in pids if psutil.pid_exists(int(pid))]
    return not psutil.wait_procs(processes, timeout=PATIENCE_S)[1]


def runs(folder):
    return sorted(path.name for path in (folder / ".holdfast" / "runs").glob("*"))


def test_output_table_and_files(start, tmp_path):
    code, out, err = start("-n", "2", "--", "sh", "-c", "echo out $RANK; echo err $RANK >&2").ended()
    assert code == 0
    assert sorted(out.splitlines()) == ["[0] out 0", "[1] out 1"]
    assert {"[0] err 0", "[1] err 1", "  restarts  0"} <= set(err.splitlines())
    assert err.index("[1] err 1") < err.index("  restarts")
    assert (tmp_path / ".holdfast" / ".gitignore").read_text() == "*\n"
    assert runs(tmp_path) == ["sh"]
    assert (tmp_path / ".holdfast" / "runs" / "sh").stat().st_mode & 0o077 == 0


def test_all_output_comes_before_the_table(start):
    program = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; printf end"
    code, out, _ = start("--", "sh", "-c", program, stderr=subprocess.STDOUT).ended()
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("[0]")]
    assert lines == [f"[0] line {n}" for n in range(20000)] + ["[0] end"]
    assert out.index("[0] end") < out.index("  restarts")


def test_a_failure_is_told_with_its_cause(start):
    code, _, err = start("--restart-budget", "0", "--", "sh", "-c", "exit 3").ended()
    assert code == EXIT.FAILED
    assert err.splitlines()[-1].startswith("Error: the job failed: rank 0 on node ")
    assert "exit code 3" in err.splitlines()[-1]


def test_what_can_not_be_started_is_not_tried_again(start):
    code, _, err = start("-n", "2", "--", "no-such-command").ended()
    assert code == EXIT.FAILED
    assert "command not found: no-such-command" in err.splitlines()[-1]
    assert "  restarts  0" in err.splitlines()


def test_a_spec_that_can_not_be_leaves_nothing(start, tmp_path):
    code, _, err = start("-n", "0", "--", "true").ended()
    assert code == EXIT.USAGE
    assert err.splitlines()[-1].startswith("Error: --world-size: 0 is not between 1 and")
    assert runs(tmp_path) == []


@pytest.mark.parametrize("name", ["../out", "a/b", "..", "-x"])
def test_a_name_is_no_path(start, tmp_path, name):
    before = set(tmp_path.parent.iterdir())
    code, _, _ = start(f"--name={name}", "--", "true").ended()
    assert code == EXIT.USAGE
    assert runs(tmp_path) == []
    assert set(tmp_path.parent.iterdir()) == before


def test_a_restart_is_told(start):
    program = '[ "$HOLDFAST_ATTEMPT" = 2 ] || exit 7'
    code, _, err = start("--backoff", "0", "--", "sh", "-c", program).ended()
    assert code == 0
    (note,) = [line for line in err.splitlines() if "restart 1 of 50" in line]
    assert "exit code 7; restarts from the beginning" in note
    assert "  restarts  1" in err.splitlines()


def test_chaos(start, tmp_path):
    (tmp_path / "train.py").write_text(STEPS)
    flags = ("-n", "2", "--restart-scope", "rank", "--backoff", "0", "--chaos", "kill-worker@step=20,rank=1")
    code, _, err = start(*flags, "--", sys.executable, "train.py", "100").ended()
    assert code == 0, err
    assert "holdfast: chaos: SIGKILL to rank 1" in err
    assert "rank 1 on node" in err
    assert "  restarts      1" in err.splitlines()
    assert "  steps         100" in err.splitlines()


def test_ctrl_c_stops_gracefully(start):
    program = 'trap "echo bye; exit 0" TERM; echo $$; while :; do sleep 0.02; done'
    run = start("-n", "2", "--", "sh", "-c", program)
    pids = {run.line().split()[1] for _ in range(2)}
    run.send(signal.SIGINT)
    code, out, err = run.ended()
    assert code == EXIT.INTERRUPTED
    assert sorted(out.splitlines()) == ["[0] bye", "[1] bye"]
    assert "holdfast: stopping; once more stops at once" in err
    assert "Traceback" not in err
    assert gone(*pids)


LEAVES = """
import sys, time
import holdfast
run = holdfast.init()
state = run.restore(default={"step": 0})
for step in range(state["step"] + 1, int(sys.argv[1])):
    time.sleep(0.01)
    run.step()
    run.checkpoint({"step": step}, every=10_000)
    if step == state["step"] + 5:
        print("from", state["step"], flush=True)
    if run.should_stop:
        print("left at", step, flush=True)
        break
"""


def test_ctrl_c_loses_nothing_and_says_how_to_go_on(start, tmp_path):
    (tmp_path / "train.py").write_text(LEAVES)
    program = ("--", sys.executable, "train.py", "100000")
    run = start("--name", "mine", "-n", "2", "--stop-grace", "60s", *program)
    assert {run.line() for _ in range(2)} == {"[0] from 0\n", "[1] from 0\n"}
    run.send(signal.SIGINT)
    code, out, err = run.ended()
    assert code == EXIT.INTERRUPTED
    (left,) = {line.split()[-1] for line in out.splitlines()}
    said = f"stopped by its user at step {left}, which is committed; a run with --resume-from mine goes on"
    assert f"holdfast: {said}" in err.splitlines()
    again = start("-n", "2", "--stop-grace", "60s", "--resume-from", "mine", *program)
    assert {again.line() for _ in range(2)} == {f"[0] from {left}\n", f"[1] from {left}\n"}
    again.send(signal.SIGINT)
    assert again.ended()[0] == EXIT.INTERRUPTED


def test_ctrl_c_twice_stops_at_once(start):
    """Although the worker ignores SIGTERM and its grace is an hour."""
    program = 'trap "echo no" TERM; echo $$; while :; do sleep 0.02; done'
    run = start("--stop-grace", "1h", "--", "sh", "-c", program)
    pid = run.line().split()[1]
    run.send(signal.SIGINT)
    assert run.line() == "[0] no\n"
    run.send(signal.SIGTERM)
    code, _, err = run.ended()
    assert code == EXIT.INTERRUPTED
    assert "holdfast: stopping at once" in err
    assert gone(pid)


RESUMED = 'if [ "$HOLDFAST_ATTEMPT" -gt 1 ]; then echo again; exit 0; fi; echo $$; sleep 1000'


def test_killed_and_resumed(start):
    run = start("--name", "mine", "--backoff", "0", "--", "sh", "-c", RESUMED)
    pid = run.line().split()[1]
    assert start("--resume").ended()[0::2] == (
        EXIT.FAILED,
        "Error: run mine is running already, in another process\n",
    )
    run.send(signal.SIGKILL)
    assert gone(pid)
    code, out, err = start("--resume").ended()
    assert code == 0, err
    assert out == "[0] again\n"  # and nothing that was shown before
    code, _, err = start("--resume", "mine").ended()
    assert (code, err) == (EXIT.FAILED, "Error: run mine has ended; there is nothing to resume\n")


def test_a_stopped_run_has_ended(start):
    run = start("--name", "mine", "--", "sh", "-c", "echo up; sleep 1000")
    run.line()
    run.send(signal.SIGINT)
    run.ended()
    code, _, err = start("--resume").ended()
    assert code == EXIT.FAILED
    assert err.startswith("Error: there is no unfinished run in ")


def test_a_name_that_is_taken_gets_a_number(start, tmp_path):
    first = start("--name", "mine", "--", "sh", "-c", "echo up; sleep 1000")
    first.line()
    assert start("--name", "mine", "--", "true").ended()[0] == 0
    assert runs(tmp_path) == ["mine", "mine-2"]


def test_nobody_reads_the_output_any_more(start):
    """As under `| head -1`."""
    run = start("--", "sh", "-c", "echo $$; while :; do echo more; sleep 0.02; done")
    pid = run.line().split()[1]
    run.process.stdout.close()
    err = run.process.stderr.read()
    run.process.wait(PATIENCE_S)
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    assert gone(pid)


def test_a_terminal_gets_colour_and_progress(start):
    ours, theirs = pty.openpty()
    run = start("--", "sh", "-c", "printf '\\033[2Jhello\\n'", stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # how Linux says that nobody has the other end any more
        pass
    finally:
        os.close(ours)
    assert run.process.wait(PATIENCE_S) == 0
    assert b"\x1b[36m[0]\x1b[0m hello\r\n" in shown
    assert b"\x1b[2J" not in shown
