"""Who is slower than its peers: nobody for noise, whoever is by much; marked while it lasts, with strikes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.events import StepsCompared
from holdfast_coordinator.core.model import Progress, Scope, StragglerPolicy
from holdfast_coordinator.core.stragglers import MOST_SCORE, Paces, scores, worth_telling
from tests.core.builders import key, running

THRESHOLD = StragglerPolicy().threshold


def of(*step_ms):
    return {key(rank): float(ms) for rank, ms in enumerate(step_ms)}


def slow(*step_ms):
    return [k.rank for k, score in scores(of(*step_ms)).items() if score >= THRESHOLD]


@pytest.mark.parametrize(
    ("step_ms", "ranks"),
    [
        ((100,), []),
        ((), []),
        ((100, 100), []),
        ((100, 170), []),  # of two the ratio decides, and a clear one
        ((100, 176), [1]),
        ((100, 100, 176), [2]),
        ((100, 129, 100, 100, 100), []),
        ((100, 131, 100, 100, 100), [1]),
        ((100, 101, 99, 250, 100, 300), [3, 5]),
        ((50, 150, 60, 140, 70, 130, 80, 160), []),  # where all differ, nobody stands out
        ((1, 100, 100, 100, 100), []),  # a fast one is no straggler
        ((0, 0, 0), []),
    ],
)
def test_who_stands_out(step_ms, ranks):
    assert slow(*step_ms) == ranks


@given(st.lists(st.floats(0.9, 1.1), min_size=2, max_size=40), st.floats(1e-3, 1e6))
def test_nobody_stands_out_for_noise(noise, usual):
    assert slow(*(usual * each for each in noise)) == []


@given(st.lists(st.floats(0.95, 1.05), min_size=4, max_size=40), st.floats(2, 1e9), st.floats(1e-3, 1e6))
def test_whoever_takes_twice_as_long_always_does(noise, times, usual):
    assert slow(*(usual * each for each in noise), usual * times) == [len(noise)]
    assert max(scores(of(*(usual * each for each in noise), usual * times)).values()) <= MOST_SCORE


def test_a_window_compares_what_was_done_in_it():
    paces = Paces(1_000)
    first = {key(0): Progress(10, 10, 1_000), key(1): Progress(10, 10, 1_000), key(2): Progress()}
    assert paces.turn_over(2_000, first) == {}
    second = {
        key(0): Progress(20, 20, 2_000),
        key(1): Progress(12, 12, 9_000),  # of two steps nothing is said
        key(2): Progress(50, 50, 500),  # its first steps are none to compare
        key(3): Progress(50, 50, 500),
    }
    assert paces.turn_over(3_000, second) == {key(0): 100.0}
    assert paces.began_ms == 3_000
    third = {
        key(0, 2): Progress(90, 90, 9_000),
        key(2): Progress(60, 60, 700),
        key(1): Progress(12, 12, 9_000),
    }
    assert paces.turn_over(4_000, third) == {key(2): 20.0}


def test_what_a_rank_waits_for_others_is_no_time_of_its_own():
    """In a synchronous gang all step times are those of the slowest."""
    paces = Paces(0)
    paces.turn_over(1_000, {key(rank): Progress(10, 10, 1_000, waiting_ms=500) for rank in range(4)})
    later = {key(rank): Progress(20, 20, 2_000, waiting_ms=1_300 if rank else 520) for rank in range(4)}
    step_ms = paces.turn_over(2_000, later)
    assert step_ms == {key(0): 98.0, key(1): 20.0, key(2): 20.0, key(3): 20.0}
    assert [k for k, score in scores(step_ms).items() if score > THRESHOLD] == [key(0)]


# In the job


def compared(cluster, *step_ms, attempt=1):
    found = {key(rank, attempt): float(ms) for rank, ms in enumerate(step_ms)}
    workers = cluster.state.workers_of(cluster.job())
    told = worth_telling(cluster.job(), workers, found)
    effects = cluster.do(StepsCompared(cluster.now, "j1", found))
    assert told or not effects.writes
    return [entry for entry in cluster.timeline if entry.kind.startswith("Straggler")]


def test_a_straggler_is_told_once_and_marked_until_it_is_none():
    cluster = running(3, Scope.RANK)
    compared(cluster, 100, 100, 300)
    told = compared(cluster, 100, 100, 200)
    assert [entry.message for entry in told] == [
        "rank 2 on node a is slow: 300 ms a step, the median is 100 ms; score 8.0"
    ]
    assert (cluster.worker(2).straggler.score, cluster.worker(2).straggler.strikes) == (4.0, 2)
    told = compared(cluster, 100, 100, 110)
    assert told[-1].kind == "StragglerOver"
    assert (cluster.worker(2).straggler.score, cluster.worker(2).straggler.strikes) == (None, 2)
    assert len(compared(cluster, 100, 100, 110)) == 2


def test_strikes_are_counted_and_told_until_there_are_enough():
    cluster = running(3, Scope.RANK, stragglers=StragglerPolicy(strikes=2))
    for _ in range(4):
        told = compared(cluster, 100, 100, 300)
    assert [entry.message.rpartition(" ms; ")[2] for entry in told] == [
        "score 8.0, strike 1 of 2",
        "score 8.0, strike 2 of 2",
        "rank 2 on node a was slow in 2 windows",
    ]
    assert told[-1].outcome == "it stays: there is no room without its node"
    assert [entry.kind for entry in told] == ["StragglerNoticed", "StragglerNoticed", "StragglerStruckOut"]


def test_with_the_last_strike_the_node_is_left_at_no_cost_to_the_budget():
    cluster = running(2, Scope.RANK, nodes=("a", "b"), stragglers=StragglerPolicy(strikes=1))
    home = cluster.worker(1).node
    compared(cluster, 100, 300)
    gang = cluster.gang(1)
    assert (list(gang.excluded), gang.attempt, gang.streak) == ([home], 2, ())
    cluster.exited(key(1), signal=15)
    assert cluster.worker(1).node not in ("", home)
    assert cluster.worker(0).attempt == 1


def test_strikes_stay_with_the_node():
    for nodes in (("a",), ("a", "b")):
        cluster = running(2, Scope.RANK, nodes=nodes, backoff_ms=0)
        compared(cluster, 100, 300)
        home = cluster.worker(1).node
        if len(nodes) == 2:
            cluster.tick(20_000, home)
        else:
            cluster.exited(key(1), 1)
        cluster.tick(1_000, home if len(nodes) == 2 else "")
        worker = cluster.worker(1)
        assert (worker.attempt, worker.node == home) == (2, len(nodes) == 1)
        assert (worker.straggler.score, worker.straggler.strikes) == (None, len(nodes) == 1)


def test_a_window_of_what_is_over_marks_nobody():
    cluster = running(2, Scope.RANK, backoff_ms=0)
    assert compared(cluster, 100, 300, attempt=3) == []
    cluster.stop()
    assert compared(cluster, 100, 300) == []
    assert cluster.do(StepsCompared(cluster.now, "gone", of(1, 9))).reason
