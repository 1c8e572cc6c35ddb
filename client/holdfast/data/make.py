"""Making a data set of shards: finding what was counted, or counting it now, and keeping that.

The list of shards is fixed from the job's creation on when the job declared the data set (HOLDFAST_DATASETS names the
file that holds it), and from the first attempt on when it did not: then the first rank to get there counts, and the
list lies next to the job's checkpoints, in datasets/. Outside holdfast it is kept when the first checkpoint is
taken: until then nothing depends on it.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import xxhash

from holdfast.data.dataset import ShardDataset
from holdfast.data.errors import DataError
from holdfast.data.index import Tell, count_shards
from holdfast.data.reader import ShardReader
from holdfast.data.shards import DataIndex, Declared, decode, decode_declared, encode
from holdfast.data.source import Source, locate, open_place
from holdfast.storage.api import Unreachable
from holdfast.worker import windows
from holdfast.worker.identity import Identity
from holdfast.worker.report import say
from holdfast.worker.sharding import make_plan

_PATIENCE = 10.0
"""How many seconds counting may take before, and between two times, a sentence about it is written."""


def make_shard_dataset(
    source: Any,
    identity: Identity,
    env: Mapping[str, str],
    batch_size: int,
    *,
    seed: int,
    epochs: int | None,
    partition: bool,
    window: int | None,
) -> ShardDataset:
    """See `Run.dataset`. Raises DataError, and what `make_plan` does."""
    where, name, index, keep = _find(source, identity, env)
    window = windows.WINDOW if window is None else window
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    plan = make_plan(index.samples, batch_size, seed, identity.world_size, identity.rank, partition=partition)
    return ShardDataset(plan, ShardReader(index, where, env), epochs, name, window, keep)


def _find(
    source: Any, identity: Identity, env: Mapping[str, str]
) -> tuple[Source, str, DataIndex, Callable[[], None]]:
    """Where the data set is, what it is called, what is in it, and what to do before a cursor is saved."""
    declared = _declared(env)
    for each in declared:
        if source == each.name:
            return locate(each.counted.uri, env), each.name, each.counted, _nothing
    try:
        where = locate(source, env)
        for each in declared:
            if each.counted.uri in (where.uri, where.mirror):
                return where, each.name, each.counted, _nothing
        kept = _Kept(where, identity, env)
        return where, where.uri, kept.index(), kept.keep
    except OSError as error:
        raise DataError(f"the data set {source} cannot be counted: {error}") from error


def _declared(env: Mapping[str, str]) -> list[Declared]:
    path = env.get("HOLDFAST_DATASETS")
    if not path:
        return []
    try:
        with open(path, "rb") as file:  # noqa: PTH123  pathlib is one more import to pay for
            return decode_declared(file.read())
    except (OSError, ValueError) as error:
        raise DataError(
            f"the data sets of the job, in {path} (HOLDFAST_DATASETS), cannot be read: {error}"
        ) from error


def _nothing() -> None:
    """What the job's spec holds need not be kept."""


class _Kept:
    """The list of a data set that no job has declared, where the job's checkpoints are."""

    def __init__(self, where: Source, identity: Identity, env: Mapping[str, str]) -> None:
        self._where, self._identity, self._env = where, identity, env
        key = xxhash.xxh3_64_hexdigest("|".join([where.uri, *(where.names or ())]).encode())
        self._name = f"{key}.json"
        self._index: DataIndex | None = None
        self._is_kept = False

    def index(self) -> DataIndex:
        """What was counted before, or is now."""
        if self._identity.supervised:
            self._update()
        elif self._identity.alone and self._has_checkpoints():
            self._read()
        return self._counted()

    def keep(self) -> None:
        """Make it last. When it cannot be kept, the cursor's fingerprint still tells that the data set has changed."""
        if not self._is_kept and self._identity.alone:
            self._is_kept = True
            self._update(renew=True)

    def _counted(self) -> DataIndex:
        if self._index is None:
            began = last = time.monotonic()

            def tell(done: int, of: int) -> None:
                nonlocal last
                now = time.monotonic()
                if now - last >= _PATIENCE and done < of:
                    last = now
                    say(f"counting {self._where.uri}: {done} of {of} shards after {now - began:.0f} s")

            try:
                self._index = count_shards(self._where, self._env, tell)
            except Unreachable as error:
                self._index = self._counted_in_mirror(error, tell)
        return self._index

    def _counted_in_mirror(self, away: Unreachable, tell: Tell) -> DataIndex:
        """What the mirror holds; the checksums that this gives hold for the place itself when it is back."""
        where = self._where
        try:
            if where.mirror:
                found = count_shards(where._replace(base=where.mirror), self._env, tell)
                say(f"{away}; {where.uri} is counted in {where.mirror}")
                return found
        except (DataError, OSError) as error:
            say(f"the mirror of {where.uri} does not help: {error}")
        raise away

    def _update(self, *, renew: bool = False) -> None:
        def change(before: bytes | None) -> bytes | None:
            if before is not None and not renew:
                try:
                    self._index = decode(before)
                except ValueError as error:
                    say(f"{place.uri}/{self._name} is no list of shards, and is written anew: {error}")
                else:
                    return None
            return encode(self._counted())

        place = open_place(self._top(), self._env, f"{self._identity.job_id}/datasets")
        try:
            place.update(self._name, change)
        except OSError as error:
            if self._index is None:
                self._counted()
            say(f"the list of shards of {self._where.uri} cannot be kept in {place.uri}: {error}")
        finally:
            place.close()

    def _read(self) -> None:
        place = open_place(self._top(), self._env, f"{self._identity.job_id}/datasets")
        try:
            self._index = decode(place.read(self._name))
            self._is_kept = True
        except FileNotFoundError:
            pass  # its first checkpoints were of other data sets
        except (OSError, ValueError) as error:
            say(f"the list of shards in {place.uri}/{self._name} cannot be used: {error}")
        finally:
            place.close()

    def _has_checkpoints(self) -> bool:
        place = open_place(self._top(), self._env, self._identity.job_id)
        try:
            return any(name.startswith("step-") for name in place.names())
        except OSError:
            return False
        finally:
            place.close()

    def _top(self) -> str:
        return locate(self._identity.checkpoint_uri, self._env).uri
