"""A sharded state, out of the files of however many ranks saved it."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import mul
from typing import Any, NamedTuple

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.checkpoint.stateful import Stateful

from holdfast.torch.part import Part, Piece, read_part
from holdfast.worker.checkpoint import Checkpoints
from holdfast.worker.errors import CheckpointError, CheckpointMismatch
from holdfast.worker.manifest import Commit
from holdfast.worker.reading import matching, opened
from holdfast.worker.run import Run
from holdfast.worker.shard_file import ShardFile, run_all

_HEADER_LANES = 8
"""How many headers are read at once."""
_BATCH_BYTES = 256 << 20
"""So much is read before it is brought to where it goes, unless it is read to its place at once."""


def restore(run: Run, state_dict: dict[str, Any], *, planner: DefaultLoadPlanner | None = None) -> bool:
    """Load the checkpoint to resume from into a state, in place; False, and no change, when there is none.

    The state is one as `checkpoint` takes it, of this world's sizes and placements: its tensors are filled, of a
    DTensor this rank's part, its other values replaced, its objects given theirs. The number of ranks may be another
    than when it was saved, and so may the placements. Only what is needed is read, and verified. Sets the step
    counter and the cursors of all data sets, and does with a checkpoint that fails verification what `run.restore`
    does. Raises what that does; after an error the state may be half loaded. The state and the checkpoint must have
    the same names, unless the planner has `allow_partial_load`: an optimizer that has not made a step yet has no state
    to fill, and `get_state_dict` gives it one.
    """
    plain = {
        key: item.state_dict() if isinstance(item, Stateful) else item for key, item in state_dict.items()
    }
    begun = False

    def read(where: Checkpoints, commit: Commit, _: int) -> bool:
        nonlocal begun
        saved = Saved(where, commit)
        begun = True
        saved.fill(plain, planner or DefaultLoadPlanner())
        return True

    if run.restore_with(read) is None:
        if begun:
            raise CheckpointError(
                "the only checkpoint failed verification when a part of it was loaded already; it is set aside: "
                "start again, to begin anew"
            )
        return False
    for key, item in state_dict.items():
        if isinstance(item, Stateful):
            item.load_state_dict(plain[key])
        else:
            state_dict[key] = plain[key]
    return True


def load(uri: str, names: str | Iterable[str] | None = None, *, step: int | None = None) -> dict[str, Any]:
    """Whole tensors out of a sharded checkpoint, wherever it is, by name; without a coordinator, on the CPU.

    `names` are glob patterns, such as "model.*"; None is all of them. See `holdfast.load` for the rest.
    """
    with opened(uri, step) as (where, commit):
        saved = Saved(where, commit)
        tensors = saved.metadata.state_dict_metadata
        known = [name for name in tensors if isinstance(tensors[name], TensorStorageMetadata)]
        wanted = {
            name: torch.empty(tensors[name].size, dtype=tensors[name].properties.dtype)
            for name in matching(known, names, uri)
        }
        saved.fill(wanted, DefaultLoadPlanner(flatten_state_dict=False, allow_partial_load=True))
    return wanted


class _Home(NamedTuple):
    """Where a piece is."""

    rank: int
    tensor: str
    """Its name in the rank's file."""
    piece: Piece


class Saved:
    """A sharded checkpoint: which piece of which tensor is in which rank's file."""

    def __init__(self, where: Checkpoints, commit: Commit) -> None:
        """Reads the headers of all files. Raises CheckpointCorrupt and CheckpointMismatch."""
        self._where = where
        self._commit = commit
        parts: dict[int, Part] = {}

        def look(rank: int) -> None:
            with where.open_shard(commit, rank) as file:
                parts[rank] = read_part(file)

        run_all([partial(look, shard.rank) for shard in commit.shards], _HEADER_LANES)
        self._values: dict[str, Any] = {}
        self._homes: dict[tuple[str, tuple[int, ...]], _Home] = {}
        for rank in sorted(parts):
            self._values |= parts[rank].values
            for piece, tensor in parts[rank].pieces.items():
                if 0 not in piece.lengths or 0 in piece.size:
                    self._homes.setdefault((piece.fqn, piece.offsets), _Home(rank, tensor, piece))
        self.metadata = Metadata(
            {**_described(home.piece for home in self._homes.values()), **self._described_values()}
        )

    def fill(self, state: dict[str, Any], planner: DefaultLoadPlanner) -> None:
        """Fill the tensors of a state, and replace its values. Raises CheckpointCorrupt and CheckpointMismatch."""
        planner.set_up_planner(state, self.metadata, is_coordinator=True)
        self._check(planner)
        plan = planner.finish_plan(planner.create_global_plan([planner.create_local_plan()])[0])
        reads: dict[int, list[_Read]] = {}
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                _put(planner, item.dest_index.fqn, self._values[item.storage_index.fqn])
            else:
                home = self._homes[item.storage_index.fqn, tuple(item.storage_index.offset)]
                reads.setdefault(home.rank, []).append(_Read(home, item))
        for rank in sorted(reads):
            with self._where.open_shard(self._commit, rank) as file:
                _read(file, reads[rank], planner)

    def _described_values(self) -> dict[str, BytesStorageMetadata]:
        return {name: BytesStorageMetadata() for name in self._values}

    def _check(self, planner: DefaultLoadPlanner) -> None:
        """Compare a state with what was saved, before any of it changes. Raises CheckpointMismatch."""
        missing = sorted(self.metadata.state_dict_metadata.keys() - planner.state_dict.keys())
        if missing and not planner.allow_partial_load:
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise CheckpointMismatch(
                f"the checkpoint has {missing[0]!r}, which the state has not{others}; an optimizer's state is there to "
                "be filled when it was taken with get_state_dict; to leave some out, give a planner with "
                "allow_partial_load"
            )
        for name, value in planner.state_dict.items():
            known = self.metadata.state_dict_metadata.get(name)
            if known is None:
                if not planner.allow_partial_load:
                    raise CheckpointMismatch(f"the checkpoint has no {name!r}, which the state has")
                continue
            saved = (
                f"{_name(known.properties.dtype)} of shape {tuple(known.size)}"
                if isinstance(known, TensorStorageMetadata)
                else "no tensor"
            )
            wanted = (
                f"{_name(value.dtype)} of shape {tuple(value.size())}"
                if isinstance(value, torch.Tensor | ShardedTensor)
                else "no tensor"
            )
            if saved != wanted:
                raise CheckpointMismatch(f"{name!r} is {saved} in the checkpoint, {wanted} in the state")


