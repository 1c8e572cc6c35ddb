"""The copy that training waits for, and the thread that writes it: training goes on, whatever happens there."""

import gc
import mmap
import os
import threading
import weakref

import numpy as np
import pytest

from holdfast.worker import background
from holdfast.worker.background import NICENESS, BackgroundWriter, Save
from holdfast.worker.checkpoint import packed
from holdfast.worker.staging import Staging

PATIENCE = 20.0


class Disk:
    """What a writer writes to: does what `plan` says, one item a try, and then works."""

    def __init__(self, *plan):
        self.plan = list(plan)
        self.written = []
        self.failed = []
        self.busy = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def write(self, save):
        self.busy.set()
        assert self.go_on.wait(PATIENCE)
        if self.plan and (error := self.plan.pop(0)):
            raise error
        self.written.append(save.step)

    def fail(self, save, error):
        self.failed.append((save.step, str(error)))


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)


@pytest.fixture
def writer_on():
    writers = []

    def make(disk):
        writers.append(BackgroundWriter(disk.write, disk.fail))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close(PATIENCE)


def save(step, **arrays):
    return Save(step, packed(arrays))


def test_it_is_written_behind_the_callers_back(writer_on):
    disk = Disk()
    disk.go_on.clear()
    writer = writer_on(disk)
    writer.give(save(1))
    assert disk.busy.wait(PATIENCE)
    assert not writer.wait(0)
    disk.go_on.set()
    assert writer.wait(PATIENCE)
    assert disk.written == [1]


def test_what_fails_is_told_and_tried_again(writer_on):
    disk = Disk(OSError("full"), OSError("still full"))
    writer = writer_on(disk)
    writer.give(save(1))
    assert writer.wait(PATIENCE)
    assert (disk.failed, disk.written) == ([(1, "full"), (1, "still full")], [1])


def test_the_last_try_is_the_last_when_another_waits(writer_on, monkeypatch):
    monkeypatch.setattr(background, "FIRST_PAUSE", 1000.0)
    disk = Disk(OSError("full"))
    disk.go_on.clear()
    writer = writer_on(disk)
    writer.give(save(1))
    assert disk.busy.wait(PATIENCE)
    writer.hurry()
    disk.go_on.set()
    assert writer.wait(PATIENCE)
    assert (disk.failed, disk.written) == ([(1, "full")], [])
    writer.give(save(2))
    assert writer.wait(PATIENCE)
    assert disk.written == [2]


def test_a_bug_is_told_and_not_tried_again_and_the_next_is_written(writer_on):
    disk = Disk(KeyError("bug"))
    writer = writer_on(disk)
    writer.give(save(1))
    assert writer.wait(PATIENCE)
    writer.give(save(2))
    assert writer.wait(PATIENCE)
    assert (disk.failed, disk.written) == ([(1, "'bug'")], [2])


def test_not_even_a_failure_that_cannot_be_told_ends_the_thread(writer_on, capfd):
    disk = Disk(OSError("full"))
    disk.fail = lambda save, error: 1 / 0
    writer = writer_on(disk)
    writer.give(save(1))
    assert writer.wait(PATIENCE)
    assert disk.written == [1]
    assert "could not be told: division by zero" in capfd.readouterr().err


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("bug")])
def test_a_chore_that_fails_is_reported_and_the_next_is_done(writer_on, capfd, error):
    disk, done = Disk(), []
    writer = writer_on(disk)

    def chore():
        raise error

    writer.later(chore)
    writer.later(lambda: done.append("chore"))
    writer.give(save(1))
    writer.close(PATIENCE)
    assert (disk.written, done) == ([1], ["chore"])
    assert f"could not be removed: {error}" in capfd.readouterr().err


def test_checkpoints_go_before_chores(writer_on):
    disk, order = Disk(), []
    disk.go_on.clear()
    writer = writer_on(disk)
    writer.give(save(1))
    assert disk.busy.wait(PATIENCE)
    writer.later(lambda: order.append(list(disk.written)))
    disk.go_on.set()
    assert writer.wait(PATIENCE)
    writer.close(PATIENCE)
    assert order == [[1]]


