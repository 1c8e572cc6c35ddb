"""Which workers hang, pure: `look(watch, seen, now) -> verdicts`.

A worker moves when it reports a step or goes to another section; it hangs when it has not moved for longer than the
limit of the section that it is in. Limits are set in the spec, or learned: a factor over the longest time without
movement that was seen in the section, never below a floor.

What is learned. A page says when its worker last moved, and the longest time in each section that it left. So the time
between what two looks found holds every interval between two reports that ended in between, and is longer than the
longest of them by at most the time between the looks: learned is never less than what was, and a bit more at most. It
is kept for a rank's next attempts, as long as this agent lives; the page itself outlives it.

All times are nanoseconds of the node's CLOCK_MONOTONIC, which neither jumps nor counts what a machine slept. A reader
may see a field half written; so nothing is called hung that two looks have not found in the same place. While the
agent itself stood still, so may have its machine: that time is nobody's hang.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from holdfast_agent.core import Key

LOOK_NS = 1_000_000_000
"""Between two looks."""
PAUSE_NS = 2 * LOOK_NS
"""Longer than this between two looks: the agent stood still."""
WARM_UP_STEPS = 3
"""The first steps of an attempt compile and fill caches: nothing is learned from them."""
MOST_RANKS = 1_000
"""Of which is remembered what was learned."""

SETUP, STEP, TOUCH = "setup", "step", "touch"
_NOT_LEARNED = (SETUP, TOUCH)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the spec says: limits by section, and how others are learned."""

    limits_ns: Mapping[str, int]
    factor: float
    floor_ns: int


class Seen(NamedTuple):
    """A worker's page at one look. Without a library there is none: `section` is empty then."""

    section: str = ""
    step: int | None = None
    steps_done: int = 0
    moved_ns: int = 0
    longest_ns: Mapping[str, int] = {}
    touched: int = 0
    """Changes whenever the file is touched; 0 while there is no file."""


@dataclass(frozen=True, slots=True)
class Hung:
    """A worker has not moved for longer than it may."""

    key: Key
    since_ns: int
    section: str
    step: int | None
    silent_ns: int
    limit_ns: int
    learned: bool


@dataclass(frozen=True, slots=True)
class Before:
    """A hang that an agent before this one noticed, and of which nobody has heard that it is over."""

    since_ns: int
    section: str
    step: int | None
    touched: int


@dataclass(frozen=True, slots=True)
class Moved:
    """A worker that hung moves again."""

    key: Key
    since_ns: int
    section: str
    step: int | None
    silent_ns: int


@dataclass(slots=True)
class _Watched:
    """What the last look at a worker found."""

    policy: Policy
    seen: Seen
    section: str
    moved_ns: int
    excused_ns: int = 0
    """Of its silence: the agent stood still, and perhaps the machine."""
    hung: Hung | None = None


@dataclass(slots=True)
class Watch:
    """All workers that are looked at, and what was learned."""

    looked_ns: int = 0
    """Before the first look: since when there is somebody to look."""
    workers: dict[Key, _Watched] = field(default_factory=dict)
    learned_ns: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    """By job and rank: the longest time without movement in each section."""


def look(
    watch: Watch,
    seen: Mapping[Key, tuple[Policy, Seen]],
    now: int,
    before: Mapping[Key, Before | None] = MappingProxyType({}),
) -> list[Hung | Moved]:
    """Take what one look has found of the workers that are to be watched, and say what is new.

    `before` is what is known from before of those that are looked at for the first time.
    """
    gap = now - watch.looked_ns if watch.looked_ns else 0
    paused = gap - LOOK_NS if gap > PAUSE_NS else 0
    watch.looked_ns = now
    for key in watch.workers.keys() - seen.keys():
        for section, longest in watch.workers.pop(key).seen.longest_ns.items():
            _learn(watch, key, section, longest)
    verdicts: list[Hung | Moved | None] = []
    for key, (policy, page) in seen.items():
        known = watch.workers.get(key)
        if known is None:
            known = _Watched(policy, page, _section(page), now)
            verdicts.append(_begin(watch, key, known, before.get(key)))
            known.excused_ns = min(paused, now - known.moved_ns)
        elif _same(known.seen, page):
            known.excused_ns += paused
            verdicts.append(_judge(watch, key, known, now))
        else:
            verdicts.append(_take(watch, key, known, page, now, learns=not paused))
            known.excused_ns = min(paused, now - known.moved_ns)  # it may have moved before the pause
    return [verdict for verdict in verdicts if verdict is not None]


