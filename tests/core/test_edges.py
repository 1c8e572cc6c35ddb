"""The tables of legal edges."""

from dataclasses import replace

import pytest

from holdfast_coordinator.core.edges import JOB_EDGES, NODE_EDGES, WORKER_EDGES, IllegalEdgeError, check
from holdfast_coordinator.core.effects import Effects
from holdfast_coordinator.core.model import LIVE, TERMINAL, JobState, NodeState, WorkerState
from holdfast_coordinator.core.turn import Turn
from tests.core.builders import Cluster, key, running


@pytest.mark.parametrize(
    ("table", "states"), [(JOB_EDGES, JobState), (WORKER_EDGES, WorkerState), (NODE_EDGES, NodeState)]
)
def test_every_state_is_in_its_table_and_can_be_reached(table, states):
    assert set(table) == set(states)
    first = next(iter(states))
    reached, todo = {first}, [first]
    while todo:
        new = table[todo.pop()] - reached
        reached |= new
        todo += sorted(new)
    assert reached == set(states)


def test_what_has_ended_only_begins_anew_and_never_after_success():
    assert JOB_EDGES[JobState.SUCCEEDED] == set()
    anew = {state for state in JobState if JOB_EDGES[state] <= {JobState.PENDING}}
    assert anew == TERMINAL


def test_only_what_lives_can_end():
    ends = {WorkerState.SUCCEEDED, WorkerState.FAILED, WorkerState.LOST}
    assert {state for state in WorkerState if WORKER_EDGES[state] & ends} == LIVE


def test_what_was_told_to_stop_does_not_fail():
    assert WORKER_EDGES[WorkerState.STOPPING] == {
        WorkerState.SUCCEEDED,  # asked to stop at a later step than the one at which it was done
        WorkerState.STOPPED,
        WorkerState.LOST,
    }


def test_a_state_may_be_written_again():
    check(JOB_EDGES, "job j1", JobState.SUCCEEDED, JobState.SUCCEEDED)


@pytest.mark.parametrize(
    ("look", "state"),
    [
        (Cluster.job, JobState.PENDING),
        (Cluster.worker, WorkerState.RUNNING),
        (Cluster.node, NodeState.SUSPECT),
    ],
)
def test_nothing_is_put_that_the_tables_do_not_allow(look, state):
    cluster = running(1)
    cluster.exited(key(0), 0)
    cluster.tick(10_000, "a")
    turn = Turn(cluster.state, cluster.now)
    with pytest.raises(IllegalEdgeError):
        turn.put(replace(look(cluster), state=state))
    assert turn.effects() == Effects()


def test_an_illegal_edge_names_what_and_whence():
    with pytest.raises(IllegalEdgeError, match=r"^job j1 may not go from succeeded to running$"):
        check(JOB_EDGES, "job j1", JobState.SUCCEEDED, JobState.RUNNING)
