"""Restarts on the user's word: of what runs, and of what has ended."""

import pytest

from holdfast_coordinator.core.account import summarize
from holdfast_coordinator.core.effects import AskStop, Problem, StartWorkers, StopWorkers
from holdfast_coordinator.core.jobspec import Scope
from holdfast_coordinator.core.model import Desired, JobState, WorkerState
from holdfast_coordinator.core.step import deadline
from tests.core.builders import Cluster, key, leading, running, sent, spec


def failed(**kwargs):
    """A job that has committed step 5, and failed after one restart too many."""
    cluster = running(2, backoff_ms=0, budget=0, **kwargs)
    cluster.commit(5)
    cluster.exited(key(0), 1, at_step=7)
    cluster.exited(key(1), signal=15, at_step=7)
    assert cluster.job().state is JobState.FAILED
    cluster.offer("a", 8001, 8002)
    return cluster


def test_what_runs_stops_at_one_step_and_goes_on_from_it_uncharged():
    cluster = running(2)
    cluster.offer("a", 8001)
    assert sent(cluster.again()) == [AskStop((key(0), key(1)), "job restart", 22_500, None)]
    assert (cluster.job().state, cluster.job().reason) == (JobState.RESTARTING, "restarted by its user")
    for rank in (0, 1):
        cluster.answer(key(rank), 7)
    cluster.commit(7)
    cluster.exited(key(0), 0, at_step=7)
    (start,) = sent(cluster.exited(key(1), 0, at_step=7), StartWorkers)
    assert [(a.rank, a.attempt) for a in start.assignments] == [(0, 2), (1, 2)]
    assert start.resume[0].step == 7
    assert cluster.gang().streak == ()
    assert cluster.worker().account.steps_redone == 0


def test_by_force_it_begins_anew_from_the_last_commit():
    cluster = running(2)
    cluster.commit(5)
    reason = "restarted by its user, by force"
    assert sent(cluster.again(force=True)) == [StopWorkers((key(0), key(1)), force=True, reason=reason)]
    assert cluster.gang().attempt == 2
    cluster.restart()
    assert (cluster.worker().attempt, cluster.worker().resume_step) == (2, 5)


def test_force_hastens_a_restart_that_waits_for_a_checkpoint():
    cluster = running(2)
    cluster.again()
    assert [stop.force for stop in sent(cluster.again(force=True), StopWorkers)] == [True]
    assert cluster.gang().attempt == 2
    assert cluster.gang().stopping is None


def test_force_hastens_what_is_on_its_way():
    cluster = running(2)
    cluster.exited(key(0), 1)  # rank 1 has its grace
    (stop,) = sent(cluster.again(force=True))
    assert (stop.keys, stop.force) == ((key(1),), True)
    assert cluster.gang().attempt == 2


def test_a_backoff_ends():
    cluster = running(1, backoff_ms=60_000, backoff_cap_ms=60_000)
    cluster.exited(key(0), 1)
    cluster.offer("a", 8001)
    assert deadline(cluster.state) is not None
    assert sent(cluster.again(), StartWorkers)
    assert deadline(cluster.state) is None


def test_ranks_that_are_not_up_have_no_checkpoint_to_take():
    cluster = leading("a")
    cluster.submit(spec(2))
    assert sent(cluster.again(), StopWorkers)[0].force is False
    assert cluster.gang().attempt == 2


def test_what_waits_for_room_goes_on_waiting():
    cluster = leading()
    cluster.submit()
    assert sent(cluster.again()) == []
    assert (cluster.job().state, cluster.gang().attempt) == (JobState.PENDING, 1)


def test_ranks_that_have_finished_stay_so():
    cluster = running(2, Scope.RANK)
    cluster.exited(key(0), 0)
    assert sent(cluster.again(force=True), StopWorkers)[0].keys == (key(1),)
    assert [cluster.gang(rank).attempt for rank in (0, 1)] == [1, 2]


@pytest.mark.parametrize("end", ["failed", "stopped"])
def test_what_has_ended_goes_on_from_its_last_commit(end):
    if end == "failed":
        cluster = failed()
    else:
        cluster = running(2)
        cluster.commit(5)
        cluster.stop(force=True)
        for rank in (0, 1):
            cluster.exited(key(rank), signal=9, at_step=7)
        cluster.offer("a", 8001)
    cluster.now += 10_000
    (start,) = sent(cluster.again(), StartWorkers)
    assert [(a.rank, a.attempt) for a in start.assignments] == [(0, 2), (1, 2)]
    assert start.resume[0].step == 5
    job = cluster.job()
    assert (job.state, job.desired, job.ending, job.force, job.finished_ms) == (
        JobState.STARTING,
        Desired.RUNNING,
        None,
        False,
        0,
    )
    told = cluster.timeline[-1]
    assert told.kind == "JobRestartRequested"
    assert told.outcome == "goes on from step 5"
    assert ("had failed" if end == "failed" else "was stopped") in told.message
    for rank in (0, 1):
        cluster.started(key(rank, 2))
        cluster.exited(key(rank, 2), 0, at_step=20)
    assert cluster.job().state is JobState.SUCCEEDED


def test_its_past_is_not_held_against_it():
    """Budget, crashes in a row and excluded nodes count anew."""
    cluster = running(1, no_progress_limit=2, backoff_ms=0)
    for attempt in (1, 2):
        cluster.offer("a", 8000 + attempt)
        cluster.exited(key(0, attempt), 1)
        if attempt == 1:
            cluster.started(key(0, 2))
    assert cluster.job().state is JobState.FAILED
    cluster.offer("a", 8009)
    cluster.again()
    cluster.started(key(0, 3))
    cluster.offer("a", 8010)
    cluster.exited(key(0, 3), 1)
    assert cluster.job().state is JobState.STARTING
    assert len(cluster.gang().streak) == 1


def test_the_time_in_which_it_had_ended_is_nobody_s():
    cluster = failed()
    ended = cluster.now
    cluster.now += 3_600_000
    cluster.again()
    job = cluster.job()
    numbers = summarize(job, [cluster.gang()], cluster.state.workers_of(job), {}, cluster.now)
    assert numbers.elapsed_ms == ended - job.created_ms


def test_a_request_that_is_sent_again_changes_nothing():
    cluster = failed()
    cluster.again(request="r")
    assert cluster.again(request="r").writes == ()
    cluster.again(request="s", force=True)
    assert cluster.gang().attempt == 3
    assert cluster.again(request="s", force=True).writes == ()


def refusal(cluster: Cluster):
    effects = cluster.again()
    assert effects.writes == ()
    return effects.refusal


def test_what_has_nothing_left_to_do_is_refused():
    cluster = running(1)
    cluster.exited(key(0), 0)
    refused = refusal(cluster)
    assert refused.problem is Problem.FAILED_PRECONDITION
    assert refused.remedy.startswith("submit it anew; with --resume-from j1")


def test_ranks_that_had_finished_when_it_ended_do_not_begin_again():
    cluster = running(2, Scope.RANK)
    cluster.exited(key(0), 0)
    cluster.stop(force=True)
    cluster.exited(key(1), signal=9)
    (start,) = sent(cluster.again(), StartWorkers)
    assert [a.rank for a in start.assignments] == [1]
    assert cluster.worker(0).state is WorkerState.SUCCEEDED


def test_what_is_being_stopped_is_refused():
    cluster = running(1)
    cluster.stop()
    assert refusal(cluster).remedy == "wait until it has ended, then restart it"
    assert leading().again().refusal.problem is Problem.NOT_FOUND
