"""The command line in this process, against a coordinator that is scripted. Import the fixtures by name."""

import time

import pytest
from click.testing import CliRunner
from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.cli import cli
from holdfast.v1 import job_pb2
from tests.client.fake_coordinator import FakeCoordinator


@pytest.fixture
def coordinator(tmp_path_factory):
    fake = FakeCoordinator(tmp_path_factory.mktemp("c") / "c.sock")
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def holdfast(coordinator, monkeypatch):
    """Runs a command line against the fake coordinator."""
    monkeypatch.setenv("HOLDFAST_SERVER", coordinator.target)
    return run


def run(*args):
    result = CliRunner().invoke(cli, args)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def ago(seconds):
    return Timestamp(seconds=int(time.time() - seconds))


def make_job(job_id="k7m2p9xq4w", state=job_pb2.JOB_STATE_RUNNING, **fields):
    """A job of two workers, one of which was restarted."""
    job = job_pb2.Job(
        id=job_id,
        spec=job_pb2.JobSpec(name="digits", command=["python", "train.py"], world_size=2),
        desired=job_pb2.DESIRED_STATE_RUNNING,
        state=state,
        reason="2 of 2 workers are up",
        attempt=2,
        restarts=1,
        last_committed_step=200,
        created_at=ago(5.5 * 3_600),
    )
    job.spec.restart.scope = job_pb2.RESTART_SCOPE_RANK
    running = job_pb2.WORKER_STATE_RUNNING
    job.workers.add(rank=0, node="n1", pid=4001, state=running, attempt=1, step=212, section="step")
    job.workers.add(
        rank=1,
        node="n2",
        pid=4102,
        state=running,
        attempt=2,
        section="setup",
        last_exit=job_pb2.ExitStatus(code=-1, signal=9, message="killed by SIGKILL"),
    )
    job.workers[0].metrics["loss"] = 0.25
    job.MergeFrom(job_pb2.Job(**fields))
    return job
