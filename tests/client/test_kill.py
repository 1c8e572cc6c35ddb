"""Real processes that are killed while they save, that exit, and that fork: what is committed is what they had."""

import itertools
import os
import random
import subprocess
import sys

import pytest

from holdfast.worker.checkpoint import packed
from holdfast.worker.identity import identify
from holdfast.worker.run import Run
from holdfast.worker.spool import SpooledStorage
from tests.checkpoint.away import Away
from tests.checkpoint.places import OLD, checkpoints_at, checkpoints_on, commit_of, names_below, storage_at

PROGRAM = """
import sys
import numpy as np
import holdfast

run = holdfast.init()
data = run.dataset(400, 4, seed=1, epochs=1)
state = run.restore(default={"w": np.zeros(20_000), "seen": 0})
for batch in data:
    state["w"] = np.sin(state["w"] + batch.sum() * np.arange(20_000.0))
    state["seen"] += len(batch)
    step = run.step()
    run.checkpoint(state)
    if step % 10 == 0:
        print(step, flush=True)
"""


def popen(program, env, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program], env={**os.environ, **env}, **options
    )


def kill_later(worker, chance):
    """Let it come to a step, and kill it a random moment later. True when it had ended before."""
    for _ in range(chance.randrange(1, 5)):
        if not worker.stdout.readline():
            break
    try:
        return worker.wait(chance.uniform(0, 0.03)) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    where = str(tmp_path_factory.mktemp("undisturbed"))
    env = {"HOLDFAST_CHECKPOINT_URI": where}
    worker = popen(PROGRAM, env, stdout=subprocess.DEVNULL)
    assert worker.wait(60) == 0
    return final(Run(identify(env, "-c")))


def final(run):
    state = run.restore()
    run.close()
    return run.resume_step, state["seen"], state["w"].tobytes()


def test_a_lone_process_that_is_killed_again_and_again(tmp_path, undisturbed):
    chance = random.Random(1)
    env = {"HOLDFAST_CHECKPOINT_URI": str(tmp_path)}
    for _ in range(30):
        if kill_later(popen(PROGRAM, env, stdout=subprocess.PIPE), chance):
            break
    else:
        raise AssertionError("it never came to its end")
    assert final(Run(identify(env, "-c"))) == undisturbed
    assert not [path for path in (tmp_path / "local").iterdir() if path.name.startswith("tmp.")]


def test_a_gang_that_is_killed_again_and_again(make_agent, worker_env, start, tmp_path):
    """Both ranks at once, as an agent does; one of them has been told of the last commit, or none, or both."""
    chance = random.Random(3)
    agent = make_agent(world_size=2)
    for attempt in itertools.count(1):
        assert attempt < 30
        newest = agent.commits.get(None)
        envs = [worker_env(agent, rank, attempt, newest.step if newest else None) for rank in (0, 1)]
        gang = [popen(PROGRAM, env, stdout=subprocess.PIPE) for env in envs]
        ended = [kill_later(worker, chance) for worker in gang]
        if all(ended):
            break
    step = agent.commits[None].step
    assert step == 100
    runs = [start(agent, rank, attempt + 1, step) for rank in (0, 1)]
    states = [run.restore() for run in runs]
    assert [state["seen"] for state in states] == [200, 200]
    undisturbed = [expected(rank) for rank in (0, 1)]
    assert [state["w"].tobytes() for state in states] == undisturbed


def expected(rank):
    """What a rank that nothing happens to comes to."""
    import numpy as np

    from holdfast.worker.dataset import Dataset
    from holdfast.worker.sharding import make_plan

    weights = np.zeros(20_000)
    for batch in Dataset(make_plan(400, 4, 1, 2, rank, partition=False), 400, 1):
        weights = np.sin(weights + batch.sum() * np.arange(20_000.0))
    return weights.tobytes()


def run_to_its_end(program, where):
    worker = popen(program, {"HOLDFAST_CHECKPOINT_URI": str(where)}, stderr=subprocess.PIPE, text=True)
    _, said = worker.communicate(timeout=60)
    return worker.returncode, said


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "raise ValueError('training failed')"])
def test_the_last_checkpoint_is_committed_before_the_interpreter_ends(tmp_path, end):
    program = (
        "import holdfast, numpy as np; run = holdfast.init(); run.step(7)\n"
        f"run.checkpoint({{'w': np.arange(1_000_000.0)}})\n{end}"
    )
    code, _ = run_to_its_end(program, tmp_path)
    assert (code == 0) == (end == "")
    (manifest,) = tmp_path.rglob("manifest.json")
    assert manifest.parent.name == "step-0000000007"


def test_a_child_that_is_forked_in_the_middle_of_a_save_changes_nothing(tmp_path):
    program = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numpy as np, holdfast
run = holdfast.init()
for step in range(1, 6):
    run.step(step)
    run.checkpoint({"w": np.full(1_000_000, step)})
    child = os.fork()
    if child == 0:
        sys.exit(0)  # with all that an interpreter does at its end
    assert os.waitpid(child, 0)[1] == 0
"""
    code, said = run_to_its_end(program, tmp_path)
    assert (code, said) == (0, "")
    assert len(list(tmp_path.rglob("manifest.json"))) == 5
    assert not list(tmp_path.rglob("tmp.*"))
    assert Run(identify({"HOLDFAST_CHECKPOINT_URI": str(tmp_path)}, "-c")).restore()["w"][0] == 5


def test_a_drain_that_is_killed_again_and_again(tmp_path):
    steps = range(1, 7)
    spooled = SpooledStorage(
        Away(tmp_path / "main", gone=True), storage_at(tmp_path / "spool"), "rank-00000."
    )
    for step in steps:
        shards = [checkpoints_on(spooled, rank=rank).save(step, packed(OLD)) for rank in (0, 1)]
        checkpoints_on(spooled).publish(commit_of(step, *shards))
    spooled.close()
    program = (
        "import sys; from holdfast.worker.spool import drain_directory\n"
        f"sys.exit(len(drain_directory({str(tmp_path / 'spool')!r}, lambda name: print(name, flush=True))))"
    )
    chance = random.Random(4)
    for _ in range(30):
        if not names_below(tmp_path / "spool"):
            break
        kill_later(popen(program, {}, stdout=subprocess.PIPE), chance)
    place = checkpoints_at(tmp_path / "main")
    assert [place.load(place.published(step), rank)["n"] for step in steps for rank in (0, 1)] == [100] * 12
    assert (tmp_path / "main/job/LATEST").read_text() == "step-0000000006\n"
    assert names_below(tmp_path / "spool") == []
