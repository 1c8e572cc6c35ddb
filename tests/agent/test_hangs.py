"""Who hangs: nobody who moves as it may, whatever the looks meet; whoever stops, soon."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_agent.core import Key
from holdfast_agent.hangs import (
    LOOK_NS,
    MOST_RANKS,
    PAUSE_NS,
    Before,
    Hung,
    Moved,
    Policy,
    Seen,
    Watch,
    look,
    still,
)

S = 10**9
KEY = Key("job1", 0, 1)
LIMITS = {"setup": 600 * S, "step": 60 * S, "eval": 600 * S}
FIXED = Policy(LIMITS, 10.0, 600 * S)
LEARNED = Policy({}, 10.0, 30 * S)


@dataclass
class Page:
    """A worker's page, and looks at it, by a clock of our own."""

    policy: Policy = FIXED
    now: int = 1_000 * S
    key: Key = KEY
    watch: Watch = field(default_factory=Watch)
    said: list = field(default_factory=list)

    def __post_init__(self):
        self.seen = Seen("setup", None, 0, self.now)
        self.looked = self.now
        self.look()

    def look(self, before=None):
        self.looked = self.now
        seen = {self.key: (self.policy, self.seen)}
        found = look(self.watch, seen, self.now, {self.key: before} if before else {})
        self.said += found
        return found

    def wait(self, ns):
        """Let time pass; it is looked at once a second."""
        until = self.now + ns
        while self.looked + LOOK_NS <= until:
            self.now = self.looked + LOOK_NS
            self.look()
        self.now = until

    def pause(self, ns):
        """Let time pass in which nobody looks."""
        self.now += ns
        self.looked = self.now

    def step(self, after=0):
        self.wait(after)
        section = "step" if self.seen.section == "setup" else self.seen.section
        done = self.seen.steps_done + 1
        self.seen = self.seen._replace(section=section, step=done, steps_done=done, moved_ns=self.now)

    def enter(self, section, after=0):
        self.wait(after)
        was, longest = self.seen, dict(self.seen.longest_ns)
        longest[was.section] = max(longest.get(was.section, 0), self.now - was.moved_ns)
        self.seen = was._replace(section=section, moved_ns=self.now, longest_ns=longest)

    def restart_agent(self):
        self.watch = Watch()


