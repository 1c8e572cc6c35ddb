"""Goodput, badput, steps."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.account import close_attempt, last_committed, retract, summarize
from holdfast_coordinator.core.model import Account, Commit, Gang, Progress, Scope, Worker, WorkerState
from tests.core.builders import T0, ended, key, running


def dead(last, done, committed_at=None, state=WorkerState.FAILED, alive_ms=1_000, stepping_ms=800):
    progress = Progress(last, done, stepping_ms)
    worker = Worker("j1", 0, 0, state, started_ms=T0, exit=ended(at=T0 + alive_ms), progress=progress)
    return close_attempt(worker, committed_at)


def test_steps_after_the_commit_will_be_done_again():
    assert dead(20, 20, 15).account == Account(20, 5, 1_000, 800, 600)


def test_without_a_commit_all_will_be_done_again():
    assert dead(20, 20).account == Account(20, 20, 1_000, 800, 0)


def test_what_succeeded_is_kept():
    assert dead(20, 20, 15, WorkerState.SUCCEEDED).account == Account(20, 0, 1_000, 800, 800)


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
    assert summary.badput_ms == {"setup": 1_000, "redone": 0, "waiting": 0}


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
    assert summary.badput_ms == {"setup": 2_000 - 600, "redone": 100, "waiting": 500}
    assert summary.goodput == 500 / 2_500
    assert summary.steps_per_second == 40 / 0.6


def test_a_job_that_has_ended_needs_no_more_time():
    cluster = running(2, Scope.RANK)
    cluster.now += 1_000
    cluster.exited(key(0), 0, at_step=50)  # 500 ms in steps
    cluster.now += 1_000
    cluster.exited(key(1), 0, at_step=100)  # 1,000 ms in steps
    workers = cluster.state.workers_of(cluster.job())
    summary = summarize(cluster.job(), [cluster.gang(0), cluster.gang(1)], workers, {}, cluster.now + 10**6)
    assert (summary.elapsed_ms, summary.steps, summary.last_committed_step) == (2_000, 50, None)
    assert summary.badput_ms == {"setup": 1_500, "redone": 0, "waiting": 0}
    assert summary.goodput == 1_500 / 3_000


def test_the_last_committed_step_is_one_that_all_have():
    commit = Commit("j1", 0, 10, 1, T0, 0, 2, ())
    have = Gang("j1", 0, commit=commit)
    later = Gang("j1", 1, commit=replace(commit, step=12))
    assert last_committed([have, later]) == 10
    assert last_committed([have, Gang("j1", 1)]) is None


@given(
    st.integers(0, 100),
    st.integers(0, 100),
    st.none() | st.integers(0, 100),
    st.integers(0, 10**5),
    st.integers(0, 10**5),
)
def test_no_time_is_counted_twice(last, done, committed_at, alive_ms, stepping_ms):
    account = dead(last, done, committed_at, alive_ms=alive_ms, stepping_ms=stepping_ms).account
    assert 0 <= account.kept_ms <= account.stepping_ms <= account.alive_ms
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
