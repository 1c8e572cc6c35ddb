"""This rank's part of a sharded state, as a state that `run.checkpoint` takes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.stateful import Stateful

# It makes an error on one rank one on all of them, where the others would wait for ever.
from torch.distributed.checkpoint.utils import _DistWrapper
from torch.distributed.tensor import DTensor

from holdfast.torch.part import Piece, make_part
from holdfast.worker.errors import CheckpointError
from holdfast.worker.run import Run


class _Planned(NamedTuple):
    """What all ranks last planned."""

    outline: dict[str, Any]
    """Of the state, as this rank has it."""
    plan: SavePlan
    """What of it this rank is to save."""


_planned: WeakKeyDictionary[Run, _Planned] = WeakKeyDictionary()


def checkpoint(
    run: Run,
    state_dict: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    every: int | None = None,
    *,
    wait: bool = False,
    planner: DefaultSavePlanner | None = None,
) -> None:
    """Take a checkpoint of a sharded state, as `run.checkpoint` does, all ranks at the same step.

    A state holds DTensors, tensors, and values that `run.checkpoint` takes, in nested dicts and lists, or a function
    returns such; objects with `state_dict` and `load_state_dict` are asked for theirs. What is no DTensor must be the
    same on all ranks that have it. The ranks plan together, over the default process group where there is one, the
    first time and when any rank's keys, shapes or placements have changed; that nothing has costs one all-reduce of a
    number. Raises what `run.checkpoint` does, and CheckpointError where other ranks can't plan.
    """
    run.checkpoint(lambda: _part(run, state_dict, planner or DefaultSavePlanner()), every, wait=wait)


def _part(
    run: Run,
    state_dict: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    planner: DefaultSavePlanner,
) -> dict[str, Any]:
    """What this rank has to save."""
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if together and run.independent:
        raise CheckpointError(
            "ranks with a state in common must commit it together; start this job with restart scope gang"
        )
    state = state_dict() if callable(state_dict) else state_dict
    plain = {key: item.state_dict() if isinstance(item, Stateful) else item for key, item in state.items()}
    plan = _plan(run, planner, plain, together=together)
    pieces: list[tuple[Piece, torch.Tensor]] = []
    values = {}
    for item in plan.items:
        if item.type == WriteItemType.BYTE_IO:
            values[item.index.fqn] = planner.lookup_object(item.index)
        else:
            tensor = planner.resolve_data(item)
            pieces.append((_piece(item, tensor), tensor))
    return make_part(pieces, values)


def _plan(run: Run, planner: DefaultSavePlanner, state: dict[str, Any], *, together: bool) -> SavePlan:
    """What this rank is to save, of what it has."""
    ranks = _DistWrapper(None, together, 0)
    planner.set_up_planner(state, is_coordinator=ranks.is_coordinator)
    outline = {name: _outline(value) for name, value in planner.state_dict.items()}
    planned = _planned.get(run)
    changed = planned is None or planned.outline != outline
    if together:
        number = torch.tensor([int(changed)], device=dist.distributed_c10d._get_object_coll_device())  # noqa: SLF001
        dist.all_reduce(number, dist.ReduceOp.MAX)
        changed = bool(number.item())
    if changed or planned is None:
        planned = _planned[run] = _Planned(outline, _planned_together(ranks, planner))
    return planned.plan


def _outline(value: Any) -> Any:
    """What of a value a plan depends on: to make one takes a tenth of a millisecond a tensor, to compare these none."""
    if isinstance(value, DTensor):
        return value.size(), value.dtype, value.placements, value.device_mesh
    if isinstance(value, ShardedTensor):
        return value.metadata()
    return (value.size(), value.dtype) if isinstance(value, torch.Tensor) else None


def _planned_together(ranks: _DistWrapper, planner: DefaultSavePlanner) -> SavePlan:
    try:
        central = ranks.reduce_scatter(
            "plan", planner.create_local_plan, lambda plans: planner.create_global_plan(plans)[0]
        )
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise CheckpointError(f"the state cannot be saved: rank {rank}: {cause}") from cause
    return planner.finish_plan(central)


def _piece(item: WriteItem, tensor: torch.Tensor) -> Piece:
    known = item.tensor_data
    return Piece(
        fqn=item.index.fqn,
        dtype=str(tensor.dtype).removeprefix("torch."),
        size=tuple(known.size),
        offsets=tuple(known.chunk.offsets),
        lengths=tuple(known.chunk.sizes),
    )
