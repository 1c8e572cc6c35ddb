"""What a rule matches, what is built in, and what counts as the program's own doing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core import rules
from holdfast_coordinator.core.jobspec import Action, CodeRange, ExitKind, Rule
from holdfast_coordinator.core.model import Commit, Exit, Gang, Output, Progress, Repeat, Worker, WorkerState
from tests.core.builders import T0, ended

GANG = Gang("j1", 0)
FAIL = Action.FAIL


def judge(*given_rules, exited=None, step=None, section="", matched=()):
    progress = Progress(step, 0, 0, section)
    return rules.judge(given_rules, exited or ended(1), progress, Output(matched=matched))


def worker(exited, step=None, section="setup", lived_ms=1_000, node="a"):
    return Worker(
        "j1",
        0,
        0,
        WorkerState.FAILED,
        node=node,
        started_ms=exited.at_ms - lived_ms,
        exit=exited,
        progress=Progress(step, 0, 0, section),
    )


@pytest.mark.parametrize(
    ("rule", "about", "matches"),
    [
        (Rule(FAIL), {}, True),
        (Rule(FAIL, exit_codes=(CodeRange(1, 1),)), {}, True),
        (Rule(FAIL, exit_codes=(CodeRange(3, 3), CodeRange(10, 20))), {"exited": ended(15)}, True),
        (Rule(FAIL, exit_codes=(CodeRange(3, 3), CodeRange(10, 20))), {"exited": ended(9)}, False),
        (Rule(FAIL, exit_codes=(CodeRange(1, 255),)), {"exited": ended(-1, 9)}, False),
        (Rule(FAIL, signals=(11, 7)), {"exited": ended(-1, 7)}, True),
        (Rule(FAIL, signals=(11, 7)), {"exited": ended(-1, 9)}, False),
        (Rule(FAIL, signals=(11,)), {}, False),
        (Rule(FAIL, kinds=(ExitKind.OUT_OF_MEMORY,)), {}, False),
        (Rule(FAIL, log="x"), {}, False),
        (Rule(FAIL, log="x"), {"matched": (1,)}, False),
        (Rule(FAIL, log="x"), {"matched": (0,)}, True),
        (Rule(FAIL, section="eval"), {"section": "eval"}, True),
        (Rule(FAIL, section="eval"), {"section": "step"}, False),
        (Rule(FAIL, before_first_step=True), {}, True),
        (Rule(FAIL, before_first_step=True), {"step": 0}, False),
        (Rule(FAIL, before_first_step=False), {"step": 0}, True),
        (Rule(FAIL, exit_codes=(CodeRange(1, 1),), section="eval"), {"section": "step"}, False),
    ],
)
def test_all_that_a_rule_gives_must_be_true(rule, about, matches):
    assert (judge(rule, **about) is not None) is matches


def test_the_first_that_matches_decides_and_is_named():
    verdict = judge(Rule(Action.IGNORE, signals=(9,)), Rule(Action.RETRY), Rule(FAIL))
    assert (verdict.action, verdict.rule) == (Action.RETRY, "rule 2 of the spec")


@pytest.mark.parametrize("kind", [ExitKind.ABANDONED, ExitKind.LOST])
def test_what_was_not_the_programs_end_is_no_rules_business(kind):
    assert judge(Rule(FAIL), exited=replace(ended(1), kind=kind)) is None


exits = st.builds(
    Exit,
    code=st.integers(-1, 255),
    signal=st.integers(0, 64),
    message=st.text(max_size=5),
    at_ms=st.just(T0),
    kind=st.sampled_from(ExitKind),
    line=st.text(max_size=20) | st.sampled_from(["ImportError: x", "Connection reset by peer"]),
)
some_rules = st.lists(
    st.builds(
        Rule,
        st.sampled_from(Action),
        st.lists(st.builds(CodeRange, st.integers(0, 9), st.integers(0, 255)), max_size=2).map(tuple),
        st.lists(st.integers(1, 15), max_size=2).map(tuple),
        st.lists(st.sampled_from(ExitKind), max_size=2).map(tuple),
        st.sampled_from(["", "x"]),
        st.sampled_from(["", "setup"]),
        st.none() | st.booleans(),
    ),
    max_size=5,
).map(tuple)


@given(some_rules, exits, st.none() | st.integers(0, 3), st.sets(st.integers(0, 5)))
def test_what_comes_after_the_rule_that_decided_changes_nothing(of_spec, exited, step, matched):
    about = {"exited": exited, "step": step, "section": "setup", "matched": tuple(sorted(matched))}
    verdict = judge(*of_spec, **about)
    if verdict is None:
        assert all(
            judge(rule, **(about | {"matched": (0,) if i in matched else ()})) is None
            for i, rule in enumerate(of_spec)
        )
        return
    number = int(verdict.rule.split()[1])
    assert judge(*of_spec[:number], **about) == verdict
    assert judge(*of_spec[: number - 1], **about) is None
    assert verdict.action is of_spec[number - 1].action


class TestCannotStart:
    @pytest.mark.parametrize(
        ("code", "line"),
        [
            (1, "ModuleNotFoundError: No module named 'foo'"),
            (1, "ImportError: libcudart.so.12: cannot open shared object file"),
            (1, "SyntaxError: '(' was never closed"),
            (1, "IndentationError: unexpected indent"),
            (1, "FileNotFoundError: [Errno 2] No such file or directory: 'data.npy'"),
            (1, "holdfast.data.errors.DataError: s3://data/train: there is no shard"),
            (1, "holdfast.worker.errors.CheckpointMismatch: w has another shape"),
            (1, "/usr/bin/python: No module named train"),
            (2, "python: can't open file '/x/train.py': [Errno 2] No such file or directory"),
            (127, "sh: 1: train: not found"),
            (126, "sh: 1: ./train: Permission denied"),
            (2, "train.py: error: unrecognized arguments: --foo"),
            (2, "Error: No such option: --foo"),
        ],
    )
    def test_these_can_not(self, code, line):
        assert rules.cannot_start(GANG, worker(replace(ended(code), line=line)))

    @pytest.mark.parametrize(
        ("code", "line"),
        [
            (1, "RuntimeError: boom"),
            (1, ""),
            (2, "AssertionError: 2"),
            (1, "OSError: [Errno 28] No space left on device"),
            (3, "my own words about an ImportError"),
        ],
    )
    def test_these_may_have_better_luck(self, code, line):
        assert rules.cannot_start(GANG, worker(replace(ended(code), line=line))) == ""

    IMPORT = replace(ended(1), line="ImportError: x")

    def test_after_a_step_everything_was_there(self):
        assert rules.cannot_start(GANG, worker(self.IMPORT, step=0)) == ""

    def test_also_after_a_step_of_an_attempt_before(self):
        assert rules.cannot_start(replace(GANG, best_step=3), worker(self.IMPORT)) == ""
        commit = Commit("j1", 0, 5, 1, T0, None, 1, ())
        assert rules.cannot_start(replace(GANG, commit=commit), worker(self.IMPORT)) == ""

    def test_a_program_of_which_nothing_is_heard_starts_up_for_a_while_and_no_longer(self):
        assert rules.cannot_start(GANG, worker(self.IMPORT, section="", lived_ms=rules.BLIND_MS))
        assert not rules.cannot_start(GANG, worker(self.IMPORT, section="", lived_ms=rules.BLIND_MS + 1))
        assert rules.cannot_start(GANG, worker(self.IMPORT, section="setup", lived_ms=rules.BLIND_MS + 1))

    def test_who_was_killed_may_start(self):
        assert rules.cannot_start(GANG, worker(replace(ended(-1, 9), line="ImportError: x"))) == ""


@pytest.mark.parametrize(
    ("exited", "own"),
    [
        (ended(1), True),
        (ended(-1, 11), True),
        (ended(-1, 6), True),
        (ended(-1, 9), False),
        (ended(-1, 15), False),
        (ended(-1, 2), False),
        (replace(ended(-1, 9), kind=ExitKind.OUT_OF_MEMORY), True),
        (replace(ended(1), kind=ExitKind.DISK_FULL), False),
        (replace(ended(-1, 9), kind=ExitKind.SHIM_LOST), False),
        (replace(ended(1), line="ConnectionResetError: [Errno 104] Connection reset by peer"), False),
        (replace(ended(1), line="torch.distributed.DistBackendError: NCCL error"), False),
        (replace(ended(1), line="ValueError: loss is nan"), True),
    ],
)
def test_whose_doing_an_exit_is(exited, own):
    assert rules.own_doing(exited) is own


class TestCount:
    def count(self, before=Repeat(), exited=None, *, progressed=False, gang=GANG, **about):  # noqa: B008
        gang = replace(gang, repeat=before)
        return rules.count(gang, worker(exited or ended(1), **about), progressed=progressed)

    def test_the_same_again_is_counted(self):
        once = self.count(step=1)
        assert once == Repeat("exit code 1", 1, "a")
        assert self.count(once, step=1) == Repeat("exit code 1", 2, "a")

    def test_another_kind_begins_anew(self):
        assert self.count(Repeat("exit code 3", 2, "a"), step=1) == Repeat("exit code 1", 1, "a")

    def test_progress_begins_anew(self):
        assert self.count(Repeat("exit code 1", 2, "a"), progressed=True, step=9).times == 1

    def test_a_kill_from_outside_neither_counts_nor_forgets(self):
        before = Repeat("exit code 1", 2, "a")
        assert self.count(before, ended(-1, 9), step=1) == before
        assert self.count(before, ended(-1, 9), step=9, progressed=True) == Repeat()

    def test_two_nodes_are_none(self):
        assert self.count(Repeat("exit code 1", 1, "b"), step=1) == Repeat("exit code 1", 2, "")

    def test_a_long_life_without_steps_counts_as_progress(self):
        before = Repeat("exit code 1", 2, "a")
        assert self.count(before, lived_ms=rules.WORKED_MS).times == 1
        assert self.count(before, lived_ms=rules.WORKED_MS - 1).times == 3
        stepped = replace(GANG, best_step=4)
        assert self.count(before, gang=stepped, lived_ms=rules.WORKED_MS).times == 3
