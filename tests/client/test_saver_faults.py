"""What goes wrong behind a training program's back: it is told, tried again, and training goes on."""

import errno
import itertools
import os
import threading

import numpy as np
import pytest

import holdfast.worker.run
from holdfast.storage import local
from holdfast.worker import background, saver
from holdfast.worker.checkpoint import Checkpoints
from tests.checkpoint.faults import OPERATIONS, error_of
from tests.client.fake_agent import PATIENCE

STEPS = 6


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(saver, "FIRST_PAUSE", 0.001)


class Trouble:
    """Makes operations of every `Files` fail from now on: those whose number, counted from 0, `fails` says."""

    def __init__(self, monkeypatch):
        self.fails = lambda number: False
        self.code = errno.ENOSPC
        self.failed = []
        self._numbers = itertools.count()
        for name in OPERATIONS:
            monkeypatch.setattr(local.Files, name, self._breaking(name, getattr(local.Files, name)))

    def begin(self, fails, code=errno.ENOSPC):
        self._numbers, self.fails, self.code = itertools.count(), fails, code

    def end(self):
        self.fails = lambda number: False

    def _breaking(self, name, operate):
        def either(files, *args):
            if not self.fails(next(self._numbers)):
                return operate(files, *args)
            self.failed.append(name)
            if name == "close":
                operate(files, *args)
            raise error_of(self.code)

        return either


@pytest.fixture
def trouble(monkeypatch):
    return Trouble(monkeypatch)


def train(run, steps=STEPS, every=2):
    state = run.restore(default={"w": np.zeros(3), "n": 0})
    while state["n"] < steps:
        state["n"] += 1
        state["w"] += state["n"]
        run.step()
        run.checkpoint(state, every=every)
    return state


def restored(run):
    state = run.restore(default={"w": np.zeros(3), "n": 0})
    assert state["w"].tolist() == [sum(range(state["n"] + 1))] * 3
    return state["n"]