class _Read(NamedTuple):
    """A box of a piece that goes into a box of a tensor."""

    home: _Home
    item: ReadItem


def _described(pieces: Iterable[Piece]) -> dict[str, TensorStorageMetadata]:
    """The tensors that pieces make up. Raises CheckpointMismatch when one is not whole."""
    tensors: dict[str, TensorStorageMetadata] = {}
    held: dict[str, int] = {}
    for piece in pieces:
        if piece.fqn not in tensors:
            properties = TensorProperties(dtype=getattr(torch, piece.dtype))
            tensors[piece.fqn] = TensorStorageMetadata(properties, torch.Size(piece.size), [])
        tensors[piece.fqn].chunks.append(
            ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.lengths))
        )
        held[piece.fqn] = held.get(piece.fqn, 0) + math.prod(piece.lengths)
    for name, tensor in tensors.items():
        if held[name] != tensor.size.numel():
            raise CheckpointMismatch(
                f"the checkpoint holds {held[name]} of the {tensor.size.numel()} elements of {name!r}; "
                "not all ranks that had a part of it saved it"
            )
    return tensors


def _put(planner: DefaultLoadPlanner, name: str, value: Any) -> None:
    """Set a value of the state that a planner has flattened, where it was before."""
    if not planner.flatten_state_dict:
        planner.state_dict[name] = value
        return
    whole: Any = planner.original_state_dict
    *above, last = planner.mappings[name]
    for key in above:
        whole = whole[_as_there(whole, key)]
    whole[_as_there(whole, last)] = value


def _as_there(container: Any, key: str | int) -> Any:
    """The key in a container that a planner calls so: keys that are numbers become strings."""
    if isinstance(container, Mapping) and key not in container:
        return next(there for there in container if str(there) == key)
    return key


def _read(file: ShardFile, reads: list[_Read], planner: DefaultLoadPlanner) -> None:
    """Read boxes out of one file, a batch at a time."""
    tasks: list[Callable[[], None]] = []
    moves: list[Callable[[], object]] = []
    held = 0
    for read in reads:
        target = planner.resolve_tensor(read.item).detach()
        strides = _strides(read.home.piece.lengths)
        first = sum(map(mul, read.item.storage_offsets, strides))
        last = first + sum(
            (length - 1) * stride for length, stride in zip(target.shape, strides, strict=True)
        )
        width = target.dtype.itemsize
        length = (last + 1 - first) * width
        if last + 1 - first == target.numel() and _is_plain(target):
            into = target
        else:
            into = torch.empty(last + 1 - first, dtype=target.dtype)
            moves.append(partial(target.copy_, into.as_strided(target.shape, strides)))
            held += length
        tasks += file.reads(read.home.tensor, first * width, into.reshape(-1).view(torch.uint8).numpy().data)
        if held > _BATCH_BYTES:
            _finish(tasks, moves, file.lanes)
            held = 0
    _finish(tasks, moves, file.lanes)


def _finish(tasks: list[Callable[[], None]], moves: list[Callable[[], object]], lanes: int) -> None:
    run_all(tasks, lanes)
    for move in moves:
        move()
    tasks.clear()
    moves.clear()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Its memory can be written to as it is."""
    lazy = tensor.is_conj() or tensor.is_neg()
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not lazy


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a contiguous tensor, in elements."""
    return tuple(math.prod(shape[dimension + 1 :]) for dimension in range(len(shape)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
