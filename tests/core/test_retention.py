"""Which checkpoints are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.jobspec import Mode, RetentionPolicy
from holdfast_coordinator.core.model import Kept
from holdfast_coordinator.core.retention import metric_of, plan
from tests.core.builders import shard


def kept(*steps, **metrics):
    """Commits of these steps, oldest first; `s20=0.5` gives step 20 a metric."""
    return [Kept(step, metrics.get(f"s{step}")) for step in steps]


def decide(policy, commits, resumed=(), pinned=()):
    made = plan(policy, commits, resumed=resumed, pinned=pinned)
    return [each.step for each in made.stays], list(made.drops)


def test_the_last_stay():
    assert decide(RetentionPolicy(keep_last=2), kept(10, 20, 30, 40)) == ([30, 40], [10, 20])


def test_the_newest_stays_whatever_the_policy_says():
    assert decide(RetentionPolicy(keep_last=0), kept(10, 20)) == ([20], [10])


def test_every_nth_is_kept_and_needs_no_more_looks():
    policy = RetentionPolicy(keep_last=1, keep_every=20)
    assert decide(policy, kept(10, 20, 30, 40)) == ([40], [10, 30])


def test_what_is_pinned_is_kept_and_needs_no_more_looks():
    assert decide(RetentionPolicy(keep_last=1), kept(10, 20, 30), pinned=[10]) == ([30], [20])


def test_what_was_resumed_from_stays_to_be_looked_at_again():
    assert decide(RetentionPolicy(keep_last=1), kept(10, 20, 30), resumed={10}) == ([10, 30], [20])


@pytest.mark.parametrize(("mode", "best"), [(Mode.MIN, 20), (Mode.MAX, 10)])
def test_the_best_by_a_metric_stay(mode, best):
    policy = RetentionPolicy(keep_last=1, best=1, metric="loss", mode=mode)
    stays, _ = decide(policy, kept(10, 20, 30, 40, s10=3.0, s20=1.0, s30=2.0, s40=2.5))
    assert stays == [best, 40]


def test_of_equally_good_ones_the_newer_stays():
    policy = RetentionPolicy(keep_last=1, best=1, metric="loss")
    assert decide(policy, kept(10, 20, 30, s10=1.0, s20=1.0)) == ([20, 30], [10])


def test_what_has_no_metric_is_never_the_best():
    policy = RetentionPolicy(keep_last=1, best=5, metric="loss")
    assert decide(policy, kept(10, 20, 30, s20=9.0)) == ([20, 30], [10])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_no_metric(value):
    policy = RetentionPolicy(best=1, metric="loss")
    assert metric_of(policy, shard(0, loss=value)) is None
    assert metric_of(policy, shard(0, accuracy=0.5)) is None
    assert metric_of(policy, shard(0, loss=0.5)) == 0.5


def test_the_reason_names_the_policy():
    policy = RetentionPolicy(keep_last=3, keep_every=100, best=2, metric="accuracy", mode=Mode.MAX)
    said = "kept are the last 3, every 100 steps, the best 2 by accuracy (max)"
    assert plan(policy, kept(1), resumed=(), pinned=()).reason == said


METRICS = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@given(
    policy=st.builds(
        RetentionPolicy,
        st.integers(1, 3),
        st.sampled_from([0, 3]),
        st.integers(0, 2),
        mode=st.sampled_from(Mode),
    ),
    commits=st.lists(METRICS, min_size=1, max_size=40),
    resumed=st.sets(st.integers(1, 40), max_size=2),
    pinned=st.sets(st.integers(1, 40), max_size=2),
)
def test_commit_by_commit_what_is_held_is_never_dropped_and_the_list_stays_short(
    policy, commits, resumed, pinned
):
    looked_at, dropped = [], set()
    for step, metric in enumerate(commits, 1):
        made = plan(policy, [*looked_at, Kept(step, metric)], resumed=resumed, pinned=pinned)
        looked_at = list(made.stays)
        dropped |= set(made.drops)
        assert len(looked_at) <= policy.keep_last + policy.best + len(resumed)
        newest = range(max(1, step - policy.keep_last + 1), step + 1)
        assert not dropped & {*newest, *resumed, *pinned}
        assert not [each for each in dropped if policy.keep_every and each % policy.keep_every == 0]
    sign = 1 if policy.mode is Mode.MIN else -1
    rated = sorted((sign * metric, -step) for step, metric in enumerate(commits, 1) if metric is not None)
    assert not dropped & {-step for _, step in rated[: policy.best]}
    everything = set(range(1, len(commits) + 1))
    held = {*resumed, *pinned} | {n for n in everything if policy.keep_every and n % policy.keep_every == 0}
    assert len(everything - dropped - held) <= policy.keep_last + policy.best
