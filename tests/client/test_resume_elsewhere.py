"""HOLDFAST_RESUME_FROM: a job begins with the checkpoint of another, in a world of another size."""

import json
import shutil

import numpy as np
import pytest

from holdfast.worker.errors import CheckpointError, CheckpointMismatch
from holdfast.worker.identity import identify
from holdfast.worker.run import Run
from tests.client.fake_agent import FakeAgent

SAMPLES, BATCH, EPOCHS = 36, 12, 3


@pytest.fixture
def job(tmp_path, worker_env):
    """Makes the gangs of jobs, each with an agent of its own."""
    agents, runs = [], []

    def make(job_id, world_size, *, scope="gang", attempt=1, resume_step=None, resume_from=None, **env):
        agent = FakeAgent(
            tmp_path / f"{job_id}.{attempt}.sock", world_size=world_size, scope=scope, job_id=job_id
        )
        agents.append(agent)
        if resume_from is not None:
            env["HOLDFAST_RESUME_FROM"] = str(resume_from)
        gang = [
            Run(identify({**worker_env(agent, rank, attempt, resume_step), **env}, "train.py"))
            for rank in range(world_size)
        ]
        runs.extend(gang)
        return gang

    yield make
    for run in runs:
        run.close()
    for agent in agents:
        agent.stop()


def train(gang, stop_at=None, every=2):
    """One program, its ranks in step: the state is replicated, and depends on every sample. What each step took."""
    datasets = [run.dataset(SAMPLES, BATCH, seed=5, epochs=EPOCHS) for run in gang]
    states = [run.restore(default={"w": np.zeros(2), "seen": 0}) for run in gang]
    taken = []
    for parts in zip(*datasets, strict=True):
        batch = np.empty(BATCH, np.int64)
        for rank, part in enumerate(parts):
            batch[rank :: len(gang)] = part
        taken.append(batch.tolist())
        for run, state in zip(gang, states, strict=True):
            state["w"] = np.sin(state["w"] + batch @ np.arange(1.0, BATCH + 1))
            state["seen"] += len(batch)
            step = run.step()
            run.checkpoint(state, every=every)
        settle(gang)
        if step == stop_at:
            return taken, states
    for run, state in zip(gang, states, strict=True):
        run.checkpoint(state)
    settle(gang)
    return taken, states


def settle(gang):
    """Wait until all ranks know that their last checkpoint is committed."""
    assert all(run._checkpoints().settle(20) for run in gang)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_the_order_of_the_samples_goes_on_in_any_world(job, uri, world_size):
    undisturbed, states = train(job("whole", 4))
    before, _ = train(job("first", 4), stop_at=5)
    gang = job("second", world_size, resume_from=uri / "first")
    after, resumed = train(gang)
    assert [run.resume_step for run in gang] == [4] * world_size
    assert before[:4] + after == undisturbed
    for state in resumed:
        assert state["w"].tobytes() == states[0]["w"].tobytes()
        assert state["seen"] == SAMPLES * EPOCHS


def test_three_worlds_in_a_row_take_each_sample_once_an_epoch(job, uri):
    undisturbed, _ = train(job("whole", 1))
    first, _ = train(job("a", 3), stop_at=3)
    second, _ = train(job("b", 6, resume_from=uri / "a"), stop_at=6)
    third, _ = train(job("c", 2, resume_from=uri / "b"))
    assert first[:2] + second[:4] + third == undisturbed


def test_its_own_checkpoints_go_before_those_of_the_other_job(job, uri):
    """Restarted, it resumes from what it has committed itself; before that, from the other job again."""
    train(job("first", 4), stop_at=5)
    env = {"resume_from": uri / "first"}
    assert [run.restore({"seen": 0})["seen"] for run in job("second", 2, **env)] == [4 * BATCH] * 2
    train(job("second", 2, attempt=2, **env), stop_at=6)
    gang = job("second", 2, attempt=3, resume_step=6, **env)
    assert [run.restore({"seen": 0})["seen"] for run in gang] == [6 * BATCH] * 2


def test_a_step_can_be_named(job, uri):
    train(job("first", 4), stop_at=7)
    (one,) = job("second", 1, resume_from=f"{uri}/first/step-0000000002/")
    one.restore()
    assert one.resume_step == 2
    with pytest.raises(
        CheckpointError, match=r"HOLDFAST_RESUME_FROM is .*/first/step-0000000003, where rank 0"
    ):
        job("third", 1, resume_from=f"{uri}/first/step-0000000003")[0].restore()


def test_what_was_resumed_from_elsewhere_can_be_committed_as_it_is(job, uri):
    """A job whose data sets were done already still has a checkpoint of its own in the end."""
    train(job("first", 4))
    assert train(job("second", 2, resume_from=uri / "first"))[0] == []
    assert (uri / "second/LATEST").read_text() == (uri / "first/LATEST").read_text() == f"step-{9:010}\n"


