"""What is removed, and that nothing else is; who may publish, and who may not."""

import pytest

from holdfast.worker.checkpoint import packed
from tests.checkpoint.objects import Objects, ObjectStorage
from tests.checkpoint.places import (
    NEW,
    OLD,
    checkpoints_at,
    checkpoints_on,
    commit_of,
    names_below,
    resumed,
    save_and_publish,
)


def shards_below(top):
    return [
        name.removeprefix("job/step-0000000") for name in names_below(top) if name.endswith(".safetensors")
    ]


def test_a_checkpoint_that_is_dropped_is_gone_with_all_that_lay_beside_it(tmp_path):
    checkpoints_at(tmp_path, attempt=0).save(100, packed(NEW))
    checkpoints = checkpoints_at(tmp_path)
    save_and_publish(checkpoints, 100, OLD)
    save_and_publish(checkpoints, 200, NEW)
    checkpoints.drop(100)
    checkpoints.drop(100)
    assert names_below(tmp_path) == [
        "job/LATEST",
        "job/step-0000000200/manifest.json",
        "job/step-0000000200/rank-00000.attempt-1.safetensors",
    ]
    assert not (tmp_path / "job/step-0000000100").exists()


def test_what_was_set_aside_stays_when_its_step_was_committed_anew_and_is_dropped(tmp_path):
    first, second = checkpoints_at(tmp_path, 1), checkpoints_at(tmp_path, 2)
    first.quarantine(save_and_publish(first, 100, OLD))
    save_and_publish(second, 100, OLD, attempt=2)
    second.drop(100)
    assert sorted(path.name for path in (tmp_path / "job/step-0000000100").iterdir()) == [
        "manifest.quarantined-attempt-1.json",
        "quarantined.rank-00000.attempt-1.safetensors",
    ]


def test_a_superseded_attempt_drops_nothing_that_a_later_one_has_committed(tmp_path):
    first, second = checkpoints_at(tmp_path, 1), checkpoints_at(tmp_path, 2)
    first.save(100, packed(OLD))
    commit = save_and_publish(second, 100, NEW, attempt=2)
    first.drop(100)
    assert second.newest() == commit
    assert second.load(commit, 0)["n"] == NEW["n"]


def test_sweeping_takes_what_dead_attempts_left_and_nothing_else(tmp_path):
    for rank in (0, 1):
        for step in (50, 100, 150, 200, 300):
            checkpoints_at(tmp_path, 1, rank).save(step, packed(OLD))  # of which 100 alone was committed
    first = checkpoints_at(tmp_path, 1)
    kept = [first.save(100, packed(OLD)), checkpoints_at(tmp_path, 1, 1).save(100, packed(OLD))]
    first.publish(commit_of(100, *kept))
    second = checkpoints_at(tmp_path, 2)
    commit = save_and_publish(second, 200, NEW, attempt=2)
    second.save(250, packed(NEW))  # in flight
    checkpoints_at(tmp_path, 3).save(
        150, packed(NEW)
    )  # of an attempt after this one, which does not know it yet
    second.sweep(commit, resumed=100)
    assert shards_below(tmp_path) == [
        "050/rank-00000.attempt-1.safetensors",  # before what was resumed from: it may have been committed
        "050/rank-00001.attempt-1.safetensors",
        "100/rank-00000.attempt-1.safetensors",
        "100/rank-00001.attempt-1.safetensors",
        "150/rank-00000.attempt-3.safetensors",
        "200/rank-00000.attempt-2.safetensors",
        "250/rank-00000.attempt-2.safetensors",
        "300/rank-00000.attempt-1.safetensors",  # others of this attempt may be writing theirs
        "300/rank-00001.attempt-1.safetensors",
    ]


def test_sweeping_keeps_what_was_set_aside(tmp_path):
    first = checkpoints_at(tmp_path, 1)
    save_and_publish(first, 100, OLD)
    first.quarantine(save_and_publish(first, 150, OLD))
    before = [name for name in names_below(tmp_path) if "150" in name]
    second = checkpoints_at(tmp_path, 2)
    second.sweep(save_and_publish(second, 200, NEW, attempt=2), resumed=100)
    assert [name for name in names_below(tmp_path) if "150" in name] == before


@pytest.mark.parametrize("late", [1, 2])
def test_a_superseded_attempt_replaces_no_commit(tmp_path, late):
    """Attempt 3 resumed, and committed the step anew; then an attempt before it comes to publish."""
    newer = save_and_publish(checkpoints_at(tmp_path, 3), 200, NEW, attempt=3)
    old = checkpoints_at(tmp_path, late)
    with pytest.raises(FileExistsError, match="was committed by attempt 3 since"):
        save_and_publish(old, 200, OLD, attempt=late)
    assert old.published(200) == newer
    assert resumed(old) == 200


def test_a_later_attempt_replaces_a_commit_and_latest_stays(tmp_path):
    save_and_publish(checkpoints_at(tmp_path, 1), 200, OLD)
    newer = save_and_publish(checkpoints_at(tmp_path, 2), 200, NEW, attempt=2)
    assert checkpoints_at(tmp_path, 3).newest() == newer
    assert resumed(checkpoints_at(tmp_path, 3)) == 200


def test_two_lone_processes_on_one_prefix_of_a_store_without_locks():
    """Their attempts differ, so they write different files; the one that was started first is told at its commit."""
    objects = Objects()
    first = checkpoints_on(ObjectStorage(objects), 1_000)
    second = checkpoints_on(ObjectStorage(objects), 2_000)
    early, late = first.save(200, packed(OLD)), second.save(200, packed(NEW))
    second.publish(commit_of(200, late, attempt=2_000))
    with pytest.raises(FileExistsError, match="attempt 2000"):
        first.publish(commit_of(200, early, attempt=1_000))
    assert resumed(second) == 200


def test_another_jobs_manifest_is_no_checkpoint_of_this_one(tmp_path):
    checkpoints = checkpoints_at(tmp_path)
    save_and_publish(checkpoints, 100, OLD)
    foreign = commit_of(200, checkpoints.save(200, packed(NEW)))._replace(job_id="another")
    checkpoints.publish(foreign)
    assert checkpoints.published(200) is None
    assert resumed(checkpoints) == 100
