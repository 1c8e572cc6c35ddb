# ruff: noqa: F401, F811  fixtures are imported by name
"""`holdfast doctor`."""

import errno
import json
import shutil
import socket
from datetime import timedelta
from types import SimpleNamespace

import pytest

from holdfast.cli import doctor_checks as checks
from holdfast.cli.doctor_checks import FAIL, OK, WARN
from holdfast.cli.exits import EXIT
from holdfast.client import Client
from holdfast.v1 import node_pb2
from tests.client.scripted import coordinator, holdfast, run
from tests.ports import free_port

pytest_plugins = ["tests.client.cli_fixtures"]

READY = node_pb2.Node(name="n1", state=node_pb2.NODE_STATE_READY)
SUSPECT = node_pb2.Node(name="n2", state=node_pb2.NODE_STATE_SUSPECT)
LOST = node_pb2.Node(name="n3", state=node_pb2.NODE_STATE_LOST)


def report(*words):
    done = run("doctor", *words, "-o", "json")
    return done, {found["check"]: found for found in json.loads(done.stdout)["checks"]}


@pytest.fixture
def well(coordinator, holdfast, tmp_path, monkeypatch):
    """All is well here."""
    for name in ("USE_S3", "S3_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    coordinator.nodes = [READY]
    return coordinator


def test_all_is_well(well, holdfast, tmp_path):
    done, found = report("--state-dir", str(tmp_path))
    assert done.exit_code == EXIT.OK
    assert list(found) == [
        *("python", "disk", "fsync", "coordinator", "port", "clock", "agents", "worker ports"),
        *("cgroups", "py-spy"),
    ]
    states = {
        check: found[check]["state"] for check in found if check not in ("disk", "fsync", "cgroups", "py-spy")
    }
    assert set(states.values()) == {OK}
    assert found["coordinator"]["found"] == (
        f"the coordinator at {well.target} (of HOLDFAST_SERVER) answers, and leads"
    )
    assert found["agents"]["found"] == "1 of 1 ready"
    assert list(tmp_path.iterdir()) == []


def test_nobody_there(tmp_path):
    target = f"127.0.0.1:{free_port()}"
    done, found = report("--state-dir", str(tmp_path / "none" / "yet"), "--server", target)
    assert done.exit_code == EXIT.FAILED
    assert found["coordinator"]["state"] == FAIL
    assert found["coordinator"]["found"] == f"the coordinator at {target} (of --server) is not reachable"
    assert found["coordinator"]["remedy"].startswith(
        f"start one with `holdfast coordinator --listen {target}`"
    )
    assert found["port"]["found"].endswith("is free for a coordinator")


def test_every_line_says_what_to_do(well, holdfast, tmp_path):
    well.nodes = []
    lines = holdfast("doctor", "--state-dir", str(tmp_path)).stdout.splitlines()
    at = lines.index("warn  agents        no agent has joined")
    assert lines[at + 1] == f"{' ' * 20}start one with `holdfast agent --coordinator {well.target}`"


@pytest.mark.parametrize("daemon", ["COORDINATOR", "AGENT"])
def test_the_disk_is_that_of_the_daemon_whose_settings_these_are(well, monkeypatch, tmp_path, daemon):
    monkeypatch.setenv(f"HOLDFAST_{daemon}_STATE_DIR", str(tmp_path / daemon))
    assert report()[1]["disk"]["found"].endswith(f" are free below {tmp_path / daemon}")


def test_python_that_is_too_old():
    assert checks.python((3, 10, 9)).state == FAIL
    assert checks.python((3, 11, 0)).state == OK


@pytest.mark.parametrize(("free_gib", "state"), [(0.1, FAIL), (1, WARN), (50, OK)])
def test_room(monkeypatch, tmp_path, free_gib, state):
    usage = SimpleNamespace(total=100 * checks.GIB, free=int(free_gib * checks.GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = checks.room(tmp_path / "not" / "there")
    assert (found.state, bool(found.remedy)) == (state, state != OK)


@pytest.mark.parametrize(("took", "state"), [(0.001, OK), (0.1, WARN), (2.0, FAIL)])
def test_a_slow_disk(monkeypatch, tmp_path, took, state):
    now = [0.0]

    def sync(_descriptor):
        now[0] += took

    monkeypatch.setattr(checks.os, "fsync", sync)
    monkeypatch.setattr(checks.time, "perf_counter", lambda: now[0])
    assert checks.fsync(tmp_path).state == state


def test_a_disk_that_is_full(monkeypatch, tmp_path):
    def sync(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checks.os, "fsync", sync)
    found = checks.fsync(tmp_path)
    assert (found.state, found.found) == (
        FAIL,
        f"nothing can be written below {tmp_path}: No space left on device",
    )


def test_a_port_that_something_else_has():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        found = checks.port(f"127.0.0.1:{number}", answers=False)
        assert found.state == FAIL
        assert f"{number} is not free" in found.found
        assert checks.port(f"127.0.0.1:{number}", answers=True).state == OK
    assert checks.port("10.0.0.1:7070", answers=False).state == OK


@pytest.mark.parametrize(
    ("ahead", "state", "sentence"),
    [
        (0.2, OK, "0.20 s ahead of this machine's"),
        (-5, WARN, "5.00 s behind this machine's"),
        (300, FAIL, "300.00 s ahead of"),
    ],
)
def test_clocks(ahead, state, sentence):
    found = checks.clock(timedelta(seconds=ahead))
    assert (found.state, sentence in found.found, bool(found.remedy)) == (state, True, state != OK)


def test_a_clock_that_is_off_is_seen(well, holdfast):
    well.ahead_s = 3600
    done, found = report()
    assert (done.exit_code, found["clock"]["state"]) == (EXIT.FAILED, FAIL)
    well.ahead_s = None
    assert report()[1]["clock"]["found"] == "the coordinator does not tell its time"


async def test_the_coordinator_tells_its_time(client):
    ahead = await client.clock_offset()
    assert abs(ahead) < timedelta(seconds=30)


@pytest.mark.parametrize(
    ("nodes", "state", "sentence"),
    [
        ([READY], OK, "1 of 1 ready"),
        ([READY, SUSPECT, LOST], WARN, "1 of 3 ready; suspect: n2; lost: n3"),
        ([LOST], FAIL, "0 of 1 ready; lost: n3"),
        ([], WARN, "no agent has joined"),
    ],
)
def test_agents(nodes, state, sentence):
    found = checks.agents(nodes, "a:1")
    assert (found.state, found.found) == (state, sentence)
    assert ("node forget" in found.remedy) is (LOST in nodes)


def test_s3_there_and_back(well, holdfast, s3_bucket, bucket, monkeypatch):
    monkeypatch.setenv("S3_BUCKET", s3_bucket)
    _, found = report()
    assert found["s3"]["state"] == OK
    assert found["s3"]["found"].startswith(f"s3://{s3_bucket}: 64 KiB written, read and deleted in ")
    assert list(bucket.objects()) == []


def test_s3_that_has_no_such_bucket(s3_server, s3_bucket):
    found = checks.s3({**s3_server.env, "USE_S3": "1", "S3_BUCKET": "nosuch-bucket"})
    assert found.state == FAIL
    assert "s3://nosuch-bucket" in found.found
    assert "credentials" in found.remedy
    found = checks.s3({"USE_S3": "1"})
    assert (found.state, "S3_BUCKET names no bucket" in found.found) == (FAIL, True)


def test_what_an_agent_could_not_use(monkeypatch):
    import holdfast_agent.evidence
    import holdfast_agent.groups

    monkeypatch.setattr(holdfast_agent.evidence, "find_py_spy", lambda: None)
    assert checks.py_spy() == (
        "py-spy",
        WARN,
        "is not installed: a hang is told without its stacks",
        "pip install 'holdfast[agent]'",
    )
    monkeypatch.setattr(holdfast_agent.groups, "_may_use", lambda _: False)
    found = checks.cgroups()
    assert (found.state, "Delegate=yes" in found.remedy) == (WARN, True)
