"""Memory of batches: used again, and never while anybody holds what was made in it."""

import threading

import numpy as np
import pytest

from holdfast.data.memory import Memory
from holdfast.data.prefetch import Prefetch

FLOATS = np.dtype(np.float32)


def place(array):
    return array.__array_interface__["data"][0]


def test_what_nobody_holds_is_used_again():
    memory = Memory(2)
    first = memory.rows("x", 10, FLOATS)
    was = place(first)
    del first
    again = memory.rows("x", 7, FLOATS)
    assert (place(again), again.shape, again.dtype) == (was, (7,), FLOATS)


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array,
        lambda array: array[3:5],
        lambda array: array.reshape(2, 5).T,
        lambda array: array.view(np.uint8)[:1],
        memoryview,
        lambda array: array.__dlpack__(),
        lambda array: np.frombuffer(array, np.int8),
        lambda array: iter(array),
    ],
)
def test_what_is_held_in_any_way_is_not(hold):
    memory = Memory(1)
    made = memory.rows("x", 10, FLOATS)
    was = place(made)
    held = hold(made)
    del made
    others = [memory.rows("x", 10, FLOATS) for _ in range(5)]
    assert was not in map(place, others)
    del held


def test_a_batch_that_is_kept_for_ever_is_let_go_of():
    memory = Memory(2)
    kept = memory.rows("x", 10, FLOATS)
    for _ in range(3):
        memory.rows("x", 10, FLOATS)
    used = {place(memory.rows("x", 10, FLOATS)) for _ in range(20)}
    assert len(used) <= 2
    assert place(kept) not in used


def test_columns_and_sizes_have_memory_of_their_own():
    memory = Memory(1)
    sizes = {"x": 10, "y": 1000}
    was = {name: place(memory.rows(name, size, FLOATS)) for name, size in sizes.items()}
    assert {name: place(memory.rows(name, size, FLOATS)) for name, size in sizes.items()} == was
    assert len(memory.rows("x", 20, FLOATS)) == 20
    assert memory.rows("z", 3, np.dtype(object)).tolist() == [None] * 3


def test_a_result_is_not_kept_back_by_a_call_that_is_slow_to_be_found():
    slow, waited = threading.Event(), []

    def calls():
        yield lambda: 1
        waited.append(slow.wait(10))
        yield lambda: 2

    prefetch = Prefetch(calls(), 2, 4)
    assert prefetch.take() == 1
    slow.set()
    assert [prefetch.take(), prefetch.take()] == [2, None]
    assert waited == [True]