# A disk that is full, or fails.


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_any_call_may_fail_and_the_checkpoint_is_committed_later(make_agent, start, trouble, code):
    """Each call of a save and a publish in turn, under an agent."""
    agent = make_agent()
    failed = set()
    for at in itertools.count():
        agent.forget()
        run = start(agent, attempt=at + 1)
        trouble.begin(lambda number, at=at: number == at, code)
        before = len(trouble.failed)
        train(run, steps=2)
        run.close()
        trouble.end()
        assert agent.commits[None].step == 2, trouble.failed[before:]
        if trouble.failed[before:] == []:
            break
        failed |= set(trouble.failed[before:])
        told = [report for report in agent.reports if report[2] == "KIND_SAVE_FAILED"]
        assert told in ([], [(0, at + 1, "KIND_SAVE_FAILED", 2)])
        assert restored(start(agent, attempt=at + 2, resume_step=2)) == 2
    assert failed >= {"make_dir", "create", "write", "sync", "close", "rename", "sync_dir"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_any_call_may_fail_outside_holdfast(start_alone, trouble, code):
    for at in itertools.count():
        program = f"program-{at}.py"
        run = start_alone(program)
        run.restore()
        trouble.begin(lambda number, at=at: number == at, code)
        before = len(trouble.failed)
        train(run, steps=2)
        run.close()
        trouble.end()
        assert restored(start_alone(program)) == 2
        if trouble.failed[before:] == []:
            break


def test_a_full_disk_is_reported_and_what_comes_when_there_is_room_is_committed(
    make_agent, start, trouble, capfd
):
    agent = make_agent()
    run = start(agent)
    trouble.begin(lambda _: True)
    train(run)
    agent.wait_for(lambda: (0, 1, "KIND_SAVE_FAILED", 6) in agent.reports)
    assert agent.prepares == []
    trouble.end()
    run.checkpoint({}, wait=True)  # the last is still tried, and awaited
    assert agent.commits[None].step == 6
    said = "the checkpoint of step 6 could not be written: [Errno 28] No space left on device, below /"
    assert said in capfd.readouterr().err


def test_a_process_whose_last_save_fails_ends(make_agent, start, trouble, capfd, monkeypatch):
    monkeypatch.setattr(holdfast.worker.run, "EXIT_PATIENCE", 0.01)
    agent = make_agent()
    run = start(agent)
    trouble.begin(lambda _: True)
    train(run)
    run.close()
    assert "the checkpoint of step 6 could not be written" in capfd.readouterr().err
    assert agent.commits == {}


def test_a_bug_in_saving_is_reported_and_training_goes_on(make_agent, start, monkeypatch, capfd):
    agent = make_agent()
    run = start(agent)

    def bug(*_):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", bug)
        state = train(run)
        agent.wait_for(lambda: (0, 1, "KIND_SAVE_FAILED", 6) in agent.reports)
        with pytest.raises(ZeroDivisionError):
            run.checkpoint(state, wait=True)  # and it is not said that it was committed
    run.checkpoint(state, wait=True)
    assert agent.commits[None].step == 6
    assert capfd.readouterr().err.count("could not be written: a bug") == 3


def test_without_memory_for_a_copy_training_waits(make_agent, start, monkeypatch, capfd):
    agent = make_agent()
    run = start(agent)

    def refuse(*_):
        raise MemoryError("no memory")

    monkeypatch.setattr(saver.Staging, "copy", refuse)
    train(run)
    agent.wait_for(lambda: (0, 1, 6) in agent.prepares)
    assert restored(start(agent, attempt=2, resume_step=6)) == 6
    assert "there is no memory to copy the state aside" in capfd.readouterr().err


def test_training_overwrites_its_arrays_while_they_are_written(make_agent, start, monkeypatch):
    """Every save begins to write only when the next step has changed everything."""
    agent = make_agent()
    run = start(agent)
    save, changed = Checkpoints.save, threading.Event()

    def late(*args):
        assert changed.wait(PATIENCE)
        return save(*args)

    monkeypatch.setattr(Checkpoints, "save", late)
    array = np.arange(100_000.0)
    for step in (1, 2, 3):
        run.step()
        run.checkpoint({"a": array, "step": step})
        array += 1
        changed.set()
        assert run._saver.settle(PATIENCE)
        changed.clear()
    changed.set()
    found = start(agent, attempt=2, resume_step=3).restore()
    assert np.array_equal(found["a"], np.arange(100_000.0) + 2)


def test_one_is_in_flight_and_training_waits_for_it(make_agent, start, monkeypatch, capfd):
    monkeypatch.setattr(saver, "PATIENCE", 0.01)
    agent = make_agent()
    run = start(agent)
    save, go_on, at_once = Checkpoints.save, threading.Event(), []
    writing = threading.Lock()

    def slow(*args):
        at_once.append(writing.acquire(blocking=False))
        assert go_on.wait(PATIENCE)
        writing.release()
        return save(*args)

    monkeypatch.setattr(Checkpoints, "save", slow)
    run.step()
    run.checkpoint({})
    run.step()
    second = threading.Thread(target=run.checkpoint, args=({},))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    go_on.set()
    second.join(PATIENCE)
    assert not second.is_alive()
    run.checkpoint({}, wait=True)
    assert at_once == [True, True]
    assert "step 1 is still being written; training waits, to save step 2" in capfd.readouterr().err


def test_a_publish_that_fails_for_another_reason_than_the_disk_ends_no_link(
    make_agent, start, monkeypatch, capfd
):
    agent = make_agent()
    run = start(agent)

    def bug(*_):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "publish", bug)
        run.step()
        run.checkpoint({}, wait=True)
    run.step()
    run.checkpoint({}, wait=True)
    assert agent.commits[None].step == 2
    assert "the manifest of step 1 could not be written: a bug" in capfd.readouterr().err


def test_a_place_that_cannot_be_claimed_is_said_in_one_sentence(start_alone, uri):
    uri.write_text("a file")
    with pytest.raises(
        saver.CheckpointError, match=f"checkpoints cannot be kept in {uri}: .*Not a directory"
    ):
        start_alone().restore()


def test_two_jobs_with_one_prefix_do_not_meet(start_alone, uri):
    first, second = start_alone("first.py"), start_alone("second.py")
    for run in (first, second):
        train(run, steps=2 if run is first else 4)
        run.close()
    assert sorted(os.listdir(uri)) == ["first", "second"]
    assert [restored(start_alone(program)) for program in ("first.py", "second.py")] == [2, 4]
