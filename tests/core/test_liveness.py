"""When a node is presumed alive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.liveness import fresh_lease_ms, heartbeat_interval_ms, judge
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


@given(st.integers(-(10**6), 10**6), st.integers(0, 10**6), st.booleans())
def test_more_silence_never_makes_a_node_better(silent_ms, more_ms, connected):
    order = [NodeState.READY, NodeState.SUSPECT, NodeState.LOST]
    before, _ = judge(silent_ms, connected=connected, settings=SETTINGS)
    after, _ = judge(silent_ms + more_ms, connected=connected, settings=SETTINGS)
    assert order.index(after) >= order.index(before)


def test_a_broken_stream_alone_never_loses_a_node():
    verdict, _ = judge(SETTINGS.lost_after_ms - 1, connected=False, settings=SETTINGS)
    assert verdict is NodeState.SUSPECT


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
