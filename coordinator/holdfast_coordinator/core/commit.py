"""When a checkpoint becomes the one to resume from."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from holdfast_coordinator.core.model import Commit, Gang, Prepared, Shard


@dataclass(frozen=True, slots=True)
class Refuse:
    """The shard will never be part of a commit."""

    reason: str


@dataclass(frozen=True, slots=True)
class AckAgain:
    """It is committed already; its ack was lost."""

    commit: Commit


@dataclass(frozen=True, slots=True)
class Wait:
    """Kept until the rest of the gang has prepared the step."""

    reason: str


@dataclass(frozen=True, slots=True)
class Complete:
    """With this shard the step is whole."""

    shards: tuple[Shard, ...]


MOST_PREPARED = 4
"""Steps that a rank may hold prepared. The first of them stay, for a rank that is behind comes to these."""


def decide(
    gang: Gang, ranks: Sequence[int], held: Mapping[int, Prepared], new: Prepared
) -> Refuse | AckAgain | Wait | Complete:
    """Decide about a newly prepared shard, given those of its step that the gang's other ranks hold prepared.

    Attempts only grow, and so do steps but for a quarantine, which comes with a new attempt: what is at or below the
    newest commit, or of an attempt that is not the gang's own, can never replace anything (P1, P2).
    """
    if new.attempt != gang.attempt:
        return Refuse(f"attempt {new.attempt} is superseded by attempt {gang.attempt}")
    newest = gang.commit
    if newest is not None and new.step <= newest.step:
        said_before = new.step == newest.step and new.attempt == newest.attempt
        if said_before and any(new.shard.same_file(shard) for shard in newest.shards):
            return AckAgain(newest)
        return Refuse(f"step {new.step} is not after the committed step {newest.step}")
    there = len(held) + (new.rank not in held)
    if there < len(ranks):  # so it is for most shards: not worth a look at each of the others
        return _wait(new.step, len(ranks) - there, len(ranks))
    prepared = {**held, new.rank: new}
    shards = [
        of_rank.shard
        for rank in ranks
        if (of_rank := prepared.get(rank)) is not None
        and of_rank.step == new.step
        and of_rank.attempt == gang.attempt
    ]
    if len(shards) < len(ranks):
        return _wait(new.step, len(ranks) - len(shards), len(ranks))
    return Complete(tuple(shards))


def superseded(held: Collection[int], new: int) -> int | None:
    """The step that makes way for a new one of the same rank: the newest of those it holds, when these are many."""
    return max(held) if new not in held and len(held) >= MOST_PREPARED else None


def _wait(step: int, missing: int, ranks: int) -> Wait:
    return Wait(f"step {step} waits for {missing} of {ranks} ranks")
