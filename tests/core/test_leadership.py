"""Two coordinators never lead at once, whatever clocks and network do, and in the end one leads."""

import random
from dataclasses import dataclass, field

import pytest

from holdfast_coordinator.core.leadership import (
    Granted,
    Leadership,
    Refused,
    Role,
    TimePassed,
    Unanswered,
    hear,
)

LEASE = 6_000
LEADER = hear(Leadership(LEASE), Granted(at_ms=1_010, asked_ms=1_000))


def test_a_lease_is_reckoned_from_when_it_was_asked_for_less_a_margin():
    assert (LEADER.role, LEADER.until_ms, LEADER.ask_ms) == (Role.LEADER, 5_500, 2_000)
    assert LEADER.leads_at(5_499)
    assert not LEADER.leads_at(5_500)


def test_renewing_puts_the_end_off():
    renewed = hear(LEADER, Granted(at_ms=2_020, asked_ms=2_000))
    assert renewed.until_ms == 6_500


def test_a_leader_that_hears_nothing_asks_again_and_stops_in_time():
    asked = hear(LEADER, Unanswered(2_100, "no route"))
    assert (asked.role, asked.ask_ms, asked.until_ms) == (Role.LEADER, 3_100, 5_500)
    over = hear(asked, TimePassed(5_500))
    assert (over.role, over.why) == (Role.DEPOSED, "its lease could not be renewed in time (no route)")


def test_a_lease_that_was_renewed_too_late_is_over_all_the_same():
    assert hear(LEADER, Granted(at_ms=5_600, asked_ms=2_000)).role is Role.DEPOSED


def test_who_is_told_of_another_leader_is_deposed_for_good():
    deposed = hear(LEADER, Refused(2_010, "b", 4_000))
    assert (deposed.role, deposed.why) == (Role.DEPOSED, "b has taken over")
    for heard in (Granted(2_100, 2_090), TimePassed(9_000), Unanswered(9_000, "")):
        assert hear(deposed, heard) == deposed


def test_a_standby_asks_when_the_lease_of_the_other_runs_out():
    standby = hear(Leadership(LEASE), Refused(100, "a", 5_000))
    assert (standby.ask_ms, standby.why) == (1_100, "a leads")
    assert hear(standby, Refused(1_100, "a", 300)).ask_ms == 1_400


def test_an_answer_that_comes_too_late_makes_no_leader():
    late = hear(Leadership(LEASE), Granted(at_ms=4_500, asked_ms=0))
    assert (late.role, late.ask_ms) == (Role.STANDBY, 4_500)


@dataclass
class Database:
    """Keeps a lease by the true time. Answers what store/postgres.py asks."""

    holder: str = ""
    until: float = 0.0
    leaders: set = field(default_factory=set)

    def ask(self, now, name, *, renew):
        if self.holder == name or (not renew and self.until <= now):
            self.holder, self.until = name, now + LEASE
            self.leaders.add(name)
            return True
        return False


class Coordinator:
    """One that asks, with a clock that runs fast or slow, over a network that delays and loses."""

    def __init__(self, dice, database, name):
        self.dice, self.database, self.name = dice, database, name
        self.lives = 0
        self.begin(0.0)

    def begin(self, now):
        self.lives += 1
        self.rate, self.offset = self.dice.choice((0.88, 1.0, 1.12)), self.dice.uniform(0, 1e6) - now
        self.known = Leadership(LEASE, ask_ms=self.clock(now))
        self.answers = []
        self.paused_until = 0.0

    @property
    def holder(self):
        return f"{self.name}{self.lives}"

    def clock(self, now):
        return int((now + self.offset) * self.rate)

    def leads(self, now):
        return self.known.leads_at(self.clock(now))

    def live(self, now, trouble):
        """Do what is due. Its shell hears nothing while it is paused, but its clock goes on."""
        if trouble and self.dice.random() < 0.004:
            self.paused_until = now + self.dice.choice((100, 3_000, 9_000))
        if now < self.paused_until:
            return
        at = self.clock(now)
        if self.answers and self.answers[0][0] <= now:
            _, asked, granted = self.answers.pop(0)
            if granted is None:
                heard = Unanswered(at, "lost")
            else:
                heard = Granted(at, asked) if granted else Refused(at, "another", 500)
            self.known = hear(self.known, heard)
        elif not self.answers and at >= self.known.ask_ms:
            granted = self.database.ask(now, self.holder, renew=self.known.role is Role.LEADER)
            if trouble and self.dice.random() < 0.3:
                granted = None
            delay = self.dice.choice((1, 20, 400, 5_000)) if trouble else 5
            self.answers.append((now + delay, at, granted))
        self.known = hear(self.known, TimePassed(at))
        if self.known.role is Role.DEPOSED:
            self.begin(now)


@pytest.mark.parametrize("seed", range(12))
def test_never_two_at_once_and_one_in_the_end(seed):
    dice = random.Random(seed)
    database = Database()
    both = [Coordinator(dice, database, name) for name in "ab"]
    for now in range(0, 240_000, 20):
        for one in both:
            one.live(now, trouble=now < 200_000)
        assert sum(one.leads(now) for one in both) <= 1
    assert sum(one.leads(now) for one in both) == 1
    assert len(database.leaders) > 2, "too little went wrong for this to mean something"
