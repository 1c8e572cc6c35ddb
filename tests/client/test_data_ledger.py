"""P5, the ledger: along the committed history every sample is consumed exactly once an epoch.

A history is one of a job that is killed, restarted and resized: attempts of other world sizes, each of which takes
some batches, and loses those that were not committed when it died. Cursors travel as JSON, as they do in manifests.
"""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.data.dataset import ShardDataset
from holdfast.data.reader import ShardReader
from holdfast.data.shards import DataIndex, ShardInfo
from holdfast.data.source import locate
from holdfast.worker import ledger, sharding, windows
from holdfast.worker.dataset import Dataset
from holdfast.worker.sharding import Cursor, make_plan

BATCH = 12
WORLDS = (1, 2, 3, 4, 6, 12)

SEEDS = st.integers(0, 2**70)
COUNTS = st.lists(st.integers(0, 25), min_size=1, max_size=7).filter(lambda counts: sum(counts) >= 4)
WINDOWS = st.integers(1, 60)


class ArrayOrder:
    """The order of arrays, as `Dataset` follows it."""

    def __init__(self, samples):
        self.samples = samples

    def dataset(self, plan, epochs):
        return Dataset(plan, self.samples, epochs)

    def batch(self, plan, at):
        epoch_order = sharding.order(plan.dealt, plan.seed, at.epoch)
        return sharding.take(plan, epoch_order, at.batch).tolist()


class ShardOrder:
    """The order of shards. Follows it as the threads of a `ShardDataset` do, without shards that could be read."""

    def __init__(self, counts, window):
        self.counts = np.array(counts, np.int64)
        self.window = window
        self.samples = int(self.counts.sum())
        self._index = DataIndex(
            "/data", tuple(ShardInfo(f"{n}.npy", count, 1, "") for n, count in enumerate(counts))
        )

    def dataset(self, plan, epochs):
        reader = ShardReader(self._index, locate("/data", {}), {})
        return ShardDataset(plan, reader, epochs, "train", self.window, lambda: None)

    def batch(self, plan, at):
        pieces = (
            windows.part(self.counts, plan.world_size, plan.rank)
            if plan.partition
            else windows.whole(self.counts)
        )
        epoch = windows.Epoch(pieces, self.window, plan.seed, at.epoch)
        shards, rows = epoch.take(at.batch * plan.batch_size, (at.batch + 1) * plan.batch_size)
        numbers = (np.cumsum(self.counts) - self.counts)[shards] + rows
        return numbers.tolist() if plan.partition else numbers[plan.rank :: plan.world_size].tolist()


ORDERS = st.one_of(st.integers(4, 90).map(ArrayOrder), st.builds(ShardOrder, COUNTS, WINDOWS))


def attempt(order, plans, epochs, saved, batches, lost):
    """One attempt of all ranks: what its committed steps consumed, rank by rank, and the cursors of its last commit."""
    data = [order.dataset(plan, epochs) for plan in plans]
    for each, text in zip(data, saved or [], strict=False):
        each.restore(json.loads(text))
    steps, cursors = [], [[json.dumps(each.save()) for each in data]]
    while len(steps) < batches and not data[0].done:
        steps.append([order.batch(each.plan, each.cursor) for each in data])
        for each in data:
            each.cursor = each.cursor.after(each.plan)
        cursors.append([json.dumps(each.save()) for each in data])
    kept = len(steps) - min(lost, len(steps))
    return steps[:kept], cursors[kept]


def whole_batch(parts):
    """The global batch that was dealt out."""
    whole = [None] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


LIVES = st.lists(st.tuples(st.sampled_from(WORLDS), st.integers(0, 12), st.integers(0, 5)), max_size=6)


