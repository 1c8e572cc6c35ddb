"""`holdfast backup`: a copy of one moment, and a state that knows more than the copy did."""

import os
import shutil
import sqlite3

import pytest
from click.testing import CliRunner

from holdfast.cli import cli
from holdfast.cli.exits import EXIT
from holdfast.storage.local import LocalStorage
from holdfast.worker import layout
from holdfast.worker.manifest import Commit, Shard
from holdfast_coordinator.core.events import JobSubmitted, LeaderElected
from holdfast_coordinator.core.jobspec import JobSpec
from holdfast_coordinator.core.state import Settings
from holdfast_coordinator.core.step import step
from holdfast_coordinator.store.sqlite import FILE, SqliteStore


@pytest.fixture
def place(tmp_path):
    return tmp_path / "coordinator"


def submitted(place, checkpoint_uri):
    """A state directory in which there is a job that waits for a node."""
    store = SqliteStore(place)
    state = store.load(Settings())
    spec = JobSpec(name="train", command=("true",), world_size=1, checkpoint_uri=str(checkpoint_uri))
    for event in (LeaderElected(1, state.epoch + 1), JobSubmitted(2, "j1", "r1", spec)):
        store.commit(step(state, event).writes, epoch=state.epoch)
    return store


def published(checkpoints, at_step, attempt):
    shard = Shard(0, layout.shard_name(0, attempt), 10, "0" * 16, "")
    layout.publish(LocalStorage(str(checkpoints), "j1"), Commit("j1", at_step, attempt, None, 1, 7, (shard,)))


def run(*arguments):
    done = CliRunner().invoke(cli, ["backup", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_there_and_back(place, tmp_path):
    checkpoints, file = tmp_path / "checkpoints", tmp_path / "backup.db"
    checkpoints.mkdir()
    store = submitted(place, checkpoints)  # and it is open still
    assert run("create", file, "--state-dir", place).exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    store.close()
    published(checkpoints, 20, 3)
    published(checkpoints, 10, 1)
    shutil.rmtree(place)
    done = run("restore", file, "--state-dir", place)
    assert (done.exit_code, done.stdout) == (0, f"holdfast coordinator --state-dir {place}\n")
    assert done.stderr == "job j1: 2 commits since, the newest of step 20\n"
    assert os.listdir(place) == [FILE]
    store = SqliteStore(place)
    state = store.load(Settings())
    store.close()
    (gang,) = state.gangs.values()
    assert (gang.commit.step, gang.commit.attempt) == (20, 3)
    assert gang.attempt > 3
    assert state.epoch > 1_000


def test_a_backup_that_is_there_is_not_overwritten(place, tmp_path):
    submitted(place, tmp_path).close()
    file = tmp_path / "backup.db"
    file.write_text("precious")
    assert run("create", file, "--state-dir", place).exit_code == EXIT.FAILED
    assert file.read_text() == "precious"


def test_nothing_to_copy(tmp_path):
    for what in ("create", "restore"):
        assert run(what, tmp_path / "backup.db", "--state-dir", tmp_path).exit_code == EXIT.NOT_FOUND
    assert os.listdir(tmp_path) == []


def test_a_state_that_is_there_is_not_overwritten(place, tmp_path):
    submitted(place, tmp_path).close()
    file = tmp_path / "backup.db"
    run("create", file, "--state-dir", place)
    done = run("restore", file, "--state-dir", place)
    assert done.exit_code == EXIT.FAILED
    assert "has a holdfast.db already" in done.stderr


@pytest.mark.parametrize("where", ["", "/not/here"])
def test_checkpoints_that_cannot_be_read_from_here(place, tmp_path, where):
    submitted(place, where).close()
    file = tmp_path / "backup.db"
    run("create", file, "--state-dir", place)
    done = run("restore", file, "--state-dir", tmp_path / "new")
    assert done.exit_code == EXIT.UNREACHABLE
    assert "job j1 (train): " in done.stderr
    assert os.listdir(tmp_path / "new") == []
    assert run("restore", file, "--state-dir", tmp_path / "new", "--skip-unreadable").exit_code == 0


def test_a_damaged_backup(tmp_path):
    file = tmp_path / "backup.db"
    with sqlite3.connect(file) as made:
        made.execute("create table a (b)")
    made.close()
    file.write_bytes(file.read_bytes()[:4096] + b"\xff" * 4096)
    done = run("restore", file, "--state-dir", tmp_path / "new")
    assert done.exit_code == EXIT.FAILED
    assert os.listdir(tmp_path / "new") == []
