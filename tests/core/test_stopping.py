"""A gang stops just in time: at one step that none of its ranks has passed, and in no more time than there is."""

import pytest

from holdfast_coordinator.core.effects import AskStop, StopWorkers
from holdfast_coordinator.core.jobspec import Scope
from holdfast_coordinator.core.model import JobState, ReportKind, WorkerState
from holdfast_coordinator.core.step import deadline
from tests.core.builders import T0, found, key, leading, running, sent, spec

GRACE_MS = 20_000
TERM_MS, KILL_MS = T0 + 15_000, T0 + 20_000


def asked(world=2, scope=Scope.GANG, **kwargs):
    """A job that was asked to stop, none of its ranks having answered."""
    cluster = running(world, scope, stop_grace_ms=GRACE_MS, **kwargs)
    cluster.stop()
    return cluster


def test_nothing_is_agreed_before_the_last_has_answered():
    cluster = asked(3)
    assert sent(cluster.answer(key(2), 9)) == []
    assert sent(cluster.answer(key(0), 11)) == []
    assert sent(cluster.answer(key(2), 9)) == []  # said again
    agreed = AskStop((key(0), key(1), key(2)), "job stop", 15_000, 11)
    assert sent(cluster.answer(key(1), 10)) == [agreed]


def test_ranks_that_commit_by_themselves_need_nobody_else():
    cluster = asked(2, Scope.RANK)
    assert sent(cluster.answer(key(1), 4)) == [AskStop((key(1),), "job stop", 15_000, 4)]
    assert sent(cluster.answer(key(0), 7)) == [AskStop((key(0),), "job stop", 15_000, 7)]


def test_all_of_a_node_are_asked_in_one_message():
    cluster = running(3, Scope.RANK)
    assert sent(cluster.stop()) == [AskStop((key(0), key(1), key(2)), "job stop", 22_500, None)]


def test_a_stop_that_all_follow_loses_no_step_and_says_so():
    cluster = asked(2)
    cluster.answer(key(0), 5)
    cluster.answer(key(1), 5)
    cluster.commit(5)
    cluster.exited(key(0), 0, at_step=5)
    assert cluster.job().state is JobState.STOPPING
    cluster.exited(key(1), 0, at_step=5)
    assert cluster.job().state is JobState.STOPPED
    assert cluster.job().reason == "stopped by its user at step 5, which is committed"
    assert [cluster.worker(rank).account.steps_redone for rank in (0, 1)] == [0, 0]
    assert deadline(cluster.state) is None


@pytest.mark.parametrize("what", ["deaf", "died", "lost", "passed"])
def test_what_can_not_be_agreed_is_signalled_at_once(what):
    cluster = asked(2, nodes=("a", "b")) if what != "lost" else _spread()
    stop = StopWorkers((key(1),), force=False, reason="stopped by its user")
    match what:
        case "deaf":
            stop = StopWorkers((key(0), key(1)), force=False, reason="stopped by its user")
            assert stop in sent(cluster.answer(key(0), None))
        case "died":
            assert stop in sent(cluster.exited(key(0), signal=11))
        case "lost":
            stops = sent(cluster.tick(10_000, cluster.where(key(0))), StopWorkers)
            assert stops == [StopWorkers((key(1),), force=False, reason="stopped by its user")]
        case "passed":  # it has waited for too long, and gone on
            cluster.answer(key(0), 5)
            cluster.answer(key(1), 5)
            stop = StopWorkers((key(0), key(1)), force=False, reason="stopped by its user")
            assert stop in sent(cluster.answer(key(0), 6))
    assert deadline(cluster.state) == cluster.gang().stopping.kill_ms


def _spread():
    """Rank 0 on node a, rank 1 on node b."""
    cluster = leading("a", "b")
    for node in ("a", "b"):  # fill three of the four slots of each
        cluster.submit(spec(3), f"filler-{node}")
    cluster.submit(spec(2, stop_grace_ms=GRACE_MS))
    for rank in (0, 1):
        cluster.started(key(rank))
    assert {cluster.where(key(0)), cluster.where(key(1))} == {"a", "b"}
    cluster.stop()
    return cluster


def test_who_dies_after_the_commit_ends_nobody_else():
    cluster = asked(2)
    cluster.answer(key(0), 5)
    cluster.answer(key(1), 5)
    cluster.commit(5)
    assert sent(cluster.exited(key(0), 1, at_step=5), StopWorkers) == []
    assert not cluster.gang().stopping.signalled


