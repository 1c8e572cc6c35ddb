"""The same promises where every change is a request: one that is lost, whose answer is, or whose client dies."""

import contextlib

import pytest

from holdfast.worker.checkpoint import packed
from holdfast.worker.spool import drain, held
from tests.checkpoint.objects import Died, Objects, ObjectStorage
from tests.checkpoint.places import NEW, OLD, checkpoints_on, commit_of, resumed, save_and_publish, storage_at

DEATHS = ["dies before", "dies after"]
LOSSES = ["lost", "answer lost"]


def with_two():
    objects = Objects()
    save_and_publish(on(objects), 100, OLD)
    save_and_publish(on(objects, 2), 200, NEW, attempt=2)
    return objects


def on(objects, attempt=1):
    return checkpoints_on(ObjectStorage(objects), attempt)


def every_break(make, fault, act):
    """Does something to objects, each request of it breaking in turn; yields them, and the error, if there was one."""
    at = 0
    while True:
        objects = make()
        objects.break_at(at, fault)
        error = None
        try:
            act(objects)
        except (OSError, Died) as caught:
            error = caught
        broke = objects.broke
        objects.break_at(None, None)
        yield objects, error
        if not broke:
            return
        at += 1


def with_one():
    objects = Objects()
    save_and_publish(on(objects), 100, OLD)
    return objects


def save_another(objects):
    save_and_publish(on(objects, 2), 200, NEW, attempt=2)


@pytest.mark.parametrize("fault", DEATHS + LOSSES)
def test_the_previous_commit_or_the_new_one_is_found(fault):
    found = []
    for objects, error in every_break(with_one, fault, save_another):
        found.append(resumed(on(objects, 3)))
        assert found[-1] in ((100, 200) if error else (200,))
        save_another(objects)
        assert resumed(on(objects, 3)) == 200
        assert objects.there["LATEST"] == b"step-0000000200\n"
    assert set(found) == {100, 200}


@pytest.mark.parametrize("fault", DEATHS + LOSSES)
def test_what_was_prepared_can_be_resumed_from_by_the_record_alone(fault):
    records = []

    def save(objects):
        checkpoints = on(objects, 2)
        records.append(commit_of(200, checkpoints.save(200, packed(NEW)), attempt=2))
        checkpoints.publish(records[-1])

    for objects, _ in every_break(with_one, fault, save):
        if records:
            on(objects, 3).publish(records.pop())
            assert resumed(on(objects, 3)) == 200


@pytest.mark.parametrize("fault", DEATHS + LOSSES)
def test_a_checkpoint_is_dropped_as_a_whole(fault):
    for objects, error in every_break(with_two, fault, lambda objects: on(objects).drop(100)):
        old = on(objects).published(100)
        assert old is None or on(objects).load(old, 0)["n"] == 100
        assert resumed(on(objects)) == 200
        assert error or not any("100" in name for name in objects.there)
        on(objects).drop(100)
        assert not any("100" in name for name in objects.there)


@pytest.mark.parametrize("fault", DEATHS + LOSSES)
def test_a_commit_that_is_set_aside_leaves_the_one_before(fault):
    def quarantine(objects):
        checkpoints = on(objects, 3)
        checkpoints.quarantine(checkpoints.published(200))

    for objects, error in every_break(with_two, fault, quarantine):
        assert resumed(on(objects)) in ((100, 200) if error else (100,))
        assert sum("step-0000000200/manifest." in name for name in objects.there) >= 1
        if on(objects).published(200):
            quarantine(objects)
        assert resumed(on(objects)) == 100
        assert sum("step-0000000200/manifest." in name for name in objects.there) == 1


@pytest.mark.parametrize("fault", DEATHS + LOSSES)
def test_sweeping_takes_nothing_that_a_commit_has(fault):
    def with_leftover():
        objects = Objects()
        on(objects).save(150, packed(OLD))
        save_and_publish(on(objects), 100, OLD)
        save_another(objects)
        return objects

    def sweep(objects):
        on(objects, 2).sweep(on(objects, 2).newest(), 100)

    for objects, _ in every_break(with_leftover, fault, sweep):
        assert resumed(on(objects)) == 200
        assert on(objects).load(on(objects).published(100), 0)["n"] == 100
        sweep(objects)
        assert not any("150" in name for name in objects.there)


@pytest.mark.parametrize("fault", DEATHS + LOSSES)
def test_a_spool_is_brought_there_whatever_happens_on_the_way(tmp_path, fault):
    number = iter(range(1000))
    spools = []

    def with_spool():
        spools.append(storage_at(tmp_path / str(next(number))))
        for step, state in ((100, OLD), (200, NEW)):
            checkpoints = checkpoints_on(spools[-1])
            commit = commit_of(step, checkpoints.save(step, packed(state)))
            checkpoints.publish(commit)
        spools[-1].delete(["LATEST"])
        return Objects()

    def bring(objects):
        drain(spools[-1], ObjectStorage(objects), held(spools[-1]))

    seen = set()
    for objects, _ in every_break(with_spool, fault, bring):
        seen.add(resumed(on(objects)))
        bring(objects)
        assert resumed(on(objects)) == 200
        assert on(objects).published(100)
        assert held(spools[-1]) == []
    assert seen == {None, 100, 200}


def test_a_superseded_attempt_publishes_nothing():
    objects = with_two()
    newer = on(objects).published(200)
    late = commit_of(200, on(objects, 1).save(200, packed(OLD)), attempt=1)
    with pytest.raises(FileExistsError, match="attempt 2"):
        on(objects, 1).publish(late)
    assert on(objects).published(200) == newer
    assert resumed(on(objects)) == 200


def test_a_put_that_comes_twice_and_late_changes_nothing():
    """A request that was given up may still be carried out, after others."""
    objects = with_one()
    late = []
    request = objects.request

    def keep(effect):
        late.append(effect)
        return request(effect)

    objects.request = keep
    save_another(objects)
    shard = late[0]
    with contextlib.suppress(StopIteration):
        shard()
    assert resumed(on(objects, 3)) == 200
