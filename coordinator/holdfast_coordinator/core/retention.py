"""Which checkpoints are kept: the last ones, every N-th step, the best by a metric. What is held is never dropped."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from holdfast_coordinator.core.jobspec import Mode, RetentionPolicy
from holdfast_coordinator.core.model import Kept, Shard


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of the commits that were looked at."""

    stays: tuple[Kept, ...] = ()
    """To be looked at again. What is in neither is kept for good, and needs no more looks."""
    drops: tuple[int, ...] = ()
    reason: str = ""


def plan(
    policy: RetentionPolicy, kept: Sequence[Kept], *, resumed: Collection[int], pinned: Collection[int]
) -> Plan:
    """Decide about commits, oldest first; the last is the newest and always stays.

    `resumed` are steps that live workers resumed from, `pinned` those that users want kept. The plan is bounded:
    of any number of commits the last, the best and the resumed are what is looked at again.
    """
    last = {each.step for each in kept[-max(1, policy.keep_last) :]}
    best = {each.step for each in _best(policy, kept)}
    stays: list[Kept] = []
    drops: list[int] = []
    for each in kept:
        if each.step in last or each.step in best or each.step in resumed:
            stays.append(each)
        elif each.step not in pinned and not is_nth(policy, each.step):
            drops.append(each.step)
    return Plan(tuple(stays), tuple(drops), _reason(policy))


def is_nth(policy: RetentionPolicy, step: int) -> bool:
    """Tell whether a step is kept for being every N-th."""
    return policy.keep_every > 0 and step % policy.keep_every == 0


def metric_of(policy: RetentionPolicy, lowest_rank: Shard) -> float | None:
    """The metric by which a commit is good or not; None when it has none, or one that is no number."""
    value = lowest_rank.metrics.get(policy.metric)
    return value if value is not None and math.isfinite(value) else None


def _best(policy: RetentionPolicy, kept: Sequence[Kept]) -> list[Kept]:
    """The best, of equally good ones the newer."""
    sign = 1.0 if policy.mode is Mode.MIN else -1.0
    rated = [(sign * each.metric, -each.step, each) for each in kept if each.metric is not None]
    return [each for *_, each in sorted(rated, key=lambda item: item[:2])[: policy.best]]


def _reason(policy: RetentionPolicy) -> str:
    said = [f"the last {max(1, policy.keep_last)}"]
    if policy.keep_every:
        said.append(f"every {policy.keep_every} steps")
    if policy.best:
        said.append(f"the best {policy.best} by {policy.metric} ({policy.mode})")
    return f"kept are {', '.join(said)}"
