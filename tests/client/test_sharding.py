"""P5: along the committed history every sample is consumed exactly once an epoch."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.worker import sharding
from holdfast.worker.dataset import Dataset, count
from holdfast.worker.errors import CheckpointMismatch
from holdfast.worker.sharding import Cursor, make_plan

SEEDS = st.integers(0, 2**70)


def dataset(plan, epochs=1):
    return Dataset(plan, plan.samples, epochs)


def consume(plans, epochs, lives):
    """Train with one rank a plan, dying along the way.

    Each life is (batches until the death, batches since the last commit that it loses). Returns what each rank's
    committed history consumed, batch by batch.
    """
    histories = [[] for _ in plans]
    saved = None
    for batches, lost in [*lives, (10**9, 0)]:
        data = [dataset(plan, epochs) for plan in plans]
        if saved is not None:
            for rank, text in enumerate(saved):
                data[rank].restore(json.loads(text))
        fresh = [[] for _ in plans]
        cursors = [[json.dumps(each.save()) for each in data]]
        for _, step in zip(range(batches), zip(*data, strict=True), strict=False):
            for rank, batch in enumerate(step):
                fresh[rank].append(batch)
            cursors.append([json.dumps(each.save()) for each in data])
        kept = len(cursors) - 1 - min(lost, len(cursors) - 1)
        saved = cursors[kept]
        for rank in range(len(plans)):
            histories[rank] += fresh[rank][:kept]
    return histories


LIVES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), max_size=5)


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 4), st.integers(1, 4), SEEDS, st.integers(1, 3), LIVES)
def test_a_gang_takes_every_sample_once_an_epoch_whatever_dies(samples, world, share, seed, epochs, lives):
    plans = [make_plan(samples, world * share, seed, world, rank, partition=False) for rank in range(world)]
    histories = consume(plans, epochs, lives)
    per_epoch = plans[0].batches
    assert all(len(history) == per_epoch * epochs for history in histories)
    for epoch in range(epochs):
        taken = [
            batch for history in histories for batch in history[epoch * per_epoch : (epoch + 1) * per_epoch]
        ]
        assert sorted(np.concatenate(taken)) == list(range(samples))


@settings(deadline=None)
@given(
    st.integers(4, 70),
    st.integers(1, 4),
    st.integers(1, 9),
    SEEDS,
    st.integers(1, 3),
    st.lists(LIVES, min_size=4),
)
def test_independent_ranks_take_every_sample_once_an_epoch_whatever_dies(
    samples, world, batch, seed, epochs, lives
):
    plans = [make_plan(samples, batch, seed, world, rank, partition=True) for rank in range(world)]
    histories = [consume([plan], epochs, lives[rank])[0] for rank, plan in enumerate(plans)]
    for epoch in range(epochs):
        taken = [
            part
            for plan, history in zip(plans, histories, strict=True)
            for part in history[epoch * plan.batches : (epoch + 1) * plan.batches]
        ]
        assert sorted(np.concatenate(taken)) == list(range(samples))


@settings(deadline=None)
@given(st.integers(1, 90), SEEDS, st.integers(0, 3))
def test_the_global_batches_are_the_same_at_every_world_size(samples, seed, epoch):
    def batches(world):
        plans = [make_plan(samples, 12, seed, world, rank, partition=False) for rank in range(world)]
        order = sharding.order(samples, seed, epoch)
        result = []
        for index in range(plans[0].batches):
            parts = [sharding.take(plan, order, index) for plan in plans]
            whole = np.empty(sum(map(len, parts)), np.int64)
            for rank, part in enumerate(parts):
                whole[rank::world] = part
            result.append(whole.tolist())
        return result

    alone = batches(1)
    assert all(batches(world) == alone for world in (2, 3, 4, 6, 12))


@given(st.integers(1, 500), SEEDS, st.integers(0, 1000))
def test_an_order_is_a_permutation(samples, seed, epoch):
    assert sorted(sharding.order(samples, seed, epoch)) == list(range(samples))


def test_the_order_is_the_same_for_ever():
    """Checkpoints outlive upgrades: their cursors point into these orders."""
    assert sharding.order(10, 0, 0).tolist() == [2, 4, 6, 8, 5, 1, 7, 0, 9, 3]
    assert sharding.order(10, 0, 1).tolist() == [7, 4, 8, 1, 2, 6, 5, 0, 9, 3]
    assert sharding.order(10, 1, 0).tolist() == [8, 1, 6, 9, 0, 2, 7, 5, 3, 4]


def test_orders_look_random():
    """Each sample is first about as often as any other (chi-squared, 15 degrees of freedom, p = 1e-6)."""
    first = np.bincount(
        [sharding.order(16, seed, epoch)[0] for seed in range(40) for epoch in range(40)], minlength=16
    )
    assert ((first - 100) ** 2 / 100).sum() < 56


def test_the_cursor_goes_on_from_epoch_to_epoch():
    plan = make_plan(10, 4, 0, 1, 0, partition=False)
    cursors = [Cursor()]
    for _ in range(4):
        cursors.append(cursors[-1].after(plan))
    assert cursors == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_the_last_batch_holds_what_is_left_even_if_that_is_nothing_for_some_ranks():
    parts = [list(dataset(make_plan(9, 4, 0, 4, rank, partition=False))) for rank in range(4)]
    assert [[len(batch) for batch in part] for part in parts] == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    ("arguments", "partition", "sentence"),
    [
        ((0, 4, 0, 1, 0), False, "empty"),
        ((9, 0, 0, 1, 0), False, "batch_size must be at least 1, not 0"),
        ((9, 6, 0, 4, 0), False, "batch_size 6 .* must divide by the 4"),
        ((3, 1, 0, 4, 0), True, "3 samples cannot be split over 4 workers"),
    ],
)
def test_numbers_that_cannot_work_are_refused(arguments, partition, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_plan(*arguments, partition=partition)


def test_a_cursor_of_another_data_set_is_refused():
    saved = dataset(make_plan(100, 4, 0, 2, 0, partition=False)).save()
    with pytest.raises(CheckpointMismatch, match="seed=0, this run has seed=7"):
        dataset(make_plan(100, 4, 7, 2, 0, partition=False)).restore(saved)


def test_a_gang_may_resume_at_another_world_size_and_partitions_may_not():
    saved = dataset(make_plan(100, 12, 0, 2, 0, partition=False)).save()
    dataset(make_plan(100, 12, 0, 3, 1, partition=False)).restore(saved)
    saved = dataset(make_plan(100, 12, 0, 2, 0, partition=True)).save()
    with pytest.raises(CheckpointMismatch, match="world_size=2, this run has world_size=3"):
        dataset(make_plan(100, 12, 0, 3, 1, partition=True)).restore(saved)


def test_batches_have_the_form_of_their_source():
    plan = make_plan(6, 2, 0, 1, 0, partition=False)
    x, y = np.arange(6) * 10, np.arange(6)
    order = sharding.order(6, 0, 0)
    (first, *_) = Dataset(plan, (x, y), 1)
    assert isinstance(first, tuple)
    assert first[0].tolist() == (order[:2] * 10).tolist()
    (first, *_) = Dataset(plan, {"x": x}, 1)
    assert first["x"].tolist() == (order[:2] * 10).tolist()
    (first, *_) = Dataset(plan, x, 1)
    assert first.tolist() == (order[:2] * 10).tolist()


def test_a_data_set_counts_its_batches():
    plan = make_plan(10, 4, 0, 1, 0, partition=False)
    assert len(dataset(plan, epochs=3)) == 9
    with pytest.raises(TypeError):
        len(dataset(plan, epochs=None))


def test_sources_that_are_none_are_refused():
    assert count((np.zeros(3), [1, 2, 3])) == 3
    with pytest.raises(ValueError, match=r"one length, not \[2, 3\]"):
        count((np.zeros(3), np.zeros(2)))
    with pytest.raises(TypeError, match="s3://bucket"):
        count("s3://bucket/train/")
