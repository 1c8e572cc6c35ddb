"""The examples, as real processes that are killed on the way: what comes out is what an undisturbed run gives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = [str(EXAMPLES / "digits.py"), "--hidden", "64", "--epochs", "100"]


@pytest.fixture
def spawn(worker_env, tmp_path):
    """Starts workers of an example, as an agent does; none outlives the test."""
    workers = []

    def make(agent, argv, rank, attempt=1, resume_step=None, **env):
        workers.append(
            subprocess.Popen(
                [sys.executable, "-W", "error", *argv],
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    **worker_env(agent, rank, attempt, resume_step),
                    **env,
                },
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return workers[-1]

    yield make
    for worker in workers:
        worker.kill()
        worker.communicate()


def outcome(worker):
    stdout, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0
    return stdout


def kill(worker):
    worker.send_signal(signal.SIGKILL)
    worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGKILL


def arrays(path):
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in load_file(path).items()}


def accuracy(stdout):
    return float(stdout.removeprefix("test accuracy "))


def test_digits_comes_out_the_same_after_kills(make_agent, spawn, tmp_path, uri):
    """One worker is killed while it steps, one between prepare and ack, and rank 0 after its last checkpoint."""
    agent = make_agent(world_size=4, scope="rank")
    undisturbed = [spawn(agent, [*DIGITS, "--out", "undisturbed"], rank) for rank in range(4)]
    printed = [outcome(worker) for worker in undisturbed]
    assert accuracy(printed[0]) > 0.93
    assert printed[1:] == ["", "", ""]

    agent.forget()
    uri.rename(tmp_path / "of the undisturbed")
    argv = [*DIGITS, "--out", "disturbed"]
    agent.silent = True
    workers = [spawn(agent, argv, rank) for rank in range(4)]
    agent.wait_for(lambda: {(1, 1, 100), (2, 1, 100)} <= set(agent.prepares))
    kill(workers[1])  # before it hears that step 100 is committed
    workers[1] = spawn(agent, argv, 1, attempt=2, resume_step=100)
    agent.speak()
    agent.wait_for(lambda: (2, 1, 200) in agent.prepares)
    kill(workers[2])
    workers[2] = spawn(agent, argv, 2, attempt=2, resume_step=agent.commits[2].step)
    agent.wait_for(lambda: 0 in agent.commits and agent.commits[0].step == 400)
    kill(workers[0])
    workers[0] = spawn(agent, argv, 0, attempt=2, resume_step=400)
    assert [outcome(worker) for worker in workers] == printed
    assert arrays(tmp_path / "disturbed") == arrays(tmp_path / "undisturbed")


def test_digits_works_alone(tmp_path):
    argv = [sys.executable, "-W", "error", *DIGITS, "--epochs", "10"]
    run = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert accuracy(run.stdout) > 0.93
    again = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert again.stdout == run.stdout
    assert "resumed digits from step 150" in again.stderr


def test_digits_says_what_it_needs(tmp_path):
    hide = "import sys; sys.modules['sklearn'] = None; sys.path.insert(0, sys.argv.pop()); import digits; digits.main()"
    run = subprocess.run(
        [sys.executable, "-c", hide, str(EXAMPLES)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "pip install scikit-learn" in run.stderr


def test_the_plain_worker_goes_on_when_nobody_says_where_it_stops(make_agent, spawn):
    """And is asked anew: it stops where it says then, not where it had said."""
    agent = make_agent()
    agent.undecided = True
    worker = spawn(agent, ["-I", "-S", str(EXAMPLES / "plain_worker.py"), "1000000", "0.001"], 0)
    agent.wait_for(lambda: agent.prepares)
    agent.ask_stop(within_ms=300)
    agent.wait_for(lambda: 0 in agent.stop_answers)
    promised = agent.stop_answers[0].step
    agent.wait_for(lambda: agent.prepares[-1][2] > promised)
    agent.decide()
    outcome(worker)
    assert agent.prepares[-1][2] >= agent.stop_answers[0].step > promised
