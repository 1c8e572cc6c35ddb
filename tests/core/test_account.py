"""Goodput, badput, steps."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.account import close_attempt, last_committed, retract, summarize
from holdfast_coordinator.core.jobspec import Scope
from holdfast_coordinator.core.model import Account, Commit, Gang, Progress, Worker, WorkerState
from tests.core.builders import T0, ended, key, leading, running, spec


def dead(last, done, committed_at=None, state=WorkerState.FAILED, alive_ms=1_000, stepping_ms=800):
    progress = Progress(last, done, stepping_ms)
    worker = Worker("j1", 0, 0, state, started_ms=T0, exit=ended(at=T0 + alive_ms), progress=progress)
    return close_attempt(worker, committed_at)


def account_of(stepping, kept, redone=0):
    return Account(20, redone, alive_ms=1_000, setup_ms=1_000 - stepping, stepping_ms=stepping, kept_ms=kept)


def test_steps_after_the_commit_will_be_done_again():
    assert dead(20, 20, 15).account == account_of(800, 600, redone=5)


def test_without_a_commit_all_will_be_done_again():
    assert dead(20, 20).account == account_of(800, 0, redone=20)


def test_what_succeeded_is_kept():
    assert dead(20, 20, 15, WorkerState.SUCCEEDED).account == account_of(800, 800)


def parts(summary):
    """Where its time went, and that no more and no less of it did."""
    assert sum(summary.time_ms.values()) == summary.elapsed_ms
    return {name: ms for name, ms in summary.time_ms.items() if ms}


def test_an_attempt_is_counted_once():
    closed = dead(20, 20, 15)
    assert close_attempt(closed, 15) == closed


def test_a_live_attempt_is_not_counted():
    worker = Worker("j1", 0, 0, WorkerState.RUNNING, started_ms=T0)
    assert close_attempt(worker, None) == worker


def test_a_program_that_reports_no_steps_has_no_goodput():
    cluster = running(1)
    cluster.now += 1_000
    summary = summarize(cluster.job(), [cluster.gang()], [cluster.worker()], {}, cluster.now)
    assert (summary.goodput, summary.steps, summary.elapsed_ms) == (None, None, 1_000)
    assert parts(summary) == {"setup": 1_000}


def test_a_run_with_a_restart():
    cluster = running(1, backoff_ms=500)
    cluster.prepare(key(0), 10)
    cluster.now += 1_000
    cluster.exited(key(0), 1, at_step=20)  # 200 ms in steps
    cluster.tick(500)
    cluster.now += 1_000
    running_now = {0: Progress(30, 20, 400)}
    summary = summarize(cluster.job(), [cluster.gang()], [cluster.worker()], running_now, cluster.now)
    assert summary.restarts == 1
    assert (summary.steps, summary.steps_redone, summary.last_committed_step) == (30, 10, 10)
    assert parts(summary) == {"setup": 2_000 - 600, "kept": 500, "redone": 100, "restart": 500}
    assert summary.goodput == 500 / 2_500
    assert summary.steps_per_second == 40 / 0.6


def test_what_is_no_step_is_told_apart():
    progress = Progress(20, 20, 700, setup_ms=100, checkpoint_ms=150, other_ms=30, aside_ms=120)
    worker = Worker(
        "j1", 0, 0, WorkerState.FAILED, started_ms=T0, exit=ended(at=T0 + 1_000), progress=progress
    )
    account = close_attempt(worker, 10).account
    assert account == Account(
        steps_done=20,
        steps_redone=10,
        alive_ms=1_000,
        setup_ms=100,
        stepping_ms=580 + 140,  # the last 140 in a step that did not end
        kept_ms=290,
        checkpoint_ms=150,
        other_ms=30,
    )
    succeeded = close_attempt(replace(worker, state=WorkerState.SUCCEEDED), 10).account
    assert (succeeded.stepping_ms, succeeded.kept_ms, succeeded.other_ms) == (580, 580, 170)


def test_who_left_when_it_was_asked_to_has_lost_nothing():
    progress = Progress(20, 20, 700, setup_ms=100)
    stopped = Worker(
        "j1", 0, 0, WorkerState.STOPPED, started_ms=T0, exit=ended(0, at=T0 + 1_000), progress=progress
    )
    account = close_attempt(stopped, 20).account
    assert (account.steps_redone, account.stepping_ms, account.kept_ms) == (0, 700, 700)
    assert account.other_ms == 200


def test_not_moving_is_no_step():
    progress = Progress(20, 20, 700, setup_ms=100)
    hung = replace(ended(at=T0 + 5_000), hung_ms=4_200)
    worker = Worker("j1", 0, 0, WorkerState.STOPPED, started_ms=T0, exit=hung, progress=progress)
    account = close_attempt(worker, None).account
    assert (account.setup_ms, account.stepping_ms, account.hang_ms) == (100, 700, 4_200)


def test_waiting_for_room_is_told_from_restarting():
    cluster = leading()
    cluster.submit(spec(1))
    cluster.now += 3_000
    assert parts(summary_of(cluster)) == {"waiting": 3_000}
    cluster.join("a")
    cluster.started(key(0))
    cluster.now += 1_000
    assert parts(summary_of(cluster)) == {"waiting": 3_000, "setup": 1_000}
    cluster.stop()
    cluster.exited(key(0), 0, signal=15)
    assert parts(summary_of(cluster)) == {"waiting": 3_000, "setup": 1_000}


def test_a_job_that_is_stopped_while_it_waits_waited():
    cluster = leading()
    cluster.submit(spec(1))
    cluster.now += 3_000
    cluster.stop()
    cluster.now += 10**6
    assert parts(summary_of(cluster)) == {"waiting": 3_000}


def test_how_long_it_will_take():
    cluster = running(2, Scope.RANK)
    cluster.now += 1_000
    running_now = {rank: Progress(100, 100, 1_000, total_steps=500) for rank in (0, 1)}
    running_now[1] = replace(running_now[1], step=50, steps_done=50, metrics={"loss": 1.0})
    running_now[0] = replace(running_now[0], metrics={"loss": 3.0, "lr": 0.1})
    summary = summary_of(cluster, running_now)
    assert (summary.steps, summary.total_steps) == (50, 500)
    assert summary.left_ms == round(450 / 75 * 1_000)  # 75 steps a second a rank
    assert summary.metrics == {"loss": 2.0, "lr": 0.1}


def summary_of(cluster, running_now=None):
    job = cluster.job()
    workers, gangs = cluster.state.workers_of(job), cluster.state.gangs_of(job)
    return summarize(job, gangs, workers, running_now or {}, cluster.now)


def test_a_job_that_has_ended_needs_no_more_time():
    cluster = running(2, Scope.RANK)
    cluster.now += 1_000
    cluster.exited(key(0), 0, at_step=50)  # 500 ms in steps
    cluster.now += 1_000
    cluster.exited(key(1), 0, at_step=100)  # 1,000 ms in steps
    workers = cluster.state.workers_of(cluster.job())
    summary = summarize(cluster.job(), [cluster.gang(0), cluster.gang(1)], workers, {}, cluster.now + 10**6)
    assert (summary.elapsed_ms, summary.steps, summary.last_committed_step) == (2_000, 50, None)
    assert parts(summary) == {"kept": 750, "setup": 750, "finished": 500}
    assert summary.goodput == 1_500 / 3_000


def test_the_last_committed_step_is_one_that_all_have():
    commit = Commit("j1", 0, 10, 1, T0, 0, 2, ())
    have = Gang("j1", 0, commit=commit)
    later = Gang("j1", 1, commit=replace(commit, step=12))
    assert last_committed([have, later]) == 10
    assert last_committed([have, Gang("j1", 1)]) is None


@given(
    st.builds(
        Progress,
        step=st.integers(0, 100),
        steps_done=st.integers(0, 100),
        **{
            name: st.integers(0, 2 * 10**5)
            for name in ("stepping_ms", "setup_ms", "checkpoint_ms", "other_ms", "aside_ms")
        },
    ),
    st.none() | st.integers(0, 100),
    st.integers(0, 10**5),
    st.sampled_from([WorkerState.FAILED, WorkerState.SUCCEEDED]),
)
def test_no_time_is_counted_twice_and_none_is_lost(progress, committed_at, alive_ms, state):
    worker = Worker("j1", 0, 0, state, started_ms=T0, exit=ended(at=T0 + alive_ms), progress=progress)
    account = close_attempt(worker, committed_at).account
    assert 0 <= account.kept_ms <= account.stepping_ms
    spent = account.stepping_ms + account.setup_ms + account.checkpoint_ms + account.other_ms
    assert spent == account.alive_ms == alive_ms
    assert 0 <= account.steps_redone <= account.steps_done


@given(
    st.integers(0, 100),
    st.integers(0, 100),
    st.none() | st.integers(0, 100),
    st.integers(0, 10**5),
    st.lists(st.none() | st.integers(0, 200), max_size=3),
)
def test_what_is_taken_back_is_done_again_and_never_twice(last, done, committed_at, stepping_ms, lost):
    worker = before = dead(last, done, committed_at, alive_ms=10**5, stepping_ms=stepping_ms)
    for steps in lost:
        worker = retract(worker, steps)
    account = worker.account
    taken = account.steps_redone - before.account.steps_redone
    wanted = done if None in lost else sum(steps for steps in lost if steps is not None)
    assert taken == min(wanted, done - before.account.steps_redone)
    assert 0 <= account.kept_ms <= before.account.kept_ms
    assert (account.steps_redone < account.steps_done) or not account.kept_ms