@settings(deadline=None, max_examples=300)
@given(ORDERS, SEEDS, st.integers(1, 3), LIVES)
def test_a_gang_that_is_killed_and_resized_consumes_every_sample_once_an_epoch(order, seed, epochs, lives):
    history, saved = [], None
    for world, batches, lost in [*lives, (1, 10**9, 0)]:
        plans = [make_plan(order.samples, BATCH, seed, world, rank, partition=False) for rank in range(world)]
        # any rank of the new world may take any rank's cursor of the old one
        steps, cursors = attempt(order, plans, epochs, saved and saved[:1] * world, batches, lost)
        history += [whole_batch(step) for step in steps]
        saved = cursors
        assert len(set(cursors)) == 1
    per_epoch = plans[0].batches
    assert len(history) == per_epoch * epochs
    for epoch in range(epochs):
        of_epoch = history[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(itertools.chain(*of_epoch)) == list(range(order.samples))
        assert [len(batch) for batch in of_epoch[:-1]] == [BATCH] * (per_epoch - 1)


@settings(deadline=None, max_examples=300)
@given(
    ORDERS,
    SEEDS,
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 9),
    st.lists(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), max_size=4), min_size=4, max_size=4),
)
def test_independent_ranks_that_die_one_by_one_consume_every_sample_once_an_epoch(
    order, seed, epochs, world, batch, lives
):
    histories = []
    for rank in range(world):
        plan = make_plan(order.samples, batch, seed, world, rank, partition=True)
        history, saved = [], None
        for batches, lost in [*lives[rank], (10**9, 0)]:
            steps, saved = attempt(order, [plan], epochs, saved, batches, lost)
            history += [step[0] for step in steps]
        assert len(history) == plan.batches * epochs
        histories.append((plan, history))
    for epoch in range(epochs):
        taken = [
            part
            for plan, history in histories
            for part in history[epoch * plan.batches : (epoch + 1) * plan.batches]
        ]
        assert sorted(itertools.chain(*taken)) == list(range(order.samples))


@settings(deadline=None, max_examples=100)
@given(ORDERS, SEEDS, st.integers(0, 3))
def test_the_global_batches_are_the_same_at_every_world_size(order, seed, epoch):
    def batches(world):
        plans = [make_plan(order.samples, BATCH, seed, world, rank, partition=False) for rank in range(world)]
        return [
            whole_batch([order.batch(plan, Cursor(epoch, n)) for plan in plans])
            for n in range(plans[0].batches)
        ]

    alone = batches(1)
    assert all(batches(world) == alone for world in WORLDS[1:])


