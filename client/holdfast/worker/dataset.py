"""A data set that knows how far it is."""

import os
from collections.abc import Iterator
from typing import Any

from holdfast.worker import sharding
from holdfast.worker.identity import Identity
from holdfast.worker.sharding import Cursor, Indices, Plan


class Dataset:
    """The batches of one rank, from its cursor on to the end of the last epoch. Made by `Run.dataset`.

    The cursor moves when a batch is handed out: a checkpoint taken while the loop body works on a batch counts this
    batch as consumed, and so belongs after the step.
    """

    def __init__(self, plan: Plan, source: Any, epochs: int | None) -> None:
        """`epochs` is how many there are in all, None for no end."""
        self.plan = plan
        self.cursor = Cursor()
        self._source = source
        self._epochs = epochs

    def __len__(self) -> int:
        """How many batches there are in all, consumed ones too."""
        if self._epochs is None:
            raise TypeError("a data set without a number of epochs has no length")
        return self.plan.batches * self._epochs

    def __iter__(self) -> Iterator[Any]:
        epoch, order = -1, None
        while not self.done:
            at = self.cursor
            if order is None or at.epoch != epoch:
                epoch, order = at.epoch, sharding.order(self.plan.dealt, self.plan.seed, at.epoch)
            self.cursor = at.after(self.plan)
            yield _pick(self._source, sharding.take(self.plan, order, at.batch))

    @property
    def done(self) -> bool | None:
        """Nothing is left; None for a data set without end."""
        return None if self._epochs is None else self.cursor.epoch >= self._epochs

    def save(self) -> dict[str, Any]:
        """The cursor, for the checkpoint."""
        return {**sharding.describe(self.plan, self.cursor), "done": self.done}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what `save` returned. Raises CheckpointMismatch when it is of another data set."""
        self.cursor = sharding.resume(self.plan, {key: saved[key] for key in saved if key != "done"})


def make_dataset(
    source: Any,
    identity: Identity,
    batch_size: int,
    *,
    seed: int,
    epochs: int | None,
    partition: bool | None,
    window: int | None,
) -> Dataset:
    """See `Run.dataset`."""
    whose = identity.independent if partition is None else partition
    if _names_files(source):
        from holdfast.data.make import make_shard_dataset

        return make_shard_dataset(
            source, identity, os.environ, batch_size, seed=seed, epochs=epochs, partition=whose, window=window
        )
    if window is not None:
        raise ValueError("arrays are shuffled as a whole; window is for data sets that are files")
    plan = sharding.make_plan(
        count(source), batch_size, seed, identity.world_size, identity.rank, partition=whose
    )
    return Dataset(plan, source, epochs)


def count(source: Any) -> int:
    """How many samples a source has. Raises TypeError or ValueError when it is none, or its arrays disagree."""
    if isinstance(source, bool | str):
        raise TypeError(
            f"a data set is a number of samples, an array, or a tuple or dict of arrays, not {source!r}"
        )
    if isinstance(source, int):
        return source
    if isinstance(source, tuple | list | dict):
        columns = source.values() if isinstance(source, dict) else source
        lengths = {len(column) for column in columns}
        if len(lengths) != 1:
            raise ValueError(f"the arrays of a data set must be of one length, not {sorted(lengths)}")
        return lengths.pop()
    return len(source)


def _names_files(source: Any) -> bool:
    """It is a path, a URI, the name of a data set of the job, or a list of paths."""
    if isinstance(source, list | tuple):
        return bool(source) and all(isinstance(each, str | os.PathLike) for each in source)
    return isinstance(source, str | os.PathLike)


def _pick(source: Any, indices: Indices) -> Any:
    if isinstance(source, int):
        return indices
    if isinstance(source, dict):
        return {name: column[indices] for name, column in source.items()}
    if isinstance(source, tuple | list):
        return tuple(column[indices] for column in source)
    return source[indices]
