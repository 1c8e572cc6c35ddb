"""Hangs: told, shown, and where the spec says so, the gang is restarted, once and as after an exit."""

import pytest

from holdfast_coordinator.core.effects import NoteHang, StopWorkers
from holdfast_coordinator.core.hangs import differing
from holdfast_coordinator.core.model import (
    Hang,
    HangAction,
    HangPolicy,
    JobState,
    Key,
    Scope,
    WorkerState,
)
from tests.core.builders import found, hang, key, running, sent

RESTART = HangPolicy(HangAction.RESTART)


def last(cluster, kind):
    return next(entry for entry in reversed(cluster.timeline) if entry.kind == kind)


def test_a_hang_is_told_with_its_numbers_and_evidence_and_nothing_else_happens():
    cluster = running(2)
    effects = cluster.hung(key(1), hang(step=14, silent_ms=73_400), evidence="Thread 1 ...")
    assert sent(effects) == [NoteHang(key(1), 7, over=False)]
    told = last(cluster, "WorkerHung")
    assert told.message == (
        "rank 1 on node a hung in section step for 73 s (limit 60 s, set in the spec) after step 14"
    )
    assert (told.evidence, told.rank, told.attempt) == ("Thread 1 ...", 1, 1)
    assert cluster.worker(1).hang == hang(step=14, silent_ms=73_400)
    assert cluster.job().state is JobState.RUNNING


def test_what_more_is_known_is_said():
    cluster = running(1)
    cluster.hung(key(0), hang(learned=True, limit_ms=2_500, stopped=True, where="wait (threading.py:320)"))
    assert last(cluster, "WorkerHung").message.endswith(
        "(limit 2.5 s, learned), in wait (threading.py:320), stopped by a signal"
    )


def test_said_again_it_is_noted_again_and_told_no_more():
    cluster = running(2)
    cluster.hung(key(1))
    before = len(cluster.timeline)
    assert sent(cluster.hung(key(1))) == [NoteHang(key(1), 7, over=False)]
    assert len(cluster.timeline) == before


def test_its_end_is_told_and_shown():
    cluster = running(2)
    cluster.hung(key(1))
    assert sent(cluster.hung(key(1), hang(silent_ms=99_000), over=True)) == [NoteHang(key(1), 7, over=True)]
    message = last(cluster, "HangOver").message
    assert message == "rank 1 on node a moves again, after 99 s in section step"
    assert cluster.worker(1).hang is None


def test_an_end_alone_says_all_of_a_hang_that_was_never_heard_of():
    cluster = running(2)
    cluster.hung(key(1), over=True)
    assert cluster.kinds()[-1] == "HangOver"


def test_it_outlives_the_coordinator_and_a_session():
    cluster = running(2)
    cluster.hung(key(1))
    cluster.restart_coordinator()
    cluster.join("a", (found(key(0)), found(key(1))))
    assert cluster.worker(1).hang == hang()


@pytest.mark.parametrize("action", HangAction)
def test_an_exit_and_a_loss_end_it(action):
    for end in ("exit", "loss"):
        cluster = running(2, hang=HangPolicy(action))
        cluster.hung(key(1))
        if end == "exit":
            cluster.exited(key(1), signal=9)
        else:
            cluster.join("a", (found(key(0)),))
        assert cluster.worker(1).hang is None


# Restarting


def test_a_gang_is_restarted_and_charged_and_what_hangs_alone_has_no_grace():
    cluster = running(3, hang=RESTART, nodes=("a",))
    cluster.commit(10)
    effects = cluster.hung(key(1), hang(step=14))
    cause = "rank 1 on node a hung in section step for 61 s (limit 60 s, set in the spec)"
    assert sent(effects, StopWorkers) == [
        StopWorkers((key(1),), force=True, reason=cause),
        StopWorkers((key(0), key(2)), force=False, reason=cause, restart=True),
    ]
    gang = cluster.gang()
    assert (gang.attempt, gang.restarts, len(gang.streak), gang.cause) == (2, 1, 1, cause)
    assert "restart 1 of 50 without progress" in last(cluster, "RestartDecided").outcome
    cluster.exited(key(1), signal=9)
    assert cluster.worker(1).exit.message == "killed by signal 9, stopped because it hung in section step"
    cluster.exited(key(0), signal=15)
    assert cluster.worker(0).exit.message == "killed by signal 15"


def test_a_rank_is_restarted_alone():
    cluster = running(2, Scope.RANK, hang=RESTART)
    effects = cluster.hung(key(1))
    (stop,) = sent(effects, StopWorkers)
    assert (stop.keys, stop.force) == ((key(1),), True)
    assert [cluster.gang(n).attempt for n in (0, 1)] == [1, 2]
    assert cluster.worker(0).state is WorkerState.RUNNING