@settings(deadline=None, max_examples=100)
@given(ORDERS, SEEDS, st.integers(1, 3), st.sampled_from(WORLDS), st.integers(0, 40), st.booleans())
def test_what_is_counted_as_consumed_is_what_was_consumed(order, seed, epochs, world, batches, partition):
    if partition:
        world = min(world, 4)
    plans = [make_plan(order.samples, BATCH, seed, world, rank, partition=partition) for rank in range(world)]
    taken, cursors = {}, {}
    for plan in plans:
        steps, saved = attempt(order, [plan], epochs, None, batches, 0)
        cursors[plan.rank] = json.dumps([json.loads(saved[0])])
        for number, (batch,) in enumerate(steps):
            place = taken.setdefault((number // plan.batches, plan.rank), [0, 0])
            place[0] += 1
            place[1] += len(batch)
    found = {}
    for line in ledger.consumed(cursors, world):
        for epoch in range(line.first_epoch, line.last_epoch + 1):
            found[epoch, line.rank] = [line.batches, line.samples]
            assert line.samples <= line.of_samples
            assert line.batches <= line.of_batches
    assert {place: counts for place, counts in found.items() if counts != [0, 0]} == taken


# The order of shards.


@given(COUNTS, st.integers(1, 6))
def test_parts_are_even_and_make_up_the_data_set(counts, world):
    counts = np.array(counts, np.int64)
    parts = [windows.part(counts, world, rank) for rank in range(world)]
    sizes = [int(part.samples.sum()) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    every = [
        (shard, row)
        for part in parts
        for shard, first, samples in zip(*part, strict=True)
        for row in range(first, first + samples)
    ]
    assert every == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


@settings(deadline=None)
@given(COUNTS, WINDOWS, SEEDS, st.integers(0, 5))
def test_a_window_needs_no_other_shards_than_it_says(counts, window, seed, epoch):
    counts = np.array(counts, np.int64)
    order = windows.Epoch(windows.whole(counts), window, seed, epoch)
    total = int(counts.sum())
    for number in range(-(-total // window)):
        shards, _ = order.take(number * window, (number + 1) * window)
        assert set(shards.tolist()) == set(order.shards_of(number).tolist())
    assert order.shards_of(number + 1).tolist() == []


@settings(deadline=None)
@given(COUNTS, WINDOWS, SEEDS, st.integers(0, 90), st.integers(0, 90))
def test_the_order_is_the_same_however_it_is_asked_for(counts, window, seed, start, size):
    counts = np.array(counts, np.int64)
    pieces = windows.whole(counts)
    total = int(counts.sum())
    start = min(start, total)
    at_once = np.stack(windows.Epoch(pieces, window, seed, 0).take(0, total))
    some = np.stack(windows.Epoch(pieces, window, seed, 0).take(start, start + size))
    assert some.tolist() == at_once[:, start : start + size].tolist()


def test_the_order_of_shards_is_the_same_for_ever():
    """Checkpoints outlive upgrades: their cursors point into these orders."""

    def order(window, seed, epoch):
        shards, rows = windows.Epoch(windows.whole(np.array([3, 0, 4, 2])), window, seed, epoch).take(0, 9)
        return " ".join(f"{shard}.{row}" for shard, row in zip(shards.tolist(), rows.tolist(), strict=True))

    assert order(4, 0, 0) == "0.1 0.2 2.0 0.0 3.0 2.2 2.3 2.1 3.1"
    assert order(4, 0, 1) == "0.0 0.1 3.0 0.2 2.2 2.1 2.0 3.1 2.3"
    assert order(4, 1, 0) == "2.0 3.1 3.0 2.1 2.3 0.0 0.1 2.2 0.2"
    assert order(100, 0, 0) == "3.1 2.3 2.2 2.1 0.1 0.2 2.0 0.0 3.0"


def test_windows_and_shards_are_shuffled_with_numbers_of_their_own():
    """Windows of one size would otherwise all be shuffled alike, and each epoch like the one before."""
    order = windows.Epoch(windows.whole(np.array([400])), 100, 0, 0)
    orders = [order.take(n * 100, (n + 1) * 100)[1] - n * 100 for n in range(4)]
    again = windows.Epoch(windows.whole(np.array([400])), 100, 0, 1)
    orders.append(again.take(0, 100)[1])
    for first in range(5):
        for second in range(first):
            assert (orders[first] == orders[second]).sum() < 20


def test_a_data_set_of_a_billion_samples_takes_no_memory_to_speak_of():
    counts = np.full(1000, 10**6, np.int64)
    plan = make_plan(10**9, 64, 0, 1, 0, partition=False)
    order = windows.Epoch(windows.whole(counts), windows.WINDOW, 0, 0)
    shards, rows = order.take((plan.batches - 1) * 64, 10**9)
    assert len(shards) == len(rows) == 10**9 - (plan.batches - 1) * 64
    held = sum(value.nbytes for value in vars(order).values() if isinstance(value, np.ndarray))
    assert held + order._shuffled[1].nbytes < 3 << 20


@pytest.mark.parametrize("world", [1, 2])
def test_shards_without_samples_are_left_out(world):
    assert windows.whole(np.array([0, 2, 0])).shard.tolist() == [1]
    assert all(windows.part(np.array([0, 2, 0]), world, rank).shard.tolist() == [1] for rank in range(world))