def still(watch: Watch, hung: Hung, page: Seen) -> Before | None:
    """Say what is to be known of a hang by the next agent; None when it is over, also if no look has met that yet."""
    known = watch.workers.get(hung.key)
    if known is None or known.hung != hung or not _same(known.seen, page):
        return None
    return Before(hung.since_ns, hung.section, hung.step, known.seen.touched)


def _begin(watch: Watch, key: Key, new: _Watched, before: Before | None) -> Moved | None:
    """Look at a worker for the first time. One that hung before is noticed once more if it still does."""
    page, now = new.seen, new.moved_ns
    watch.workers[key] = new
    new.moved_ns = _moved_at(page, now)
    if before is None:
        return None
    if page.section:
        still = page.moved_ns == before.since_ns
    else:
        still = page.touched == before.touched
        new.moved_ns = before.since_ns if still else now
    if still:
        return None
    silent = max(0, new.moved_ns - before.since_ns)
    return Moved(key, before.since_ns, before.section, before.step, silent)


def _section(page: Seen) -> str:
    """A program without the library is in "setup" until it touches its file for the first time."""
    return page.section or (TOUCH if page.touched else SETUP)


def _moved_at(page: Seen, now: int) -> int:
    """When it moved: a program without the library when that was seen, for what a file has is a clock that jumps."""
    return min(page.moved_ns, now) if page.section else now


def _same(before: Seen, after: Seen) -> bool:
    """Whether it has not moved. What has a page does not move by a touch: the kernel does that, writing the page."""
    return before == (after._replace(touched=before.touched) if after.section else after)


def _take(watch: Watch, key: Key, known: _Watched, page: Seen, now: int, *, learns: bool) -> Moved | None:
    """Take a page that is not what it was."""
    hung, last, moved = known.hung, known.moved_ns, _moved_at(page, now)
    warm = not page.steps_done or known.seen.steps_done >= WARM_UP_STEPS
    if learns and warm:
        _learn(watch, key, known.section, moved - last - known.excused_ns)
    known.seen, known.section, known.moved_ns = page, _section(page), moved
    known.hung = None
    if hung is None:
        return None
    return Moved(key, hung.since_ns, hung.section, hung.step, max(0, moved - last))


def _learn(watch: Watch, key: Key, section: str, took_ns: int) -> None:
    if section in _NOT_LEARNED:
        return
    rank = (key.job_id, key.rank)
    learned = watch.learned_ns.pop(rank, {})
    learned[section] = max(took_ns, learned.get(section, 0))
    watch.learned_ns[rank] = learned  # last: the oldest are forgotten
    if len(watch.learned_ns) > MOST_RANKS:
        del watch.learned_ns[next(iter(watch.learned_ns))]


def _judge(watch: Watch, key: Key, known: _Watched, now: int) -> Hung | None:
    """Say whether one hangs that has not moved since the last look; once."""
    silent = now - known.moved_ns - known.excused_ns
    limit, learned = _limit(watch, key, known)
    if known.hung is not None or limit is None or silent <= limit:
        return None
    known.hung = Hung(key, known.moved_ns, known.section, known.seen.step, silent, limit, learned)
    return known.hung


def _limit(watch: Watch, key: Key, known: _Watched) -> tuple[int | None, bool]:
    """How long it may not move, and whether that was learned; None: for ever."""
    section, policy = known.section, known.policy
    fixed = policy.limits_ns.get(section)
    if fixed is not None:
        return fixed, False
    if section in _NOT_LEARNED or (section == STEP and known.seen.steps_done < WARM_UP_STEPS):
        return None, False
    learned = watch.learned_ns.get((key.job_id, key.rank), {}).get(section, 0)
    longest = max(learned, known.seen.longest_ns.get(section, 0))
    return (max(policy.floor_ns, round(policy.factor * longest)), True) if longest > 0 else (None, False)