def test_the_rank_that_is_late_to_tell_is_told_of_but_restarts_nothing():
    """Ranks of a collective stall together; the second report may be the culprit's."""
    cluster = running(2, hang=RESTART)
    cluster.hung(key(1))
    effects = cluster.hung(key(0), hang(stopped=True), evidence="its stack")
    assert sent(effects) == [NoteHang(key(0), 7, over=False)]
    assert last(cluster, "WorkerHung").evidence == "its stack"
    assert last(cluster, "WorkerHung").message.endswith("rank 0 is stopped by a signal, the others are not")
    assert cluster.gang().attempt == 2


def test_a_report_of_what_is_over_is_noted_and_dropped():
    cluster = running(2, hang=RESTART, backoff_ms=0)
    cluster.exited(key(1), signal=9)
    cluster.restart()
    before = len(cluster.timeline)
    for over in (False, True):
        effects = cluster.hung(key(1), over=over, node="a")
        assert sent(effects) == [NoteHang(key(1), 7, over)]
        assert "is no live attempt" in effects.reason
    cluster.stop()
    assert cluster.hung(key(1, 2)).reason == "job j1 is ending"
    assert cluster.hung(Key("gone", 0, 1), node="a").reason
    assert cluster.kinds(before) == ["JobStopRequested"]


def test_the_end_of_a_hang_that_was_acted_upon_changes_nothing():
    cluster = running(2, hang=RESTART)
    cluster.hung(key(1))
    assert cluster.hung(key(1), over=True).reason
    assert cluster.worker(1).hang.acted


def test_a_hang_again_and_again_spends_the_budget_and_steps_bring_it_back():
    cluster = running(2, Scope.RANK, hang=RESTART, budget=2, backoff_ms=0)
    for attempt, step in enumerate((5, 5, 9, 9), 1):
        cluster.hung(key(1, attempt), hang(since_ns=attempt, step=step))
        cluster.exited(key(1, attempt), signal=9, at_step=step)
        cluster.started(key(1, attempt + 1))
        assert cluster.job().ending is None, attempt
    effects = cluster.hung(key(1, 5), hang(since_ns=5, step=9))
    assert cluster.job().ending is JobState.FAILED
    assert cluster.job().reason.endswith("its budget of 2 restarts without progress is spent")
    assert [(stop.keys, stop.force) for stop in sent(effects, StopWorkers)] == [
        ((key(1, 5),), True),
        ((key(0),), False),
    ]
    cluster.exited(key(1, 5), signal=9)
    cluster.exited(key(0), signal=15)
    assert cluster.job().state is JobState.FAILED


# Whom the others wait for


def at(step=5, section="step", *, stopped=False, where=""):
    return hang(step=step, section=section, stopped=stopped, where=where)


@pytest.mark.parametrize(
    ("hung", "said"),
    [
        ([at()], ""),
        ([at(), at()], ""),
        ([at(), at(stopped=True), at(4)], "rank 1 is stopped by a signal, the others are not"),
        ([at(stopped=True), at(stopped=True)], ""),
        ([at(5), at(5), at(4), at(4)], "ranks 2, 3 are at step 4, others at step 5"),
        ([at(5), at(None)], "rank 1 is before any step, others at step 5"),
        ([at(), at(section="checkpoint"), at()], "rank 1 is in checkpoint, most are in step"),
        ([at(), at(section="checkpoint")], ""),
        (
            [at(where="all_reduce (d.py:1)")] * 3 + [at(where="read (x.py:2)")],
            "rank 3 is in read (x.py:2), most are in all_reduce (d.py:1)",
        ),
        ([at(where="a"), at(where=""), at(where="")], ""),
        ([at(where="a"), at(where="b")], ""),
        ([at(where="a"), at(where="b"), at(where="c")], ""),
    ],
)
def test_the_one_that_differs_is_named(hung, said):
    told = differing(dict(enumerate(hung)))
    assert told == (said and f"; of those that hang, {said}")


def test_the_one_that_differs_is_told_as_soon_as_it_is_known():
    cluster = running(3)
    for rank, where in enumerate(("all_reduce", "all_reduce", "read_batch")):
        cluster.hung(key(rank), hang(where=where))
    assert [entry.message.partition("; ")[2] for entry in cluster.timeline if entry.kind == "WorkerHung"] == [
        "",
        "",
        "of those that hang, rank 2 is in read_batch, most are in all_reduce",
    ]
    assert isinstance(cluster.worker(2).hang, Hang)
