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
from holdfast_coordinator.store.postgres import PostgresStore
from holdfast_coordinator.store.sqlite import FILE, SqliteStore
from tests.postgres import written


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


class TestPostgres:
    @pytest.fixture
    def database(self, postgres):
        """A new one, as a coordinator is told of it."""
        url = postgres.make_database()
        return url, written(url)

    @staticmethod
    def state_in(url):
        """What a coordinator finds there that comes to lead."""
        store = PostgresStore(url, "next")
        try:
            assert store.take(60_000).granted
            return store.load(Settings())
        finally:
            store.give_back()
            store.close()

    def test_a_state_is_moved(self, place, tmp_path, database):
        url, named = database
        store = submitted(place, tmp_path)
        before = store.load(Settings())
        done = run("move", "--state-dir", place, "--store", named)
        assert done.exit_code == EXIT.FAILED
        assert "another coordinator uses the state directory" in done.stderr
        store.close()
        done = run("move", "--state-dir", place, "--store", named)
        assert (done.exit_code, done.stdout) == (0, f"holdfast coordinator --store '{named}'\n")
        assert self.state_in(url) == before
        assert FILE not in os.listdir(place)
        with sqlite3.connect(place / f"{FILE}.moved") as kept:
            assert kept.execute("SELECT id FROM jobs").fetchall() == [("j1",)]
        kept.close()
        assert run("move", "--state-dir", place, "--store", named).exit_code == EXIT.NOT_FOUND

    def test_a_database_with_a_state_takes_no_other(self, place, tmp_path, database):
        url, named = database
        submitted(place, tmp_path).close()
        self.state_in(url)
        done = run("move", "--state-dir", place, "--store", named)
        assert done.exit_code == EXIT.FAILED
        assert "there is a state in it already" in done.stderr
        assert FILE in os.listdir(place)
        assert not self.state_in(url).jobs

    def test_there_and_back(self, place, tmp_path, database, postgres):
        _, named = database
        checkpoints, file = tmp_path / "checkpoints", tmp_path / "backup.db"
        checkpoints.mkdir()
        submitted(place, checkpoints).close()
        (tmp_path / "url").write_text(f"{named}\n")
        done = run("move", "--state-dir", place, "--store-file", tmp_path / "url")
        assert done.stdout == f"holdfast coordinator --store-file {tmp_path}/url\n"
        assert run("create", file, "--store-file", tmp_path / "url").exit_code == 0
        assert file.stat().st_mode & 0o777 == 0o600
        assert sorted(os.listdir(tmp_path)) == ["backup.db", "checkpoints", "coordinator", "url"]
        published(checkpoints, 20, 3)

        other = postgres.make_database()
        assert run("restore", file, "--store", written(other)).exit_code == 0
        (gang,) = self.state_in(other).gangs.values()
        assert (gang.commit.step, gang.commit.attempt) == (20, 3)
        assert gang.attempt > 3

    @pytest.mark.parametrize("what", ["create", "restore", "move"])
    def test_a_server_that_is_not_there(self, place, tmp_path, what):
        submitted(place, tmp_path).close()
        file = tmp_path / "backup.db"
        if what == "restore":
            run("create", file, "--state-dir", place)
        before = sorted(os.listdir(tmp_path))
        words = {"create": [file], "restore": [file], "move": ["--state-dir", place]}[what]
        done = run(what, *words, "--store", f"postgresql://me@/x?host={tmp_path}/no")
        assert done.exit_code == EXIT.FAILED
        assert "No such file or directory" in done.stderr
        assert sorted(os.listdir(tmp_path)) == before
        assert FILE in os.listdir(place)

    def test_a_database_without_a_state(self, tmp_path, database):
        done = run("create", tmp_path / "backup.db", "--store", database[1])
        assert done.exit_code == EXIT.FAILED
        assert "holds no state of a coordinator" in done.stderr
        assert os.listdir(tmp_path) == []

    def test_what_is_typed_counts_more_than_the_environment(self, place, tmp_path, database, monkeypatch):
        submitted(place, tmp_path).close()
        monkeypatch.setenv("HOLDFAST_COORDINATOR_STORE", database[1])
        assert run("create", tmp_path / "backup.db", "--state-dir", place).exit_code == 0
        assert "holds no state" in run("create", tmp_path / "other.db").stderr
        done = run("create", tmp_path / "other.db", "--state-dir", place, "--store", database[1])
        assert done.exit_code == EXIT.USAGE
        assert "two places" in done.stderr
        done = run("move", "--state-dir", place)
        assert (done.exit_code, done.stdout) == (0, "holdfast coordinator\n"), "which has it from there, too"

    def test_a_move_without_a_target(self, place):
        done = run("move", "--state-dir", place)
        assert done.exit_code == EXIT.USAGE
        assert "name the database to move to" in done.stderr
