"""Whether and when to restart a gang."""

import zlib
from dataclasses import dataclass

from holdfast_coordinator.core.jobspec import RestartPolicy
from holdfast_coordinator.core.model import Exit, Gang


@dataclass(frozen=True, slots=True)
class Retry:
    """Start the next attempt after `delay_ms`."""

    delay_ms: int
    streak: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the job."""

    reason: str


def after_exit(policy: RestartPolicy, gang: Gang, exited: Exit, cause: str, best_step: int) -> Retry | GiveUp:
    """Decide after a worker ended by itself.

    `best_step` is the furthest step at which this attempt ended or committed; beyond what any attempt before it
    reached, it is progress, and clears the streak that budget and backoff count.
    """
    if exited.never_ran:
        return GiveUp(f"{cause}; starting it again cannot help")
    streak = () if best_step > gang.best_step else _inside(policy.window_ms, gang.streak, exited.at_ms)
    if len(streak) >= policy.budget:
        if not policy.budget:
            return GiveUp(f"{cause}; its restart budget is 0")
        times = "1 restart" if policy.budget == 1 else f"{policy.budget} restarts"
        return GiveUp(f"{cause}; its budget of {times} without progress is spent")
    delay = backoff_ms(policy, len(streak), f"{gang.job_id}/{gang.index}/{gang.restarts}")
    nth = f"restart {len(streak) + 1} of {policy.budget} without progress"
    return Retry(delay, (*streak, exited.at_ms), nth if delay == 0 else f"{nth}, in {delay / 1000:.1f} s")


def after_loss(gang: Gang, best_step: int) -> Retry:
    """Decide after a worker was lost with its node: at once, and not charged, for the program did nothing wrong.

    `best_step` as in `after_exit`.
    """
    streak = () if best_step > gang.best_step else gang.streak
    return Retry(0, streak, "not charged to the restart budget")


def after_quarantine(gang: Gang) -> Retry:
    """Decide after the checkpoint to resume from proved corrupt: at once and not charged; nor is it progress."""
    return Retry(0, gang.streak, "not charged to the restart budget")


def backoff_ms(policy: RestartPolicy, failures: int, seed: str) -> int:
    """Wait `backoff * 2^failures`, give or take the jitter, at most the cap.

    The jitter is a pure function of `seed`, so that a trace can be replayed.
    """
    base = min(policy.backoff_cap_ms, policy.backoff_ms << min(failures, 32))
    spread = zlib.crc32(seed.encode()) / 0xFFFFFFFF * 2 - 1  # -1..1
    return min(policy.backoff_cap_ms, max(0, round(base * (1 + policy.jitter * spread))))


def _inside(window_ms: int, streak: tuple[int, ...], now: int) -> tuple[int, ...]:
    if not window_ms:
        return streak
    return tuple(at for at in streak if at > now - window_ms)
