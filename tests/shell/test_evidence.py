"""Evidence of real processes that hang, whatever they are."""

import os
import signal
import sys
from pathlib import Path

import pytest

from holdfast_agent import evidence
from holdfast_agent.shim import start_time
from tests.agent.processes import line_of, until

SECRET = "--token=hunter2"
PROGRAM = """
import subprocess, sys, threading
def deep_inside(lock):
    lock.acquire()
def elsewhere():
    threading.Event().wait()
threading.Thread(target=elsewhere, daemon=True).start()
child = subprocess.Popen(["sleep", "1000"])
print("ready", flush=True)
lock = threading.Lock()
lock.acquire()
deep_inside(lock)
"""


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def take(pid, directory):
    return await evidence.take(pid, start_time(pid), directory)


@pytest.fixture
async def stuck(house):
    """A Python worker that hangs: its pid, and its directory."""
    path = house.start(sys.executable, "-c", PROGRAM, SECRET)
    event = await house.spawned()
    await line_of(path / "stdout.log")
    await until(lambda: state_of(event.pid) == "S")
    return event.pid, path


async def test_the_stacks_of_all_threads_what_the_kernel_says_and_the_log(stuck):
    found = await take(*stuck)
    assert found.where.startswith("deep_inside (<string>:4)")
    assert not found.stopped
    for part in (
        "deep_inside",
        "elsewhere",
        "native state:",
        "S (sleeping)",
        "sleep: ",
        "stdout.log:\nready",
    ):
        assert part in found.text
    assert "started by it" in found.text
    assert SECRET not in found.text
    assert len(found.text.encode()) <= evidence.MOST_BYTES


async def test_of_one_that_is_stopped_too_and_it_stays_stopped(stuck):
    pid, path = stuck
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: state_of(pid) == "T")
    found = await take(pid, path)
    assert found.stopped
    assert "deep_inside" in found.text
    assert state_of(pid) == "T"


async def test_of_a_program_that_is_not_python(house):
    path = house.sh("echo begins; echo worries >&2; exec sleep 1000")
    pid = (await house.spawned()).pid
    await line_of(path / "stdout.log")
    await line_of(path / "stderr.log")
    found = await take(pid, path)
    assert found.text.startswith("no Python stacks: py-spy: ")
    assert "native state:" in found.text
    assert found.text.index("worries") < found.text.index("begins")
    assert found.where == ""


async def test_of_a_shell_that_has_started_python(house):
    path = house.start("sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, PROGRAM)
    pid = (await house.spawned()).pid
    await line_of(path / "stdout.log")
    found = await take(pid, path)
    await until(lambda: state_of(int(found.text.split(":")[0].split()[-1])) == "S")
    found = await take(pid, path)
    assert found.text.startswith("started by it, process ")
    assert "    deep_inside (<string>:4)\n" in found.text
    assert found.where == "deep_inside (<string>:4)"
    assert SECRET not in found.text


async def test_where_py_spy_is_not_it_says_so(stuck, monkeypatch):
    monkeypatch.setattr(evidence, "find_py_spy", lambda: None)
    found = await take(*stuck)
    assert "py-spy is not installed here" in found.text
    assert "native state:" in found.text


async def test_a_py_spy_that_hangs_itself_is_ended(stuck, monkeypatch, tmp_path):
    slow = tmp_path / "py-spy"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    slow.chmod(0o700)
    monkeypatch.setattr(evidence, "find_py_spy", lambda: str(slow))
    monkeypatch.setattr(evidence, "PY_SPY_S", 0.5)
    found = await take(*stuck)
    assert "py-spy took more than 0.5 s" in found.text
    if (tmp_path / "pid").exists():
        await until(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists())


async def test_of_a_long_log_the_end_and_never_too_much(house, monkeypatch):
    path = house.sh("seq 100000; exec sleep 1000")
    pid = (await house.spawned()).pid
    await until(
        lambda: (path / "stdout.log").exists() and b"\n100000\n" in (path / "stdout.log").read_bytes()
    )

    async def stacks(_):
        return "", "frame é\n" * 10_000

    monkeypatch.setattr(evidence, "_stacks", stacks)
    found = await take(pid, path)
    assert found.text.endswith("\n99999\n100000")
    assert found.text.startswith("frame")
    assert evidence.MOST_BYTES - 20 < len(found.text.encode()) <= evidence.MOST_BYTES


async def test_of_a_pid_that_is_another_process_by_now_nothing(stuck):
    pid, path = stuck
    found = await evidence.take(pid, start_time(pid) + 1, path)
    assert found.text == "it ended while it was looked at"
