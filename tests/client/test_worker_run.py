"""A training program's view: `holdfast.init()` and what it hands out."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import holdfast
import holdfast.worker.run
from holdfast import heartbeat
from holdfast.worker import saver
from holdfast.worker.errors import CheckpointCorrupt, CheckpointError, CheckpointMismatch
from holdfast.worker.identity import identify


def train(run, *, samples=40, batch_size=4, epochs=3, every=5, stop_at=None, wait=False):
    """A program that is as good as any: its state depends on every sample and their order."""
    data = run.dataset(samples, batch_size, seed=1, epochs=epochs)
    state = run.restore(default={"w": np.zeros(3), "seen": 0})
    for batch in data:
        state["w"] = np.sin(state["w"] + batch.sum() * np.arange(1.0, 4.0))
        state["seen"] += len(batch)
        if run.step(loss=0.5) == stop_at:
            return state
        run.checkpoint(state, every=every, wait=wait)
    run.checkpoint(state, wait=True)
    return state


def read_heartbeat(tmp_path, name="heartbeat-0-1"):
    return heartbeat.read((tmp_path / name).read_bytes())


# A world of one.


def test_outside_holdfast_there_is_nothing_to_set_up(start_alone):
    run = start_alone()
    assert (run.rank, run.world_size, run.local_rank, run.attempt, run.resume_step) == (0, 1, 0, 1, None)
    assert run.job_id == "train"


def test_a_world_of_one_resumes_where_it_was(start_alone, uri, capfd):
    undisturbed = train(start_alone("undisturbed.py"))
    for stop_at in (3, 12, 12, 29):
        run = start_alone()
        train(run, stop_at=stop_at)
        run.close()
    run = start_alone()
    resumed = train(run)
    assert run.resume_step == 25
    assert resumed["w"].tobytes() == undisturbed["w"].tobytes()
    assert resumed["seen"] == undisturbed["seen"] == 120
    assert f"holdfast: resumed train from step 25 in {uri}" in capfd.readouterr().err


def test_a_world_of_one_that_had_finished_has_nothing_left_to_do(start_alone):
    run = start_alone()
    state = train(run)
    run.close()
    again = start_alone()
    data = again.dataset(40, 4, seed=1, epochs=3)
    assert again.restore()["w"].tolist() == state["w"].tolist()
    assert again.resume_step == 30
    assert list(data) == []
    again.checkpoint(state, wait=True)


def test_committed_files_are_never_written_again(start_alone, uri):
    """A program that forgot to restore counts from 1 again."""
    run = start_alone()
    train(run, stop_at=11)
    run.close()
    before = {path: path.stat().st_mtime_ns for path in uri.rglob("*.safetensors")}
    forgetful = start_alone()
    for _ in range(12):
        forgetful.step()
        forgetful.checkpoint({"w": np.zeros(1)}, every=5)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_program_that_did_not_restore_is_told_once(start_alone, capfd):
    run = start_alone()
    train(run, stop_at=11)
    run.close()
    forgetful = start_alone()
    for _ in range(12):
        forgetful.step()
        forgetful.checkpoint({"w": np.zeros(1)}, every=2)
    assert capfd.readouterr().err.count("call run.restore() first") == 1


def test_two_processes_cannot_share_a_place(start_alone):
    first = start_alone()
    first.restore()
    with pytest.raises(CheckpointError, match="another process keeps its checkpoints in"):
        start_alone().restore()
    start_alone("other.py").restore()
    first.close()


def test_several_ranks_without_holdfast_are_told_what_to_do(start_alone):
    run = start_alone(RANK="1", WORLD_SIZE="4", LOCAL_RANK="1")
    assert (run.rank, run.world_size) == (1, 4)
    run.step()
    with pytest.raises(CheckpointError, match="holdfast run -n 4"):
        run.restore()
    with pytest.raises(CheckpointError, match="holdfast run -n 4"):
        run.checkpoint({})


# Under holdfast.


def test_a_worker_knows_who_it_is(make_agent, start):
    run = start(make_agent(world_size=4), rank=3, attempt=2)
    assert (run.rank, run.world_size, run.local_rank, run.attempt, run.job_id) == (3, 4, 3, 2, "job-1")


def test_a_number_that_is_none_is_refused_by_name():
    with pytest.raises(ValueError, match="WORLD_SIZE is 'many'"):
        identify({"WORLD_SIZE": "many"}, "train.py")


def test_a_killed_worker_resumes_at_the_committed_step(make_agent, start, start_alone):
    undisturbed = train(start_alone())
    agent = make_agent()
    train(start(agent), stop_at=13, wait=True)
    run = start(agent, attempt=2, resume_step=agent.commits[None].step)
    assert run.resume_step == 10
    assert train(run)["w"].tobytes() == undisturbed["w"].tobytes()
    assert agent.commits[None].step == 30


def test_the_committed_checkpoint_is_what_is_resumed_and_not_a_newer_one(make_agent, start, uri, monkeypatch):
    """Killed between prepare and ack: what was prepared was never committed."""
    monkeypatch.setattr(holdfast.worker.run, "EXIT_PATIENCE", 0.01)
    agent = make_agent()
    train(start(agent), stop_at=6, wait=True)
    agent.silent = True
    killed = start(agent, attempt=2, resume_step=5)
    state = killed.restore()
    for _ in range(5):
        killed.step()
    killed.checkpoint(state)
    agent.wait_for(lambda: (0, 2, 10) in agent.prepares)
    killed.close()
    run = start(agent, attempt=3, resume_step=5)
    assert run.restore()["seen"] == 20
    assert run.step() == 6
    assert (uri / "job-1/step-0000000010/rank-00000.attempt-2.safetensors").exists()


def test_a_manifest_that_nobody_published_is_published_by_who_resumes(make_agent, start, uri):
    agent = make_agent(world_size=2)
    agent.withhold_publish = True
    gang = [start(agent, rank) for rank in (0, 1)]
    for run in gang:
        run.step(7)
        run.checkpoint({"rank": run.rank})
    assert all(run._saver.settle(20) for run in gang)
    directory = uri / "job-1/step-0000000007"
    assert not (directory / "manifest.json").exists()
    for rank in (1, 0):
        run = start(agent, rank, attempt=2, resume_step=7)
        assert run.restore() == {"rank": rank}
        assert json.loads((directory / "manifest.json").read_bytes())["attempt"] == 1
    assert (uri / "job-1/LATEST").read_text() == "step-0000000007\n"


def test_an_agent_that_knows_nothing_of_the_step_is_an_error(make_agent, start):
    with pytest.raises(CheckpointError, match="step 7, of which its agent knows nothing"):
        start(make_agent(), attempt=2, resume_step=7).restore()


def test_who_resumes_waits_for_an_agent_that_is_away(make_agent, start, monkeypatch):
    monkeypatch.setattr(saver, "PATIENCE", 0.01)
    agent = make_agent()
    agent.withhold_publish = True
    train(start(agent), stop_at=6, wait=True)
    agent.stop_listening()
    os.unlink(agent.path)
    said = []

    def say(sentence):
        said.append(sentence)
        agent.listen()

    monkeypatch.setattr(saver, "say", say)
    assert start(agent, attempt=2, resume_step=5).restore()["seen"] == 20
    assert [sentence.partition(":")[0] for sentence in said] == ["waiting to be told what to resume from"]


def test_a_torn_checkpoint_is_refused(make_agent, start, uri):
    agent = make_agent()
    train(start(agent), stop_at=6, wait=True)
    (path,) = uri.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointCorrupt, match="rank-00000"):
        start(agent, attempt=2, resume_step=5).restore()
    assert agent.reports == [(0, 2, "KIND_CORRUPT", 5)]
    assert (path.parent / "manifest.quarantined-attempt-1.json").exists()
    assert not (path.parent / "manifest.json").exists()


def test_independent_ranks_commit_by_themselves(make_agent, start, uri):
    agent = make_agent(world_size=2, scope="rank")
    train(start(agent, rank=1), stop_at=6, wait=True)
    assert (uri / "job-1/rank-00001/LATEST").exists()
    assert not (uri / "job-1/rank-00000").exists()
    assert json.loads((uri / "job-1/rank-00001/step-0000000005/manifest.json").read_bytes())["rank"] == 1


def test_training_goes_on_while_the_control_plane_is_away(make_agent, start, capfd, monkeypatch):
    monkeypatch.setattr(saver, "PATIENCE", 0.01)
    agent = make_agent()
    agent.silent = True
    run = start(agent)
    for step in (1, 2, 3):
        run.step()
        run.checkpoint({})
        agent.wait_for(lambda step=step: (0, 1, step) in agent.prepares)
    agent.speak()
    run.checkpoint({}, wait=True)
    assert agent.commits[None].step == 3
    assert "the checkpoint of step 1 is still not committed" in capfd.readouterr().err


class Deaf:
    """A control plane that is away until `answers`."""

    def __init__(self):
        self.answers = False
        self.waits = []

    def submit(self, step, shard):
        pass

    def wait(self, step, timeout=None):
        self.waits.append(timeout)
        return self.answers

    def close(self):
        pass


def test_an_outage_costs_ever_less(make_agent, start, capfd):
    run, deaf = start(make_agent()), Deaf()
    run._checkpoints()._committer = deaf
    for step in range(9):
        deaf.answers = step >= 6
        run.step()
        run.checkpoint({})
    assert deaf.waits == [10, 2.5, 0.625, 0.25, 0.25, 0.25, 10, 10]
    assert capfd.readouterr().err.count("still not committed") == 1


def test_a_refused_checkpoint_is_reported_and_training_goes_on(make_agent, start, capfd):
    agent = make_agent()
    agent.refuse = "attempt 1 is superseded by attempt 2"
    train(start(agent))
    assert "step 5 was refused: attempt 1 is superseded by attempt 2" in capfd.readouterr().err
    assert agent.commits == {}


def test_a_save_that_fails_is_reported_and_training_goes_on(make_agent, start, capfd, uri):
    agent = make_agent()
    uri.write_text("not a directory")
    run = start(agent)
    train(run, stop_at=29)
    failed = [(0, 1, "KIND_SAVE_FAILED", step) for step in (5, 10, 15, 20, 25)]
    agent.wait_for(lambda: set(agent.reports) == set(failed))
    assert capfd.readouterr().err.count("could not be written") >= 5
    with pytest.raises(OSError):
        run.checkpoint({}, wait=True)
    uri.unlink()
    run.checkpoint({}, wait=True)
    assert agent.commits[None].step == 29


def test_a_step_is_saved_once(make_agent, start):
    agent = make_agent()
    run = start(agent)
    run.step()
    for _ in range(3):
        run.checkpoint({}, wait=True)
    assert agent.prepares == [(0, 1, 1)]


def test_a_function_makes_the_state_only_when_it_is_needed(make_agent, start):
    agent = make_agent()
    run = start(agent)
    made = []
    for step in range(1, 11):
        run.step()
        run.checkpoint(lambda step=step: made.append(step) or {"step": step}, every=5, wait=True)
    assert made == [5, 10]
    assert start(agent, attempt=2, resume_step=10).restore() == {"step": 10}


def test_nothing_is_left_when_a_worker_is_done(make_agent, start, uri):
    agent = make_agent()
    run = start(agent)
    train(run)
    run.close()
    assert [path.name for path in (uri / "job-1").iterdir() if "tmp" in path.name] == []


# Steps and sections.


def test_steps_and_metrics_are_in_the_heartbeat(make_agent, start, tmp_path):
    run = start(make_agent())
    assert read_heartbeat(tmp_path).section == "setup"
    assert [run.step(), run.step(loss=np.float32(0.5)), run.step(10), run.step()] == [1, 2, 10, 11]
    reading = read_heartbeat(tmp_path)
    assert (reading.step, reading.steps_done, reading.section, reading.metrics) == (
        11,
        4,
        "step",
        {"loss": 0.5},
    )


def test_a_section_ends_with_its_block(make_agent, start, tmp_path):
    run = start(make_agent())
    with run.section("eval"):
        assert read_heartbeat(tmp_path).section == "eval"
        run.step()
    assert read_heartbeat(tmp_path).section == "step"
    with pytest.raises(ZeroDivisionError), run.section("eval"):
        _ = 1 / 0
    assert read_heartbeat(tmp_path).section == "step"


def test_without_a_heartbeat_file_steps_are_counted_all_the_same(start_alone, tmp_path, capfd):
    run = start_alone(HOLDFAST_HEARTBEAT_FILE=str(tmp_path / "missing/heartbeat"))
    assert run.step() == 1
    assert "no heartbeat" in capfd.readouterr().err


# Data sets.


def test_data_sets_may_be_made_before_or_after_restore(start_alone):
    run = start_alone()
    train(run, stop_at=12)
    run.close()
    before, after = start_alone(), start_alone()
    early = before.dataset(40, 4, seed=1, epochs=3)
    before.restore()
    before.close()
    after.restore()
    late = after.dataset(40, 4, seed=1, epochs=3)
    assert early.cursor == late.cursor == (1, 0)


def test_a_batch_size_of_another_run_is_refused(start_alone):
    run = start_alone()
    train(run, stop_at=12)
    run.close()
    run = start_alone()
    run.restore()
    with pytest.raises(CheckpointMismatch, match="batch_size=4, this run has batch_size=8"):
        run.dataset(40, 8, seed=1, epochs=3)


def test_the_scope_says_whether_ranks_share_batches(make_agent, start, tmp_path):
    gang = start(make_agent(world_size=2), rank=1)
    assert [len(batch) for batch in gang.dataset(40, 8)] == [4] * 5


def test_independent_ranks_have_batches_of_their_own(make_agent, start):
    run = start(make_agent(world_size=2, scope="rank"), rank=1)
    batches = list(run.dataset(40, 8))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert sorted(np.concatenate(batches)) == list(range(1, 40, 2))


# Gathering.


def test_gather_waits_for_the_last_checkpoint_of_every_rank(make_agent, start):
    agent = make_agent(world_size=2, scope="rank")
    first, second = start(agent, 0), start(agent, 1)
    states = [train(first, samples=41), train(second, samples=41, stop_at=8)]
    with pytest.raises(TimeoutError, match=r"rank \[1\]"):
        first.gather(timeout=0.05)
    states[1] = train(start(agent, 1, attempt=2, resume_step=5), samples=41)
    gathered = first.gather(timeout=20)
    assert [state["w"].tobytes() for state in gathered] == [state["w"].tobytes() for state in states]
    assert [agent.commits[rank].step for rank in (0, 1)] == [18, 15]
    assert gathered[0]["seen"] + gathered[1]["seen"] == 3 * 41


def test_gather_takes_a_step_by_name(make_agent, start):
    agent = make_agent(world_size=2, scope="rank")
    runs = [start(agent, rank) for rank in (0, 1)]
    for run in runs:
        train(run, wait=True)
    assert [state["seen"] for state in runs[0].gather(step=10)] == [40, 40]


def test_gather_in_a_gang_is_one_commit(make_agent, start):
    agent = make_agent(world_size=2)
    runs = [start(agent, rank) for rank in (0, 1)]
    for run in runs:
        run.step()
        run.checkpoint({"rank": run.rank})
    assert runs[1].gather(timeout=20) == [{"rank": 0}, {"rank": 1}]


def test_gather_before_the_own_checkpoint_is_an_error(make_agent, start):
    run = start(make_agent())
    train(run, stop_at=6)
    with pytest.raises(CheckpointError, match=r"call run.checkpoint\(state, wait=True\)"):
        run.gather()


def test_gather_in_a_world_of_one(start_alone):
    run = start_alone()
    state = train(run)
    assert run.gather()[0]["w"].tolist() == state["w"].tolist()


# The process.


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_is_not_the_worker(make_agent, start, tmp_path):
    agent = make_agent()
    run = start(agent)
    run.step()
    run.checkpoint({}, wait=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run.step(99)
            run.checkpoint({})
        except CheckpointError:
            run.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_heartbeat(tmp_path).step == 1
    run.step()
    run.checkpoint({}, wait=True)
    assert agent.prepares == [(0, 1, 1), (0, 1, 2)]
    assert agent.hellos == [(0, 1)]


def python(program, **env):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_init_gives_the_same_run_every_time():
    assert python("import holdfast; assert holdfast.init() is holdfast.init()").returncode == 0


def test_starting_imports_nothing_slow():
    program = (
        "import sys, holdfast; run = holdfast.init(); run.step(loss=1.0); run.restore()\n"
        "slow = {'numpy', 'grpc', 'pydantic', 'click', 'asyncio', 'google.protobuf', 'safetensors', 'xxhash',"
        " 'dataclasses', 'inspect', 'threading', 'socket', 'json', 'pathlib'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    env = {"HOLDFAST_JOB_ID": "j", "HOLDFAST_RESUME_STEP": ""}
    assert python(program, **env).stdout == "[]\n"


def test_checkpoints_import_nothing_slower_than_they_need(tmp_path):
    program = (
        "import sys, holdfast; run = holdfast.init(); run.step(); run.checkpoint({'n': 1})\n"
        "slow = {'grpc', 'pydantic', 'click', 'asyncio', 'google.protobuf', 'numpy.random', 'torch', 'pathlib'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    assert python(program, HOLDFAST_CHECKPOINT_URI=str(tmp_path)).stdout == "[]\n"


def test_the_package_names_what_it_has():
    assert {"init", "Run", "Client", "CheckpointCorrupt"} <= set(dir(holdfast))
    assert holdfast.CheckpointCorrupt is CheckpointCorrupt
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = holdfast.nothing


def test_the_wait_at_the_end_is_bounded(make_agent, start, capfd, monkeypatch):
    monkeypatch.setattr(holdfast.worker.run, "EXIT_PATIENCE", 0.01)
    agent = make_agent()
    agent.silent = True
    run = start(agent)
    run.step()
    run.checkpoint({})
    run.close()
    assert "step 1 was not answered in time" in capfd.readouterr().err


def test_a_worker_waits_at_its_end_for_the_commit(make_agent, worker_env, uri):
    agent = make_agent()
    agent.silent = True
    program = "import holdfast; run = holdfast.init(); run.step(); run.checkpoint({'n': 1})"
    env = {**os.environ, **worker_env(agent)}
    worker = subprocess.Popen([sys.executable, "-W", "error", "-c", program], env=env)
    try:
        agent.wait_for(lambda: agent.prepares)
        assert worker.poll() is None
        agent.speak()
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()
    assert (uri / "job-1/step-0000000001/manifest.json").exists()