def test_a_copy_of_a_directory_will_do(job, uri, tmp_path):
    train(job("first", 2), stop_at=5)
    shutil.copytree(uri / "first", tmp_path / "kept")
    shutil.rmtree(uri)
    assert job("second", 4, resume_from=f"file://{tmp_path}/kept")[3].restore()["seen"] == 4 * BATCH


def test_outside_holdfast_it_is_the_same(job, uri, start_alone):
    undisturbed, _ = train(job("whole", 4))
    before, _ = train(job("first", 4), stop_at=5)
    alone = start_alone(HOLDFAST_RESUME_FROM=str(uri / "first"))
    after, _ = train([alone], stop_at=7)
    alone.close()
    rest, _ = train([start_alone(HOLDFAST_RESUME_FROM=str(uri / "first"))])
    assert before[:4] + after[:2] + rest == undisturbed


def test_a_batch_that_does_not_divide_is_refused(job, uri):
    train(job("first", 4), stop_at=5)
    with pytest.raises(ValueError, match=r"batch_size 12 .* must divide by the 5 of them"):
        train(job("second", 5, resume_from=uri / "first"))


def test_another_order_of_samples_is_refused(job, uri):
    train(job("first", 4), stop_at=5)
    (run,) = job("second", 1, resume_from=uri / "first")
    run.dataset(SAMPLES, BATCH, seed=6, epochs=EPOCHS)
    with pytest.raises(CheckpointMismatch, match="seed=5, this run has seed=6"):
        run.restore()


def test_the_other_job_s_files_are_never_changed(job, uri):
    """Neither by going on from them, nor when one is corrupt: they are not this job's."""
    train(job("first", 2), stop_at=5)
    files = {path: path.read_bytes() for path in (uri / "first").rglob("*") if path.is_file()}
    train(job("second", 1, resume_from=uri / "first"))
    assert {path: path.read_bytes() for path in (uri / "first").rglob("*") if path.is_file()} == files
    (path,) = (uri / "first/step-0000000004").glob("rank-00001.*")
    path.write_bytes(path.read_bytes()[:-1])
    gang = job("third", 2, resume_from=uri / "first")
    assert gang[0].restore()["seen"] == 4 * BATCH
    with pytest.raises(CheckpointError, match=f"{path.name}.*; name an earlier step"):
        gang[1].restore()
    assert (path.parent / "manifest.json").exists()


# Independent ranks (scope "rank").


def train_alone(run, stop_at=None):
    data = run.dataset(SAMPLES, 4, seed=5, epochs=EPOCHS)
    state = run.restore(default={"rank": run.rank, "seen": []})
    for batch in data:
        state["seen"] += batch.tolist()
        if run.step() == stop_at:
            break
        run.checkpoint(state, every=2, wait=True)
    return state


def test_independent_ranks_resume_each_its_own_in_a_world_of_the_same_size(job, uri):
    whole = [train_alone(run) for run in job("whole", 3, scope="rank")]
    for run, stop_at in zip(job("first", 3, scope="rank"), (3, 5, 7), strict=True):
        train_alone(run, stop_at)
    gang = job("second", 3, scope="rank", resume_from=uri / "first")
    assert [train_alone(run) for run in gang] == whole
    named = job("third", 3, scope="rank", resume_from=uri / "first/step-0000000002")
    for run in named:
        run.restore()
    assert [run.resume_step for run in named] == [2, 2, 2]


@pytest.mark.parametrize("world_size", [2, 4])
def test_independent_ranks_are_told_that_their_world_must_have_the_same_size(job, uri, world_size):
    for run in job("first", 3, scope="rank"):
        train_alone(run, stop_at=3)
    for run in job("second", world_size, scope="rank", resume_from=uri / "first"):
        with pytest.raises(CheckpointError, match=f"of 3 independent ranks; .* not by {world_size}"):
            run.restore()


def test_the_other_scope_is_told_apart(job, uri):
    train(job("gang", 2), stop_at=5)
    for run in job("ranks", 2, scope="rank"):
        train_alone(run, stop_at=3)
    with pytest.raises(CheckpointError, match="that ran with restart scope rank, as this one does"):
        job("second", 2, scope="rank", resume_from=uri / "gang")[1].restore()
    with pytest.raises(CheckpointError, match="that ran with restart scope gang, as this one does"):
        job("third", 2, resume_from=uri / "ranks")[1].restore()


def test_the_cursor_that_is_committed_next_is_that_of_the_whole_history(job, uri):
    train(job("first", 4), stop_at=5)
    train(job("second", 2, resume_from=uri / "first"), stop_at=7)
    manifest = json.loads((uri / "second/step-0000000006/manifest.json").read_bytes())
    cursors = [json.loads(shard["cursor"]) for shard in manifest["shards"]]
    assert [(cursor["epoch"], cursor["batch"]) for (cursor,) in cursors] == [(2, 0), (2, 0)]
