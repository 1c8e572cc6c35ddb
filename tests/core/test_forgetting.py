"""Lost nodes that are forgotten: which, when, and what an agent finds that comes back all the same."""

import pytest

from holdfast_coordinator.core.effects import Problem, ReleaseWorkers, StopWorkers
from holdfast_coordinator.core.events import WorkerExited
from holdfast_coordinator.core.jobspec import Action, Rule
from holdfast_coordinator.core.model import NodeState, WorkerState
from holdfast_coordinator.core.state import Settings, State
from tests.core.builders import Cluster, ended, found, key, leading, running, sent, spec

DAY_MS = 24 * 3_600_000


def lost(*others: str, **kwargs) -> Cluster:
    """A cluster in which node a has been lost, and the others are well."""
    cluster = leading("a", *others, **kwargs)
    cluster.tick(10_000, "a")
    return cluster


def test_a_lost_node_is_forgotten_when_its_user_says_so():
    cluster = lost("b")
    cluster.forget()
    assert set(cluster.state.nodes) == {"b"}
    told = cluster.timeline[-1]
    assert (told.kind, told.node) == ("NodeForgotten", "a")
    assert told.message == "by its user; it was lost: not heard from for 10.0 s"


@pytest.mark.parametrize("state", [NodeState.READY, NodeState.SUSPECT])
def test_no_other_node_is(state):
    cluster = running(1)
    if state is NodeState.SUSPECT:
        cluster.lose_stream()
    effects = cluster.forget()
    assert effects.writes == ()
    assert effects.refusal.problem is Problem.FAILED_PRECONDITION
    assert effects.refusal.message == f"node a is {state}, not lost"


def test_what_comes_back_is_new_and_what_it_still_runs_is_told_to_stop():
    cluster = running(2, nodes=("a", "b"))
    assert cluster.where(key(0)) == "a"
    cluster.tick(10_000, "a")
    cluster.forget()
    late = cluster.do(WorkerExited(cluster.now, "a", "s1", key(0), ended()))
    assert late.reason == "session s1 does not speak for node a"
    cluster.started(key(0, 2))
    effects = cluster.join("a", (found(key(0)), found(key(1), ended())))
    assert sent(effects, StopWorkers)[0].keys == (key(0),)
    assert sent(effects, ReleaseWorkers) == [ReleaseWorkers((key(1),))]
    assert cluster.node().strays == (key(0),)
    assert (cluster.worker().attempt, cluster.worker().node) == (2, "b")
    assert cluster.prepare(key(0), 7, node="a").writes == ()
    cluster.exited(key(0), node="a")
    assert cluster.node().strays == ()


def test_it_is_forgotten_by_itself_when_it_has_been_lost_for_a_day():
    cluster = lost("b")
    cluster.tick(DAY_MS - 1, "a")
    assert cluster.node().state is NodeState.LOST
    cluster.tick(1, "a")
    assert set(cluster.state.nodes) == {"b"}
    assert cluster.timeline[-1].message == "lost for 24.0 h: not heard from for 10.0 s"


def test_a_coordinator_that_is_started_again_does_not_begin_to_count_anew():
    cluster = lost()
    cluster.tick(DAY_MS // 2, "a")
    cluster.restart_coordinator()
    cluster.tick(DAY_MS // 2, "a")
    assert not cluster.state.nodes


def test_a_clock_set_back_does_not_keep_it_for_ever():
    cluster = lost()
    cluster.now -= 10 * DAY_MS
    cluster.restart_coordinator()
    cluster.tick(DAY_MS, "a")
    assert not cluster.state.nodes


def test_never_means_never_but_for_its_user():
    cluster = lost(state=State(Settings(forget_after_ms=0)))
    cluster.tick(1_000 * DAY_MS, "a")
    assert cluster.node().state is NodeState.LOST
    cluster.forget()
    assert not cluster.state.nodes


def test_one_that_its_user_cordoned_is_kept_until_he_says_so():
    cluster = lost()
    cluster.cordon(reason="new disks")
    cluster.tick(DAY_MS, "a")
    assert cluster.node().cordon.reason == "new disks"
    cluster.uncordon()
    cluster.tick(0, "a")
    assert not cluster.state.nodes


def test_one_whose_agent_said_that_it_would_go_is_not_kept():
    """Spot machines and pods always say so."""
    cluster = leading("a")
    cluster.notice()
    cluster.tick(10_000, "a")
    cluster.tick(DAY_MS, "a")
    assert not cluster.state.nodes


def test_that_a_gang_avoided_it_is_forgotten_too():
    cluster = running(1, nodes=("a", "b"), rules=(Rule(Action.EXCLUDE_NODE),))
    cluster.exited(key(0))
    assert set(cluster.gang().excluded) == {"a"}
    cluster.tick(10_000, "a")
    cluster.forget()
    assert not cluster.gang().excluded
    assert cluster.timeline[-1].message.startswith("node a is forgotten, and no longer excluded")


def test_a_job_that_ran_there_lives_on():
    cluster = running(1)
    cluster.tick(10_000, "a")
    cluster.forget()
    cluster.tick(DAY_MS, "a")
    assert cluster.worker().state is WorkerState.WAITING
    cluster.join("a")
    assert cluster.worker().key == key(0, 2)
    assert cluster.worker().state is WorkerState.STARTING
    cluster.submit(spec(1), "j2")
    assert cluster.where(key(0)) == "a"
