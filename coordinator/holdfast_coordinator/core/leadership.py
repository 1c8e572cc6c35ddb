"""Which of several coordinators leads: what one of them makes of what the database says. Pure.

The database keeps a lease, by its own clock. Whoever is given it leads for so long, and has it renewed meanwhile; when
it has run out the next who asks is given it. The leader goes by its own monotonic clock, and reckons from when it
asked, which is before the database reckons, and less a margin: it has stopped before anybody can take its place.
Nothing that is written rests on clocks: every transaction asserts who leads (store/postgres.py).

Times are milliseconds of this process's monotonic clock.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

MARGIN = 0.25
"""The part of a lease that its leader leaves unused: for clocks that run unlike, and for stopping."""
RENEWALS = 6
"""Times that a lease is renewed before it would run out."""
MOST_PAUSE_MS = 1_000
"""Between two questions of a standby: a leader that ends in peace gives its lease back."""


class Role(StrEnum):
    """What a coordinator is."""

    STANDBY = "standby"
    LEADER = "leader"
    DEPOSED = "deposed"
    """It has led, and does nothing any more: its memory may be behind the store."""


@dataclass(frozen=True, slots=True)
class Leadership:
    """What a coordinator knows of who leads."""

    lease_ms: int
    role: Role = Role.STANDBY
    until_ms: int = 0
    """Of a leader: it serves no longer than this."""
    ask_ms: int = 0
    """When to ask the database again."""
    why: str = "nobody has asked the database yet"
    """It does not lead, or may soon no longer; empty: all is well."""

    def leads_at(self, now_ms: int) -> bool:
        """Whether it may serve."""
        return self.role is Role.LEADER and now_ms < self.until_ms


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is this coordinator's, from no earlier than when it asked."""

    at_ms: int
    asked_ms: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Another has the lease, for so long yet by the database's clock."""

    at_ms: int
    holder: str
    left_ms: int


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The database did not answer, or could not."""

    at_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened."""

    at_ms: int


Heard = Granted | Refused | Unanswered | TimePassed


def hear(known: Leadership, heard: Heard) -> Leadership:
    """Say what a coordinator is after it has heard something."""
    if known.role is Role.DEPOSED:
        return known
    if known.role is Role.LEADER and heard.at_ms >= known.until_ms:
        trouble = heard.why if isinstance(heard, Unanswered) else known.why
        return _deposed(known, "its lease could not be renewed in time" + (trouble and f" ({trouble})"))
    pause_ms = min(MOST_PAUSE_MS, known.lease_ms // RENEWALS)
    match heard:
        case Granted(at_ms, asked_ms):
            until_ms = asked_ms + round(known.lease_ms * (1 - MARGIN))
            if at_ms >= until_ms:  # an answer that took so long is worth nothing
                return replace(known, ask_ms=at_ms, why="the database answers too late")
            return Leadership(known.lease_ms, Role.LEADER, until_ms, asked_ms + pause_ms, "")
        case Refused(at_ms, holder, left_ms):
            if known.role is Role.LEADER:
                return _deposed(known, f"{holder} has taken over")
            return replace(known, ask_ms=at_ms + min(pause_ms, max(1, left_ms)), why=f"{holder} leads")
        case Unanswered(at_ms, why):
            return replace(known, ask_ms=at_ms + pause_ms, why=why)
        case TimePassed():
            return known


def _deposed(known: Leadership, why: str) -> Leadership:
    return replace(known, role=Role.DEPOSED, why=why)