def test_closing_waits_and_then_nothing_more_is_begun(writer_on):
    disk, late = Disk(), []
    disk.go_on.clear()
    writer = writer_on(disk)
    writer.give(save(1))
    assert disk.busy.wait(PATIENCE)
    closing = threading.Thread(target=writer.close, args=(PATIENCE,))
    closing.start()
    disk.go_on.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert disk.written == [1]
    writer.later(lambda: late.append(1))
    writer._thread.join(PATIENCE)
    assert not writer._thread.is_alive()
    assert late == []


def test_without_a_thread_it_fails_and_training_goes_on(writer_on, monkeypatch):
    disk = Disk()
    writer = writer_on(disk)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        writer.later(lambda: None)
        writer.give(save(1))
        assert writer.wait(0)
    writer.give(save(2))
    assert writer.wait(PATIENCE)
    assert (disk.failed, disk.written) == ([(1, "can't start new thread")], [2])


def test_what_is_written_is_let_go_of(writer_on):
    writer = writer_on(Disk())
    array = np.ones(3)
    gone = weakref.ref(array)
    writer.give(save(1, w=array))
    del array
    assert writer.wait(PATIENCE)
    writer.later(lambda: None)
    writer.close(PATIENCE)
    gc.collect()
    assert gone() is None


# Staging.


def test_a_copy_is_independent_of_what_becomes_of_the_arrays():
    arrays = {
        "a": np.arange(5.0),
        "b": np.ones((2, 3), np.int8),
        "none": np.zeros((0, 7)),
        "one": np.array(3.5),
    }
    before = {name: array.copy() for name, array in arrays.items()}
    copies = Staging().copy(arrays)
    for array in arrays.values():
        array[...] = 9
    for name, copy in copies.items():
        assert (copy.dtype, copy.shape) == (before[name].dtype, before[name].shape)
        assert copy.tobytes() == before[name].tobytes()
        assert copy.flags.c_contiguous


def test_copies_do_not_overlap_and_are_aligned():
    copies = Staging().copy({str(size): np.zeros(size, np.uint8) for size in (1, 63, 64, 65, 0, 4096)})
    for index, copy in enumerate(copies.values()):
        copy[...] = index + 1
    assert [set(copy.tolist()) for copy in copies.values()] == [{1}, {2}, {3}, {4}, set(), {6}]
    assert all(copy.ctypes.data % 64 == 0 for copy in copies.values() if copy.size)


def test_the_buffer_is_used_again_and_grows_and_is_kept():
    staging = Staging()
    places = [staging.copy({"a": np.zeros(size, np.uint8)})["a"].ctypes.data for size in (100, 4000, 100)]
    assert len(set(places)) == 1
    small = staging.copy({"a": np.full(10, 7, np.uint8)})["a"]
    large = staging.copy({"a": np.full(1 << 20, 8, np.uint8)})["a"]
    assert (small.tolist(), set(large.tolist())) == ([7] * 10, {8})
    assert staging.copy({"a": np.zeros(1 << 19, np.uint8)})["a"].ctypes.data == large.ctypes.data


def test_no_memory_once_is_no_harm_the_next_time(monkeypatch):
    staging = Staging()
    staging.copy({"a": np.zeros(10)})
    arrays = {"a": np.arange(100_000.0)}

    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", refuse)
        with pytest.raises(OSError, match="allocate"):
            staging.copy(arrays)
    assert staging.copy(arrays)["a"].tobytes() == arrays["a"].tobytes()


def test_a_kernel_without_huge_pages_will_do(monkeypatch):
    class Plain(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Plain)
    assert Staging().copy({"a": np.arange(3)})["a"].tolist() == [0, 1, 2]


def test_it_leaves_the_processor_to_training():
    seen = []
    writer = BackgroundWriter(
        lambda _: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())), lambda *_: None
    )
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    writer.give(Save(1, packed({})))
    assert writer.wait(PATIENCE)
    writer.close(PATIENCE)
    assert seen == [NICENESS]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
