# ruff: noqa: F401, F811  fixtures are imported by name
"""`holdfast top`: what it draws, and how it behaves on a real terminal."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from holdfast.cli.exits import EXIT
from holdfast.cli.top_view import Seen, frame
from holdfast.v1 import job_pb2, node_pb2
from tests.client.scripted import ago, coordinator, holdfast, make_job

NOW = 1_700_000_000.0
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
RUNNING, FAILED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_FAILED


def node(name, state=node_pb2.NODE_STATE_READY, used=3):
    capacity = node_pb2.Capacity(slots=8, cpus=8, memory_bytes=32 * 2**30, gpus=2)
    return node_pb2.Node(name=name, state=state, capacity=capacity, slots_used=used)


def job(job_id, state=RUNNING, created=0, finished=None, **fields):
    made = make_job(job_id, state, **fields)
    made.created_at.FromSeconds(int(NOW) - 1000 + created)
    if finished is not None:
        made.finished_at.FromSeconds(int(NOW) - finished)
    return made


def summary(job_id, steps, loss, state=RUNNING):
    return job_pb2.JobSummary(
        job_id=job_id,
        state=state,
        steps=steps,
        total_steps=500,
        steps_per_second=12.34,
        goodput=0.915,
        metrics={"loss": loss},
    )


@pytest.fixture
def seen():
    found = Seen("10.0.0.1:7070")
    found.nodes = {n.name: n for n in (node("n2", node_pb2.NODE_STATE_LOST, 0), node("n1"))}
    found.jobs = {
        j.id: j for j in (job("aaa"), job("bbb", FAILED, 1, finished=10), job("old", FAILED, 2, 9_999))
    }
    for step, loss in enumerate((8.0, 4.0, 2.0, 1.0)):
        found.note(summary("aaa", step, loss))
    return found


def text(lines):
    return [line.text for line in lines]


def test_what_it_draws(seen):
    lines = text(frame(seen, 200, None, NOW))
    assert lines[0].startswith("holdfast top  10.0.0.1:7070  ")
    assert lines[1:] == [
        "nodes 1 lost, 1 ready; slots 3 of 16 used; jobs 1 running",
        "",
        "NODE  STATE  SLOTS  CPUS  MEMORY    GPUS",
        "n1    ready  3/8    8     32.0 GiB  2",
        "n2    lost   0/8    8     32.0 GiB  2",
        "",
        "JOB  NAME    STATE    WORKERS  STEP   STEPS/S  GOODPUT  RESTARTS  LEFT  LOSS",
        "aaa  digits  running  2        3/500  12.3     91.5%    1         -     1 █▄▂▁",
        "bbb  digits  failed   2        -      -        -        1         -     -",
    ]


@pytest.mark.parametrize(("width", "height"), [(200, 50), (80, 24), (40, 9), (20, 5), (1, 1)])
def test_it_fits_any_screen(seen, width, height):
    for n in range(30):
        seen.nodes[f"m{n}"] = node(f"m{n}")
        seen.jobs[f"j{n}"] = job(f"j{n}", created=n)
    lines = text(frame(seen, width, height, NOW))
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_what_has_no_room_is_counted(seen):
    seen.jobs |= {f"j{n}": job(f"j{n}", created=n) for n in range(30)}
    lines = text(frame(seen, 120, 20, NOW))
    shown = [line for line in lines if line.startswith(("j", "aaa"))]
    assert lines[-1] == f"and {32 - len(shown)} more"
    assert shown[0].startswith("j29 ")


def test_a_curve_stands_while_no_step_is_made_and_breaks_off_at_what_is_no_number(seen):
    seen.note(summary("aaa", 3, 1.0))
    assert list(seen.curves["aaa"]) == [8.0, 4.0, 2.0, 1.0]
    seen.note(summary("aaa", 4, float("nan")))
    assert text(frame(seen, 200, None, NOW))[8].endswith(" nan")


def test_trouble_is_told(seen):
    seen.trouble = "the coordinator is not reachable"
    assert text(frame(seen, 200, 30, NOW))[2] == "not up to date: the coordinator is not reachable"


def test_names_do_not_steer_the_terminal(seen):
    seen.jobs["aaa"].spec.name = "\x1b[2Jevil"
    assert not any("\x1b" in line for line in text(frame(seen, 200, None, NOW)))


@pytest.fixture
def fleet(coordinator, holdfast):
    coordinator.nodes = [node("n1")]
    coordinator.add_job(make_job("aaa"))
    coordinator.summary = summary("aaa", 7, 0.5)
    return coordinator


def test_once(fleet, holdfast):
    done = holdfast("top", "--once")
    assert done.exit_code == EXIT.OK
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1] == (
        "aaa  digits  running  2        7/500  12.3     91.5%    1         -     0.5 ▁"
    )
    assert holdfast("top", "-o", "name").stdout == "aaa\n"
    data = json.loads(holdfast("top", "--once", "-o", "json").stdout)
    assert [found["name"] for found in data["nodes"]] == ["n1"]
    assert [found["jobId"] for found in data["summaries"]] == ["aaa"]


class Terminal:
    """`holdfast top` on a terminal of its own."""

    def __init__(self, target, columns, lines):
        self.master, slave = pty.openpty()
        self._columns, self._lines = columns, lines
        self.resize(columns, lines)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        code = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from holdfast.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "top", "--server", target, "--interval", "100ms"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES")},
        )
        self.written = ""

    def resize(self, columns, lines):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read_until(self, holds):
        """Read until the newest whole frame is as it should be."""
        end = time.monotonic() + 60
        while not (self.frame() and holds(self.frame())):
            assert time.monotonic() < end, self.written[-3000:]
            self._read(1)
        return self.frame()

    def frame(self):
        whole = self.written.rpartition("\x1b[J")[0].rpartition("\x1b[H")[2]
        return [ANSI.sub("", line) for line in whole.split("\r\n")] if whole else []

    def _read(self, seconds):
        if select.select([self.master], [], [], seconds)[0]:
            self.written += os.read(self.master, 65536).decode()

    def ended(self):
        end = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < end
            self._read(0.05)
        self._read(0)
        return self.process.returncode

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(fleet):
    fleet.hold.clear()
    found = Terminal(fleet.target, 120, 30)
    with contextlib.closing(found):
        yield found


def test_on_a_terminal(fleet, terminal):
    terminal.read_until(lambda lines: lines[-1].startswith("aaa ") and "0.5 ▁" in lines[-1])
    fleet.summary = summary("aaa", 8, 0.25)
    terminal.read_until(lambda lines: "0.25 █▁" in lines[-1])
    terminal.resize(40, 8)
    terminal.read_until(lambda lines: len(lines) == 8 and max(map(len, lines)) == 40)
    os.write(terminal.master, b"q")
    assert terminal.ended() == EXIT.OK
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert terminal.written.endswith("\x1b[?25h\x1b[?1049l")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_by_a_signal_and_leaves_the_terminal_as_it_was(terminal, number):
    terminal.read_until(lambda lines: lines[-1].startswith("aaa "))
    if number == signal.SIGINT:
        os.write(terminal.master, b"\x03")
    else:
        terminal.process.send_signal(number)
    assert terminal.ended() == EXIT.OK
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_a_coordinator_that_goes_away_is_told_of_on_the_screen(fleet, terminal):
    terminal.read_until(lambda lines: lines[-1].startswith("aaa "))
    fleet.stop()
    terminal.read_until(lambda lines: lines[2].startswith("not up to date: the coordinator at "))
    assert terminal.process.poll() is None
    fleet.hold.clear()
    fleet.start()
    terminal.read_until(lambda lines: not lines[2])


def test_nobody_there_leaves_the_terminal_alone(tmp_path):
    with contextlib.closing(Terminal(f"unix:{tmp_path}/nobody", 80, 24)) as terminal:
        assert terminal.ended() == EXIT.UNREACHABLE
        assert "\x1b" not in terminal.written
        assert "is not reachable; start one with" in terminal.written
