"""Whether and when a gang is restarted."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.jobspec import RestartPolicy
from holdfast_coordinator.core.model import Gang
from holdfast_coordinator.core.restart import GiveUp, Retry, after_exit, after_loss, backoff_ms
from tests.core.builders import T0, ended

POLICY = RestartPolicy(backoff_ms=500, backoff_cap_ms=30_000, jitter=0.0, budget=3)
GANG = Gang("j1", 0)


def decide(gang=GANG, policy=POLICY, best_step=-1, **exit_):
    return after_exit(policy, gang, ended(**exit_), "exit code 1", best_step)


def test_the_first_failure_waits_the_backoff():
    assert decide() == Retry(500, (T0,), "restart 1 of 3 without progress, in 0.5 s")


def test_every_further_one_waits_twice_as_long():
    waits = [decide(replace(GANG, streak=(T0,) * n)).delay_ms for n in range(3)]
    assert waits == [500, 1_000, 2_000]


def test_without_a_backoff_it_starts_at_once():
    assert decide(policy=replace(POLICY, backoff_ms=0)) == Retry(0, (T0,), "restart 1 of 3 without progress")


def test_a_spent_budget_ends_the_job_with_the_cause():
    assert decide(replace(GANG, streak=(T0,) * 3)) == GiveUp(
        "exit code 1; its budget of 3 restarts without progress is spent"
    )


def test_a_budget_of_none_ends_it_at_the_first_failure():
    assert isinstance(decide(policy=replace(POLICY, budget=0)), GiveUp)


def test_progress_clears_the_streak():
    gang = replace(GANG, streak=(T0,) * 3, best_step=10)
    assert decide(gang, best_step=11) == Retry(500, (T0,), "restart 1 of 3 without progress, in 0.5 s")


@pytest.mark.parametrize("reached", [-1, 9, 10])
def test_reaching_what_was_reached_before_is_no_progress(reached):
    assert isinstance(decide(replace(GANG, streak=(T0,) * 3, best_step=10), best_step=reached), GiveUp)


def test_failures_outside_the_window_do_not_count():
    policy = replace(POLICY, window_ms=60_000)
    gang = replace(GANG, streak=(T0 - 60_000, T0 - 59_999, T0 - 1))
    assert decide(gang, policy).streak == (T0 - 59_999, T0 - 1, T0)


def test_what_never_ran_is_never_tried_again():
    assert decide(never_ran=True, best_step=100) == GiveUp("exit code 1; starting it again cannot help")


def test_a_loss_is_not_charged_and_waits_for_nothing():
    gang = replace(GANG, streak=(T0, T0), best_step=10)
    assert after_loss(gang, best_step=10) == Retry(0, (T0, T0), "not charged to the restart budget")


def test_a_loss_after_progress_clears_the_streak_too():
    gang = replace(GANG, streak=(T0, T0), best_step=10)
    assert after_loss(gang, best_step=11).streak == ()


@given(
    st.builds(
        RestartPolicy,
        backoff_ms=st.integers(0, 10**6),
        backoff_cap_ms=st.integers(0, 10**6),
        jitter=st.floats(0, 1),
    ),
    st.integers(0, 10**4),
    st.text(),
)
def test_backoff_stays_in_its_bounds(policy, failures, seed):
    wait = backoff_ms(policy, failures, seed)
    base = min(policy.backoff_cap_ms, policy.backoff_ms * 2 ** min(failures, 40))
    assert 0 <= wait <= policy.backoff_cap_ms
    assert wait >= int(base * (1 - policy.jitter)) - 1
    assert wait == backoff_ms(policy, failures, seed)


def test_jitter_spreads_what_failed_together():
    policy = replace(POLICY, jitter=0.1)
    waits = {backoff_ms(policy, 4, f"j{n}/0/4") for n in range(100)}
    assert len(waits) > 50
    assert min(waits) >= 7_200
    assert max(waits) <= 8_800
