"""The ledger: what a job has consumed, read off the cursors of a commit. PURE.

A cursor says how far the job is in the canonical order, and who takes what follows from the order alone. So this is an
account of the whole history, whatever died in it; only the shares of the ranks are those of the present world size.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from holdfast.worker.sharding import Plan


class Consumed(NamedTuple):
    """What one rank has taken of one data set in one epoch, or in each of several."""

    data: str
    """The data set's name or URI; of arrays, their place among the data sets of the program."""
    first_epoch: int
    last_epoch: int
    rank: int
    batches: int
    of_batches: int
    samples: int
    of_samples: int


def consumed(cursors: Mapping[int, str], world_size: int) -> list[Consumed]:
    """What each rank has taken, by data set and epoch. `cursors` are those of a commit's shards, by rank.

    Raises ValueError when one of them is none.
    """
    lines: list[Consumed] = []
    for rank, text in sorted(cursors.items()):
        try:
            for number, saved in enumerate(json.loads(text) if text else []):
                lines += _of_one(saved, number, rank, world_size)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the cursor of rank {rank} is none that this version of holdfast knows: {error}"
            ) from error
    return sorted(lines)


def _of_one(saved: Mapping[str, Any], number: int, rank: int, world_size: int) -> Iterator[Consumed]:
    world_size = saved.get("world_size", world_size)
    plan = Plan(saved["samples"], saved["batch_size"], saved["seed"], world_size, rank, saved["partition"])
    name = saved.get("name", f"#{number}")
    epoch, batch = saved["epoch"], saved["batch"]
    whole = _samples(plan, plan.batches)
    if epoch:
        yield Consumed(name, 0, epoch - 1, rank, plan.batches, plan.batches, whole, whole)
    if not saved.get("done"):
        yield Consumed(name, epoch, epoch, rank, batch, plan.batches, _samples(plan, batch), whole)


def _samples(plan: Plan, batches: int) -> int:
    """How many samples this rank's first batches of an epoch have."""
    taken = min(batches * plan.batch_size, plan.dealt)
    return taken if plan.partition else len(range(plan.rank, taken, plan.world_size))
