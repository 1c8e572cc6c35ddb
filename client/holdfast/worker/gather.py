"""Waiting until every rank has committed what is to be combined."""

import json
import time
from typing import Any

from holdfast.worker.checkpoint import Checkpoints
from holdfast.worker.manifest import Commit
from holdfast.worker.report import say
from holdfast.worker.saver import PATIENCE

_FIRST_LOOK = 0.01
_LAST_LOOK = 0.25


def gather(places: list[Checkpoints], step: int | None, own_step: int, timeout: float | None) -> list[Any]:
    """The committed state of every rank, by rank. `places` says where each keeps its checkpoints.

    Looks for the manifests, which is all that ranks that do not talk to each other have in common. Raises
    TimeoutError, naming the ranks that are missing, after `timeout` seconds.
    """
    commits: dict[int, Commit] = {}
    start = time.monotonic()
    pause, told = _FIRST_LOOK, False
    while True:
        for rank, place in enumerate(places):
            if rank not in commits and (commit := _find(place, rank, step, own_step)):
                commits[rank] = commit
        missing = [rank for rank in range(len(places)) if rank not in commits]
        if not missing:
            return [place.load(commits[rank], rank) for rank, place in enumerate(places)]
        waited = time.monotonic() - start
        what = f"the {'final checkpoint' if step is None else f'checkpoint of step {step}'} of rank {missing}"
        if timeout is not None and waited >= timeout:
            raise TimeoutError(f"{what} was not committed within {timeout:g} s")
        if waited >= PATIENCE and not told:
            say(f"waiting for {what}")
            told = True
        time.sleep(pause)
        pause = min(2 * pause, _LAST_LOOK)


def _find(place: Checkpoints, rank: int, step: int | None, own_step: int) -> Commit | None:
    if step is not None:
        return place.published(step)
    commit = place.newest()
    return commit if commit and _is_final(commit, rank, own_step) else None


def _is_final(commit: Commit, rank: int, own_step: int) -> bool:
    """The rank had gone through its data sets; one that has none, or one without end, had come as far as this one."""
    shard = commit.shard_of(rank)
    cursors = json.loads(shard.cursor) if shard else []
    done = [cursor["done"] for cursor in cursors if cursor["done"] is not None]
    return all(done) if done else commit.step >= own_step