def test_what_does_not_end_in_time_is_signalled_and_then_killed():
    cluster = asked(1)
    assert deadline(cluster.state) == TERM_MS
    assert sent(cluster.tick(14_999)) == []
    assert sent(cluster.tick(1)) == [StopWorkers((key(0),), force=False, reason="stopped by its user")]
    assert deadline(cluster.state) == KILL_MS
    assert sent(cluster.tick(5_000)) == [StopWorkers((key(0),), force=True, reason="job stop: time is up")]
    assert deadline(cluster.state) is None


def test_ranks_that_are_not_up_have_nothing_to_save():
    cluster = leading("a")
    cluster.submit(spec(2))
    cluster.started(key(0))
    assert sent(cluster.stop()) == [StopWorkers((key(0), key(1)), force=False, reason="stopped by its user")]


def test_without_grace_there_is_no_time_to_ask():
    cluster = running(1, stop_grace_ms=0)
    assert sent(cluster.stop()) == [StopWorkers((key(0),), force=False, reason="stopped by its user")]


def test_force_asks_nobody_and_ends_the_waiting():
    cluster = asked(1)
    reason = "stopped by its user, by force"
    assert sent(cluster.stop(force=True)) == [StopWorkers((key(0),), force=True, reason=reason)]
    assert cluster.gang().stopping is None


def test_an_old_answer_counts_for_nothing():
    cluster = running(1, backoff_ms=0)
    effects = cluster.answer(key(0), 3)
    assert "is not asked to stop" in effects.reason
    cluster.exited(key(0), 1)
    cluster.offer("a", 7005)
    cluster.tick()
    cluster.started(key(0, 2))
    cluster.stop()
    effects = cluster.answer(key(0, 1), 3)
    assert "does not run" in effects.reason
    assert cluster.gang().stopping.answers == 0


def test_a_program_that_does_not_look_gets_a_second_to_publish_its_last_checkpoint():
    cluster = asked(1)
    cluster.answer(key(0), 5, leaves=False)
    cluster.tick(1_000)
    cluster.commit(5)
    assert deadline(cluster.state) == T0 + 2_000
    assert sent(cluster.tick(1_000), StopWorkers)


def test_a_commit_of_an_earlier_step_is_not_the_last():
    cluster = asked(1)
    cluster.answer(key(0), 5, leaves=False)
    cluster.commit(4)
    assert deadline(cluster.state) == TERM_MS


def test_a_corrupt_checkpoint_does_not_bring_back_what_is_stopped():
    cluster = running(1, stop_grace_ms=GRACE_MS)
    cluster.commit(3)
    cluster.stop()
    cluster.report(key(0), ReportKind.CORRUPT, 3)
    assert cluster.gang().attempt == 1
    cluster.exited(key(0), 1)
    assert cluster.job().state is JobState.STOPPED


def test_a_job_that_is_given_up_waits_for_no_rank_that_was_asked():
    """Rank 0 moves off its node; rank 1 spends the budget."""
    cluster = leading("a", "b")
    cluster.submit(spec(1), "filler")
    cluster.submit(spec(6, Scope.RANK, budget=0))
    for rank in range(6):
        cluster.started(key(rank))
    assert (cluster.where(key(0)), cluster.where(key(5))) == ("b", "a")
    cluster.drain("b")
    stops = sent(cluster.exited(key(5), 1), StopWorkers)
    assert key(0) in {which for stop in stops for which in stop.keys}
    assert cluster.job().state is JobState.STOPPING


def test_a_restarted_coordinator_with_an_earlier_clock_waits_no_longer():
    cluster = asked(1)
    cluster.now -= 3_600_000
    cluster.restart_coordinator()
    assert deadline(cluster.state) == cluster.now + 15_000


def test_who_comes_back_is_asked_again_with_the_time_that_is_left():
    cluster = asked(1)
    cluster.answer(key(0), 5)
    cluster.lose_stream()
    cluster.tick(4_000)
    again = AskStop((key(0),), "job stop", 11_000, 5)
    assert again in sent(cluster.join("a", (found(key(0)),)))


def test_what_has_ended_meanwhile_is_not_asked_again():
    cluster = asked(2)
    cluster.lose_stream()
    effects = cluster.join("a", (found(key(0)),))
    assert sent(effects, AskStop) == []
    assert sent(effects, StopWorkers)[0].keys == (key(0),)
    assert cluster.worker(1).state is WorkerState.LOST
