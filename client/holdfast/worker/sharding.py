"""Which samples a rank takes, and in which order.

Everything here is a function of its arguments. The canonical order of an epoch depends on (samples, seed, epoch)
alone; it is cut into batches of `batch_size`, and the ranks deal each batch out among themselves, one sample in turn.
So the batches are the same at every world size that divides the batch, and a cursor (epoch, batch) says exactly
what was consumed. The last batch of an epoch holds what is left and may be smaller, for some ranks even empty: no
sample is left out (P5).

Independent workers (`partition`) each have samples of their own instead, those with index rank, rank + world_size,
and so on. They take them in an order of the same kind, in batches of `batch_size` each, and no other rank is
involved.

The order of a data set of shards is that of `windows`; all the rest is as here.
"""

import json
from typing import Any, NamedTuple

import numpy as np

from holdfast.worker.errors import CheckpointMismatch

Indices = np.ndarray[Any, np.dtype[np.int64]]
_Words = np.ndarray[Any, np.dtype[np.uint64]]

_GAMMA = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


class Plan(NamedTuple):
    """How a data set is dealt out. Made by `make_plan`, which checks it."""

    samples: int
    batch_size: int
    seed: int
    world_size: int
    rank: int
    partition: bool

    @property
    def dealt(self) -> int:
        """How many samples an epoch of this rank's batches goes through."""
        return len(range(self.rank, self.samples, self.world_size)) if self.partition else self.samples

    @property
    def batches(self) -> int:
        """How many batches an epoch has."""
        return -(-self.dealt // self.batch_size)


class Cursor(NamedTuple):
    """The next batch to take: everything before it was consumed, nothing after it."""

    epoch: int = 0
    batch: int = 0

    def after(self, plan: Plan) -> "Cursor":
        """The cursor when this batch was consumed as well."""
        if self.batch + 1 < plan.batches:
            return Cursor(self.epoch, self.batch + 1)
        return Cursor(self.epoch + 1, 0)


def make_plan(
    samples: int, batch_size: int, seed: int, world_size: int, rank: int, *, partition: bool
) -> Plan:
    """Check the numbers. Raises ValueError with a sentence that says what to change."""
    if samples < 1:
        raise ValueError("the data set is empty")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if partition and samples < world_size:
        raise ValueError(f"{samples} samples cannot be split over {world_size} workers")
    if not partition and batch_size % world_size:
        raise ValueError(
            f"batch_size {batch_size} is the batch of all ranks together and must divide by the {world_size} of them"
        )
    return Plan(samples, batch_size, seed, world_size, rank, partition)


def order(samples: int, seed: int, epoch: int) -> Indices:
    """The canonical order of an epoch: a permutation of 0..samples-1.

    Sorts the samples by a number drawn for each. The numbers are SplitMix64's, written out here, because the order
    must be the same for ever (numpy does not promise that of its permutations) and `numpy.random` costs a restart
    13 ms. SplitMix64 is a bijection, so no two numbers are equal.
    """
    start = _mix(_mix(np.array([seed & _MASK], np.uint64)) + np.array([epoch & _MASK], np.uint64))
    counter = np.arange(1, samples + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return np.argsort(_mix(start + counter)).astype(np.int64, copy=False)


def stream(seed: int, number: int) -> int:
    """A seed of its own for each of the things that one seed shuffles."""
    start = _mix(np.array([seed & _MASK], np.uint64))
    return int(_mix(start + np.array([(number + 1) * _GAMMA & _MASK], np.uint64))[0])


def take(plan: Plan, epoch_order: Indices, batch: int) -> Indices:
    """The samples of a batch that are this rank's. `epoch_order` is `order(plan.dealt, plan.seed, epoch)`."""
    whole = epoch_order[batch * plan.batch_size : (batch + 1) * plan.batch_size]
    if plan.partition:
        return whole * plan.world_size + plan.rank
    return whole[plan.rank :: plan.world_size]


def describe(plan: Plan, cursor: Cursor) -> dict[str, Any]:
    """A cursor as it is saved: the place, and enough of the plan to tell that it is one in the same order."""
    same = {
        "samples": plan.samples,
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "partition": plan.partition,
    }
    if plan.partition:
        same["world_size"] = plan.world_size
    return {"epoch": cursor.epoch, "batch": cursor.batch, **same}


def resume(plan: Plan, saved: dict[str, Any]) -> Cursor:
    """The cursor that `describe` saved. Raises CheckpointMismatch when it is of another order."""
    cursor = Cursor(saved["epoch"], saved["batch"])
    now = describe(plan, cursor)
    for field in sorted(now.keys() | saved.keys()):
        if now.get(field) != saved.get(field):
            raise CheckpointMismatch(
                f"the checkpoint is of a data set with {field}={json.dumps(saved.get(field))}, this run has "
                f"{field}={json.dumps(now.get(field))}; to start anew, give it a checkpoint directory of its own"
            )
    return cursor


def _mix(value: _Words) -> _Words:
    """SplitMix64's output function (arithmetic on arrays wraps around, as it must)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
