import contextlib

import pytest

from holdfast.worker.identity import identify
from holdfast.worker.run import Run
from tests.client.fake_agent import FakeAgent


@pytest.fixture
def uri(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def make_agent(tmp_path):
    """Starts fake agents, and stops them."""
    with contextlib.ExitStack() as stack:

        def make(**options):
            agent = FakeAgent(tmp_path / "worker.sock", **options)
            stack.callback(agent.stop)
            return agent

        yield make


@pytest.fixture
def worker_env(tmp_path, uri):
    """The environment of a worker, as an agent makes it."""

    def env(agent, rank=0, attempt=1, resume_step=None):
        return {
            "HOLDFAST_JOB_ID": agent.job_id,
            "HOLDFAST_ATTEMPT": str(attempt),
            "HOLDFAST_RESUME_STEP": "" if resume_step is None else str(resume_step),
            "HOLDFAST_RESTART_SCOPE": agent.scope,
            "HOLDFAST_SOCKET": agent.path,
            "HOLDFAST_CHECKPOINT_URI": str(uri),
            "HOLDFAST_HEARTBEAT_FILE": str(tmp_path / f"heartbeat-{rank}-{attempt}"),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(agent.world_size),
        }

    return env


@pytest.fixture
def start(worker_env):
    """Makes the Run of one worker in this process, and closes it."""
    with contextlib.ExitStack() as stack:

        def make(agent, rank=0, attempt=1, resume_step=None):
            run = Run(identify(worker_env(agent, rank, attempt, resume_step), "train.py"))
            stack.callback(run.close)
            return run

        yield make


@pytest.fixture
def start_alone(uri):
    """Makes the Run of a process outside holdfast, and closes it."""
    with contextlib.ExitStack() as stack:

        def make(program="train.py", **env):
            run = Run(identify({"HOLDFAST_CHECKPOINT_URI": str(uri), **env}, program))
            stack.callback(run.close)
            return run

        yield make
