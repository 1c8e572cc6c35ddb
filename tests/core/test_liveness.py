"""When a node is presumed alive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.liveness import fresh_lease_ms, gone_after, heartbeat_interval_ms, judge
from holdfast_coordinator.core.model import NodeState
from holdfast_coordinator.core.state import Settings

SETTINGS = Settings(lost_after_ms=10_000, suspect_after_ms=5_000)


@pytest.mark.parametrize(
    ("silent_ms", "connected", "verdict", "reason"),
    [
        (0, True, NodeState.READY, "heard from"),
        (4_999, True, NodeState.READY, "heard from"),
        (5_000, True, NodeState.SUSPECT, "not heard from for 5.0 s"),
        (0, False, NodeState.SUSPECT, "its stream broke"),
        (9_999, False, NodeState.SUSPECT, "its stream broke"),
        (10_000, True, NodeState.LOST, "not heard from for 10.0 s"),
        (10_000, False, NodeState.LOST, "not heard from for 10.0 s"),
        (99_990, True, NodeState.LOST, "not heard from for 100.0 s"),
        (-3_000, True, NodeState.READY, "heard from"),
    ],
)
def test_judge(silent_ms, connected, verdict, reason):
    assert judge(silent_ms, connected=connected, settings=SETTINGS) == (verdict, reason)


@given(st.integers(-(10**6), 10**6), st.integers(0, 10**6), st.booleans(), st.integers(0, 12_000))
def test_more_silence_never_makes_a_node_better(silent_ms, more_ms, connected, gone_after_ms):
    order = [NodeState.READY, NodeState.SUSPECT, NodeState.LOST]
    given = {"connected": connected, "settings": SETTINGS, "gone_after_ms": gone_after_ms}
    before, _ = judge(silent_ms, **given)
    after, _ = judge(silent_ms + more_ms, **given)
    assert order.index(after) >= order.index(before)


def test_a_broken_stream_alone_never_loses_a_node():
    verdict, _ = judge(SETTINGS.lost_after_ms - 1, connected=False, settings=SETTINGS)
    assert verdict is NodeState.SUSPECT


@pytest.mark.parametrize(
    ("silent_ms", "connected", "gone_after_ms", "verdict"),
    [
        (2_499, False, 2_500, NodeState.SUSPECT),
        (2_500, False, 2_500, NodeState.LOST),
        (2_500, True, 2_500, NodeState.READY),
        (9_999, False, 0, NodeState.SUSPECT),
        (10_000, False, 60_000, NodeState.LOST),
    ],
)
def test_whose_workers_end_with_its_agent_is_lost_soon_when_its_stream_broke(
    silent_ms, connected, gone_after_ms, verdict
):
    assert judge(silent_ms, connected=connected, settings=SETTINGS, gone_after_ms=gone_after_ms)[0] is verdict


@pytest.mark.parametrize(
    ("silent_ms", "lost_after_ms", "silence"),
    [
        (0, 10_000, 2_000),
        (900, 10_000, 2_900),  # its time is counted from the break
        (-500, 10_000, 2_000),  # heard from in a lease that a new leader gave
        (4_999, 10_000, 6_999),
        (5_000, 10_000, 0),  # it was silent before: that is a network
        (4_999, 60_000, 6_999),
        (5_000, 60_000, 0),
        (15_000, 60_000, 0),  # given up by a keepalive
    ],
)
def test_a_stream_that_broke_in_silence_says_nothing(silent_ms, lost_after_ms, silence):
    settings = Settings(lost_after_ms=lost_after_ms, suspect_after_ms=lost_after_ms // 2, gone_after_ms=2_000)
    assert gone_after(silent_ms, settings) == silence


def test_a_fresh_lease_grows_with_the_fleet():
    assert [fresh_lease_ms(nodes) for nodes in (0, 1, 10_000)] == [0, 1, 10_000]


def test_heartbeats_slow_down_as_the_fleet_grows():
    assert [heartbeat_interval_ms(n) for n in (0, 1, 100, 5_000, 10_000, 10**6)] == [
        1_000,
        1_000,
        1_040,
        3_000,
        5_000,
        5_000,
    ]
