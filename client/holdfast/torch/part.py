"""One rank's part of a sharded state, as it stands in the rank's file: an ordinary state with an index.

=========== ==================================================================
``sharded`` 1, the format of what follows
``index``   of each tensor its key in ``tensors``, and the fields of `Piece`
``tensors`` pieces of tensors: all of one, some of its rows, or another box
``values``  what is no tensor, by name
=========== ==================================================================
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from holdfast.worker import state
from holdfast.worker.errors import CheckpointMismatch
from holdfast.worker.shard_file import ShardFile

_FORMAT = 1


class Piece(NamedTuple):
    """A box of a tensor that has been cut among ranks."""

    fqn: str
    dtype: str
    """As torch calls it."""
    size: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    """Where in the whole tensor it begins."""
    lengths: tuple[int, ...]


class Part(NamedTuple):
    """What a rank's file says that it holds."""

    pieces: dict[Piece, str]
    """And the name of the file's tensor that each is."""
    values: dict[str, Any]


def make_part(pieces: Iterable[tuple[Piece, Any]], values: dict[str, Any]) -> dict[str, Any]:
    """The state that a rank saves, of its pieces and their tensors."""
    index = []
    tensors: dict[str, Any] = {}
    for piece, tensor in pieces:
        whole = piece.size == piece.lengths
        key = piece.fqn if whole else f"{piece.fqn}@{','.join(map(str, piece.offsets))}"
        while key in tensors:  # a name may look like this
            key += "'"
        index.append((key, *piece))
        tensors[key] = tensor
    return {"sharded": _FORMAT, "index": index, "tensors": tensors, "values": values}


def read_part(file: ShardFile) -> Part:
    """What a rank saved, without its tensors. Raises CheckpointMismatch when it is no part of a sharded state."""
    tree = file.content["tree"]
    try:
        written_as = state.member(tree, "sharded")
    except KeyError:
        raise CheckpointMismatch(
            "the checkpoint was not saved with holdfast.torch.checkpoint; restore it with run.restore"
        ) from None
    if written_as != _FORMAT:
        raise CheckpointMismatch(
            f"the checkpoint has its parts in format {written_as}; this version of holdfast reads {_FORMAT}"
        )
    tensors = state.member(tree, "tensors")
    pieces = {}
    for key, *fields in state.unpack(state.member(tree, "index"), {}):
        ((name, _),) = state.leaves(state.member(tensors, key))
        pieces[Piece(*fields)] = name
    inside = state.member(tree, "values")
    arrays = file.load(name for name, _ in state.leaves(inside))
    return Part(pieces, state.unpack(inside, arrays))