def warm(page, steps=5, took=S // 10):
    for _ in range(steps):
        page.step(took)
    page.wait(2 * S)
    page.step()
    page.look()
    return page


# What hangs


def test_a_limit_that_is_set_holds_from_the_last_report():
    page = warm(Page())
    page.wait(60 * S)
    assert page.said == []
    page.wait(2 * S)
    (hung,) = page.said
    assert (hung.key, hung.section, hung.step, hung.limit_ns, hung.learned) == (KEY, "step", 6, 60 * S, False)
    assert 60 * S < hung.silent_ns <= 62 * S
    assert hung.since_ns == page.seen.moved_ns


def test_it_is_said_once_and_its_end_once():
    page = warm(Page())
    since = page.seen.moved_ns
    page.wait(200 * S)
    page.step()
    page.wait(5 * S)
    hung, moved = page.said
    assert isinstance(hung, Hung)
    assert moved == Moved(KEY, since, "step", 6, 200 * S)


def test_each_section_has_its_own_limit_from_its_own_begin():
    page = warm(Page())
    page.enter("eval", 50 * S)
    page.enter("step", 590 * S)
    page.wait(59 * S)
    assert page.said == []
    page.wait(3 * S)
    assert [hung.section for hung in page.said] == ["step"]


def test_without_limits_nothing_is_said_before_something_was_seen():
    page = Page(LEARNED)
    page.wait(10_000 * S)  # setup
    page.step()
    page.wait(10_000 * S)  # the first steps compile
    page.step()
    page.enter("eval")
    page.wait(10_000 * S)
    assert page.said == []


def test_a_limit_is_learned_from_the_longest_step_that_was_seen_after_the_warm_up():
    page = Page(LEARNED)
    page.step(900 * S)
    page.step(500 * S)  # compiles
    page.step(400 * S)
    page.step(6 * S)
    page.wait(2 * S)
    for took in (1, 8, 3):
        page.step(took * S)
    page.wait(200 * S)
    (hung,) = page.said
    assert hung.learned
    assert 80 * S <= hung.limit_ns <= 10 * (8 * S + LOOK_NS)


def test_a_limit_is_never_learned_below_the_floor():
    page = warm(Page(LEARNED))
    page.wait(29 * S)
    assert page.said == []
    page.wait(3 * S)
    assert [hung.limit_ns for hung in page.said] == [30 * S]


def test_a_section_that_no_look_ever_met_is_learned_from_the_page():
    page = warm(Page(LEARNED))
    page.enter("checkpoint")
    page.now += S // 100
    page.enter("step")
    page.enter("checkpoint", 2 * S)
    page.wait(32 * S)
    assert [(hung.section, hung.learned) for hung in page.said] == [("checkpoint", True)]


def test_what_was_learned_holds_for_the_next_attempt():
    page = warm(Page(LEARNED), took=20 * S)
    page.enter("eval")
    page.enter("step", 100 * S)
    page.wait(S)
    page.key = Key("job1", 0, 2)
    page.seen = Seen("setup", None, 0, page.now)
    page.look()
    warm(page)
    page.wait(195 * S)
    assert page.said == []
    page.wait(20 * S)
    assert [hung.limit_ns // S for hung in page.said] == [200]
    page.enter("eval")
    page.wait(990 * S)
    assert len(page.said) == 2
    page.wait(20 * S)
    assert page.said[-1].section == "eval"


def test_what_was_learned_is_forgotten_of_the_oldest():
    watch = Watch()
    for n in range(MOST_RANKS + 10):
        key = Key(f"job{n}", 0, 1)
        for moved in (1, 2):
            look(watch, {key: (LEARNED, Seen("step", 9, 9, moved * S))}, (n * 3 + moved) * S)
    assert len(watch.learned_ns) == MOST_RANKS
    assert ("job0", 0) not in watch.learned_ns
    assert len(watch.workers) == 1


def test_a_restarted_agent_needs_no_more_than_two_looks():
    page = warm(Page())
    page.pause(100 * S)
    page.restart_agent()
    page.look()
    assert page.said == []
    page.wait(S)
    assert len(page.said) == 1


# What another agent knew


@pytest.mark.parametrize("moves", [True, False])
def test_the_next_agent_tells_that_a_hang_is_over_and_else_tells_it_again(moves):
    page = warm(Page())
    page.wait(70 * S)
    (hung,) = page.said
    before = still(page.watch, hung, page.seen)
    assert before == Before(hung.since_ns, "step", 6, 0)
    page.restart_agent()
    if moves:
        page.step()
    page.look(before)
    page.wait(2 * S)
    again = page.said[1]
    assert isinstance(again, Moved if moves else Hung)
    assert again.since_ns == hung.since_ns
    assert len(page.said) == 2


def test_a_hang_that_is_over_is_none_for_the_next_agent():
    page = warm(Page())
    page.wait(70 * S)
    page.step()
    assert still(page.watch, page.said[0], page.seen) is None  # no look has met that yet
    page.look()
    assert still(page.watch, page.said[0], page.seen) is None


# What looks meet


def test_a_page_half_written_alarms_nobody():
    page = warm(Page())
    whole = page.seen
    for wrong in (0, 1, whole.moved_ns - 500 * S, 2**62):
        page.wait(S)
        page.seen = whole._replace(moved_ns=wrong)
        page.look()
        page.step()
        whole = page.seen
        page.wait(3 * S)
    assert page.said == []
    page.wait(62 * S)
    assert len(page.said) == 1


def test_while_the_agent_stood_still_so_may_have_its_machine():
    page = warm(Page())
    page.wait(50 * S)
    page.pause(500 * S)
    page.look()
    page.wait(5 * S)
    assert page.said == []
    page.wait(10 * S)
    assert len(page.said) == 1


@pytest.mark.parametrize("at", ["before the first look", "after a step that no look has met"])
def test_a_pause_is_no_hang_whenever_it_begins(at):
    began = 1_000 * S
    watch, seen = Watch(looked_ns=began), Seen("step", 10, 10, began + S // 2)
    if at.startswith("after"):
        look(watch, {KEY: (FIXED, Seen("step", 9, 9, began))}, began + S // 4)
    now = began + 500 * S
    said = [look(watch, {KEY: (FIXED, seen)}, now + after * LOOK_NS) for after in range(70)]
    first = next(after for after, found in enumerate(said) if found)
    assert 58 <= first <= 62  # of its time before the pause at most a look's is counted


def test_a_pause_of_the_agent_is_no_long_step():
    page = warm(Page(LEARNED))
    page.pause(5_000 * S)
    page.step()
    page.look()
    page.wait(40 * S)
    assert len(page.said) == 1


# Programs without the library


def test_a_program_that_touches_its_file_moves_by_that_if_the_spec_gives_a_limit():
    policy = Policy({"touch": 10 * S}, 10.0, S)
    page = Page(policy)
    page.seen = Seen()
    page.wait(1_000 * S)  # it has not begun to
    for touched in range(1, 6):
        page.seen = Seen(touched=touched)
        page.wait(9 * S)
    assert page.said == []
    page.wait(4 * S)
    (hung,) = page.said
    assert (hung.section, hung.step, hung.limit_ns, hung.learned) == ("touch", None, 10 * S, False)
    before = still(page.watch, hung, page.seen)
    page.restart_agent()
    page.look(before)
    page.wait(S)
    assert [type(each) for each in page.said] == [Hung, Hung]
    assert page.said[0].since_ns == page.said[1].since_ns
    page.restart_agent()
    page.seen = Seen(touched=9)
    page.look(before)
    assert isinstance(page.said[2], Moved)


def test_a_program_that_touches_its_file_moves_as_it_likes_without_a_limit():
    page = Page(LEARNED)
    for touched in range(1, 10):
        page.seen = Seen(touched=touched)
        page.wait(touched * 1_000 * S)
    assert page.said == []


def test_setup_lasts_until_the_first_report_also_without_a_page():
    page = Page(Policy({"setup": 20 * S}, 10.0, S))
    page.seen = Seen()
    page.look()
    page.wait(22 * S)
    assert [hung.section for hung in page.said] == ["setup"]


def test_a_touch_moves_no_worker_that_has_a_page():
    """The kernel touches a file that is written through mmap when it likes, and a thread may."""
    page = warm(Page())
    for touched in range(1, 70):
        page.seen = page.seen._replace(touched=touched)
        page.wait(S)
    assert len(page.said) == 1


# Over thousands of histories


SHORT = Policy({"setup": 40 * S, "step": 10 * S, "checkpoint": 5 * S, "eval": 60 * S}, 10.0, 600 * S)
EXAMPLES, MOVES = 500, 20


def play(page, rng, longest_s, *, seen=False):
    """Let a worker do what it may, and looks meet it where they like; with `seen`, whatever it does."""
    for _ in range(MOVES):
        section = page.seen.section
        took = round(longest_s(section) * S * rng.choice([rng.random(), rng.random() ** 8, 1.0]))
        if rng.random() < 0.05 and not seen:
            page.pause(took)  # the agent stands still, or is away
            took = 0
            if rng.random() < 0.5:
                page.restart_agent()
                page.look()
        if rng.random() < 0.05 and not seen:
            page.look()
            page.pause(rng.randrange(3_600) * S + PAUSE_NS)  # and so does the machine
        if section != "setup" and rng.random() < 0.2:
            page.enter(rng.choice(["eval", "checkpoint", "step", "export"]), took)
        else:
            page.step(took)
        page.wait(rng.randrange(S))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**32))
def test_with_limits_that_are_set_nobody_who_keeps_them_hangs(seed):
    page = Page(SHORT)
    play(page, random.Random(seed), lambda section: SHORT.limits_ns.get(section, 60 * S) / S - 1)
    assert page.said == []


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**32))
def test_nobody_hangs_who_takes_ten_times_what_it_took_or_is_below_the_floor(seed):
    """Of what the worker truly did, not of what was seen: what is learned is never less than that."""
    page = Page(Policy({}, 10.0, 3 * S))
    took = {}

    def noting(act):
        def noted(*args):
            section, before, done = page.seen.section, page.seen.moved_ns, page.seen.steps_done
            act(*args)
            page.look()
            if done >= 3:
                took[section] = max(took.get(section, 0), (page.seen.moved_ns - before) / S)

        return noted

    def longest(section):
        return 50 if section == "setup" else min(90, max(2, 10 * took.get(section, 0)) - 1)

    page.enter, page.step = noting(page.enter), noting(page.step)
    play(page, random.Random(seed), longest, seen=True)
    assert page.said == []


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(SHORT.limits_ns)))
def test_whoever_stops_is_told_soon(seed, section):
    page = Page(SHORT)
    if section != "setup":
        play(page, random.Random(seed), lambda section: SHORT.limits_ns.get(section, 60 * S) / S - 1)
        page.enter(section)
    page.said.clear()
    page.look()
    page.wait(SHORT.limits_ns[section] - 1)
    assert page.said == []
    page.wait(3 * S)
    (hung,) = page.said
    assert (hung.section, hung.limit_ns) == (section, SHORT.limits_ns[section])
