"""`holdfast checkpoint drain`: what workers left behind comes to its storage."""

from click.testing import CliRunner

from holdfast.cli.drain import command
from holdfast.worker import spool
from holdfast.worker.checkpoint import packed
from holdfast.worker.spool import SpooledStorage
from tests.checkpoint.away import Away
from tests.checkpoint.places import (
    OLD,
    checkpoints_at,
    checkpoints_on,
    commit_of,
    save_and_publish,
    storage_at,
)

SHARD = "step-0000000100/rank-00000.attempt-1.safetensors"


def leave_behind(tmp_path, save):
    """A worker whose storage was away, and that is gone."""
    storage = SpooledStorage(
        Away(tmp_path / "main", gone=True), storage_at(tmp_path / "spool"), "rank-00000."
    )
    save(checkpoints_on(storage))
    storage.close()


def drain(directory):
    return CliRunner().invoke(command, [str(directory)])


def test_everything_is_brought_and_named(tmp_path):
    leave_behind(tmp_path, lambda checkpoints: save_and_publish(checkpoints, 100, OLD))
    done = drain(tmp_path / "spool")
    assert (done.exit_code, done.stdout) == (0, f"{SHARD}\nstep-0000000100/manifest.json\n")
    assert "2 files are in their storage now" in done.stderr
    assert checkpoints_at(tmp_path / "main").newest().step == 100


def test_what_is_left_is_said(tmp_path):
    def save(checkpoints):
        shard = checkpoints.save(100, packed(OLD))
        checkpoints.publish(
            commit_of(100, shard, shard._replace(rank=1, file="rank-00001.attempt-1.safetensors"))
        )

    leave_behind(tmp_path, save)
    done = drain(tmp_path / "spool/job")
    assert (done.exit_code, done.stdout) == (1, f"{SHARD}\n")
    assert "1 files are still held here" in done.stderr
    assert "manifest.json" in done.stderr


def test_a_directory_that_is_no_spool_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    done = drain(tmp_path)
    assert done.exit_code == 1
    assert f"{tmp_path} is no spool" in done.stderr


def test_a_storage_that_is_still_away_is_said(tmp_path, monkeypatch):
    leave_behind(tmp_path, lambda checkpoints: save_and_publish(checkpoints, 100, OLD))
    monkeypatch.setattr(spool, "open_storage", lambda _: Away(tmp_path / "main", gone=True))
    done = drain(tmp_path / "spool")
    assert done.exit_code == 1
    assert "could not be drained: connection refused" in done.stderr
