# ruff: noqa: F401, F811  fixtures are imported by name
"""The table of exit codes, and that every way to end uses it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from google.rpc import code_pb2

from holdfast.cli.exits import EXIT
from tests.client.fake_coordinator import status
from tests.client.scripted import coordinator, holdfast, make_job, run

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
JOB = "k7m2p9xq4w"


def test_the_page_says_what_the_code_says():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(str(int(code)), code.meaning) for code in EXIT]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (code_pb2.NOT_FOUND, EXIT.NOT_FOUND),
        (code_pb2.FAILED_PRECONDITION, EXIT.FAILED),
        (code_pb2.ALREADY_EXISTS, EXIT.FAILED),
        (code_pb2.RESOURCE_EXHAUSTED, EXIT.FAILED),
        (code_pb2.INTERNAL, EXIT.FAILED),
        (code_pb2.INVALID_ARGUMENT, EXIT.USAGE),
        (code_pb2.DEADLINE_EXCEEDED, EXIT.TIMEOUT),
    ],
)
def test_a_refusal_is_one_sentence_with_the_remedy(coordinator, holdfast, code, expected):
    coordinator.fail("GetJob", status(code, "that can't be", remedy="do this"))
    result = holdfast("job", "get", JOB)
    assert result.exit_code == expected
    assert result.stdout == ""
    if code != code_pb2.DEADLINE_EXCEEDED:
        assert result.stderr == "Error: that can't be; do this\n"


def test_nobody_there(tmp_path):
    target = f"unix:{tmp_path}/nobody.sock"
    result = run("job", "list", "--server", target)
    assert result.exit_code == EXIT.UNREACHABLE
    assert result.stderr == (
        f"Error: the coordinator at {target} (of --server) is not reachable; "
        f"start one with `holdfast coordinator --listen {target}`, or name another with --server\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["job", "nope"],
        ["job", "get"],
        ["job", "get", JOB, "-o", "xml"],
        ["job", "list", "--state", "nope"],
        ["job", "submit"],
        ["job", "submit", "-n", "four", "--", "true"],
        ["job", "submit", "-n", "99999999999", "--", "true"],
        ["job", "submit", "--backoff", "soon", "--", "true"],
        ["job", "submit", "--memory", "much", "--", "true"],
        ["job", "submit", "--env", "A", "--", "true"],
        ["job", "submit", "--restart-scope", "all", "--", "true"],
        ["job", "submit", "--wait", "--timeout", "soon", "--", "true"],
        ["job", "submit", "--timeout", "1s", "--", "true"],
        ["run"],
        ["run", "--chaos", "burn", "--", "true"],
        ["run", "--resume", "x", "--", "true"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == EXIT.USAGE, result.output
    assert "Error: " in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_interrupted(coordinator):
    """Ctrl-C under a command that waits ends it, without a traceback, and touches no job."""
    coordinator.add_job(make_job())
    coordinator.watched = [make_job()]
    coordinator.hold.clear()
    command = [sys.executable, "-c", "from holdfast.cli import main; main()", "job", "watch", JOB]
    with subprocess.Popen(
        [*command, "--server", coordinator.target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as watch:
        try:
            assert watch.stdout.readline() == b"running: 2 of 2 workers are up\n"
            watch.send_signal(signal.SIGINT)
            assert watch.wait(60) == EXIT.INTERRUPTED
        finally:
            watch.kill()
        assert b"Traceback" not in watch.stderr.read()
    assert coordinator.asked("StopJob") == []
