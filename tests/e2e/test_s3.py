"""Checkpoints on S3 end to end: a real S3 server over HTTP, and one that is away for a while."""

import contextlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from tests.e2e.fleet import HOLDFAST, PATIENCE_S, leftovers
from tests.e2e.train import expected
from tests.storage.fault_proxy import FaultProxy

pytestmark = pytest.mark.e2e

TRAIN = os.path.join(os.path.dirname(__file__), "train.py")


@pytest.fixture
def proxy(s3_server):
    proxy = FaultProxy(s3_server.address)
    yield proxy
    with contextlib.suppress(OSError):
        proxy.stop()


@pytest.fixture
def objects(s3_server, s3_bucket):
    """What is really there: asked without the proxy."""

    def read():
        pages = s3_server.client.get_paginator("list_objects_v2").paginate(Bucket=s3_bucket)
        return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", ())}

    return read


class Command:
    """A `holdfast` that runs while the test does something else."""

    def __init__(self, folder, arguments, env):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [HOLDFAST, *arguments], cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True
        )

    def wait_for(self, *paths):
        """Wait until these files are there."""
        self.wait_until(lambda: all(path.exists() for path in paths))

    def wait_until(self, predicate):
        deadline = time.monotonic() + PATIENCE_S
        while not predicate():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.05)

    def ended(self):
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path, s3_server, s3_bucket, proxy):
    """Starts commands with S3 switched on, and with nothing else said about it."""
    quick = {"AWS_MAX_ATTEMPTS": "1", "S3_CONNECT_TIMEOUT": "1s"}
    env = {**os.environ, **s3_server.env, **quick, "USE_S3": "1", "S3_BUCKET": s3_bucket}
    env["S3_ENDPOINT"] = proxy.endpoint
    commands = []

    def make(*arguments):
        commands.append(Command(tmp_path, arguments, env))
        return commands[-1]

    yield make
    for command in commands:
        command.process.kill()
        command.process.communicate(timeout=PATIENCE_S)
    psutil.wait_procs(leftovers(tmp_path), timeout=PATIENCE_S)
    assert not leftovers(tmp_path)


@pytest.fixture
def holdfast(start):
    """Runs a command to its end: exit code, stdout, stderr."""
    return lambda *arguments: start(*arguments).ended()


def test_one_variable_moves_checkpoints_to_s3(holdfast, objects, tmp_path, s3_bucket):
    """The program is the one that the other tests train; a worker is killed on the way."""
    (tmp_path / "out").mkdir()
    code, _, err = holdfast(
        "run", "-n", "2", "--chaos", "kill-worker@step=35", "--", sys.executable, TRAIN, "60", "out"
    )
    assert code == 0, err
    for rank in range(2):
        assert np.load(tmp_path / f"out/{rank}.npy").tobytes() == expected(rank, 60).tobytes()
    assert steps_in(objects()) == list(range(10, 70, 10))
    assert all(key.startswith("checkpoints/") for key in objects())
    assert not list(tmp_path.rglob("*.safetensors"))
    code, out, err = holdfast("checkpoint", "verify", f"s3://{s3_bucket}/checkpoints", "--all", "-o", "json")
    assert code == 0, err
    assert len(json.loads(out)["verdicts"]) == 6


AWAY = """
import sys, time, pathlib
import numpy as np
import holdfast
run = holdfast.init()
state = run.restore(default={"x": np.zeros(1000)})
last = int(sys.argv[1])
for step in range((run.resume_step or 0) + 1, last + 1):
    state["x"] += step
    run.step(loss=1 / step)
    run.checkpoint(state, every=10, wait=True)
    if step in (20, 40):
        pathlib.Path(f"at-{step}-{run.rank}").touch()
        while not pathlib.Path(f"go-{step}").exists():
            time.sleep(0.01)
"""
"""Waits at steps 20 and 40 for whoever takes S3 away and brings it back."""


def test_a_storage_that_is_away_stops_nothing_and_gets_everything(start, objects, tmp_path, proxy):
    (tmp_path / "train.py").write_text(AWAY)
    run = start("run", "-n", "2", "--", sys.executable, "train.py", "60")
    run.wait_for(*(tmp_path / f"at-20-{rank}" for rank in range(2)))
    there = objects()
    proxy.stop()
    (tmp_path / "go-20").touch()
    run.wait_for(*(tmp_path / f"at-40-{rank}" for rank in range(2)))
    assert objects() == there
    held = sorted(path.name for path in (tmp_path / ".holdfast").rglob("spool/*/step-*/*"))
    shards = [f"rank-{rank:05}.attempt-1.safetensors" for rank in range(2)]
    assert held == sorted([*shards, "manifest.json"] * 2)
    proxy.start_again()
    (tmp_path / "go-40").touch()
    code, _, err = run.ended()
    assert code == 0, err
    assert "until the storage can be reached" in err
    assert "is in the storage, all of it" in err
    assert "\n  degraded" in err
    assert steps_in(objects()) == list(range(10, 70, 10))
    assert not list((tmp_path / ".holdfast").rglob("spool/*/step-*"))


def test_an_agent_brings_what_workers_that_are_gone_left(start, holdfast, objects, tmp_path, proxy):
    """The job ends while its storage is away; its checkpoints follow when it is back."""
    (tmp_path / "train.py").write_text(AWAY)
    address = "unix:c.sock"  # in the directory that all of them run in
    coordinator = start("coordinator", "--listen", address, "--state-dir", "coordinator")
    coordinator.wait_for(tmp_path / "c.sock")
    agent = start("agent", "--coordinator", address, "--state-dir", "agent", "--name", "a")
    submit = ("job", "submit", "--server", address, "-n", "1", "--", sys.executable, "train.py", "30")
    code, out, err = holdfast(*submit)
    assert code == 0, err
    job = out.strip()
    agent.wait_for(tmp_path / "at-20-0")
    proxy.stop()
    (tmp_path / "go-20").touch()
    code, out, err = holdfast("job", "watch", "--server", address, job)
    assert code == 0, err
    assert json.loads(holdfast("job", "get", "--server", address, job, "-o", "json")[1])["degraded"]
    proxy.start_again()
    agent.wait_until(lambda: steps_in(objects()) == [10, 20, 30])
    found = ("checkpoint", "get", "--server", address, job, "-o", "json")
    agent.wait_until(lambda: not json.loads(holdfast(*found)[1])["checkpoint"].get("degraded"))
    for part in (agent, coordinator):
        part.process.terminate()
        part.ended()


def steps_in(objects):
    return sorted(
        int(key.split("/")[-2].removeprefix("step-")) for key in objects if key.endswith("manifest.json")
    )
