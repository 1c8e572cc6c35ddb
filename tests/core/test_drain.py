"""Nodes that are cordoned and drained: what takes no new work, what moves, and what it costs."""

import pytest

from holdfast_coordinator.core.effects import AskStop, Problem, StartWorkers, StopWorkers
from holdfast_coordinator.core.events import Notice
from holdfast_coordinator.core.jobspec import Scope
from holdfast_coordinator.core.model import JobState, WorkerState
from tests.core.builders import found, key, leading, running, sent, spec


def moved(cluster, at_step, *ranks, attempt=1):
    """Have these ranks stop as they should."""
    for rank in ranks:
        cluster.answer(key(rank, attempt), at_step)
    for rank in ranks:
        cluster.prepare(key(rank, attempt), at_step)
    for rank in ranks:
        effects = cluster.exited(key(rank, attempt), 0, at_step=at_step)
    return effects


@pytest.mark.parametrize("request_of", ["cordon", "uncordon", "drain", "forget"])
def test_a_node_that_is_unknown(request_of):
    refusal = getattr(leading("a"), request_of)("x").refusal
    assert (refusal.problem, refusal.message) == (Problem.NOT_FOUND, "there is no node x")


def test_a_cordoned_node_takes_no_new_work_and_keeps_what_it_has():
    cluster = running(1, nodes=("a",))
    assert sent(cluster.cordon("a", "maintenance")) == []
    cluster.submit(spec(1), "j2")
    assert cluster.job("j2").reason == (
        "waits for room: no node takes work: 1 that is ready is cordoned; uncordon one, or start an agent"
    )
    assert cluster.worker().state is WorkerState.RUNNING
    cluster.uncordon("a")
    assert cluster.worker(job="j2").state is WorkerState.STARTING


def test_asking_twice_changes_nothing():
    cluster = running(1, nodes=("a", "b"))
    for ask in (cluster.cordon, cluster.drain, cluster.uncordon):
        ask("a")
        assert ask("a").writes == ()


def test_of_two_deadlines_the_earlier_stands():
    cluster = running(1, nodes=("a", "b"))
    cluster.drain("a", 100_000)
    before = cluster.gang().stopping
    assert cluster.drain("a", 200_000).writes == ()
    effects = cluster.drain("a", 20_000)
    now = cluster.gang().stopping
    assert (now.term_ms, now.kill_ms) == (before.asked_ms + 15_000, before.asked_ms + 20_000)
    assert sent(effects) == [AskStop((key(0),), "node drain", 15_000, None)]


def test_a_drained_node_stays_so_when_asked_again():
    cluster = leading("a")
    cluster.drain("a")
    assert cluster.node("a").cordon.drained
    cluster.tick(60_000)
    cluster.drain("a", 1_000)
    assert cluster.node("a").cordon.drained
    assert cluster.kinds().count("NodeDrained") == 1


def test_a_gang_moves_whole_and_free_of_charge():
    cluster = running(2, nodes=("a", "b"), budget=0)
    cluster.drain(cluster.where(key(0)), reason="new disks")
    (started,) = sent(moved(cluster, 7, 0, 1), StartWorkers)
    assert [commit.step for commit in started.resume] == [7]
    assert (cluster.gang().attempt, cluster.gang().streak) == (2, ())
    assert cluster.worker(0).account.steps_redone == 0
    assert cluster.gang().cause == "node a is drained by its user: new disks"
    assert cluster.node("a").cordon.drained


def test_who_is_signalled_and_comes_back_has_the_grace_that_it_was_given():
    cluster = running(1, nodes=("a",))
    cluster.drain("a")
    assert sent(cluster.answer(key(0), None), StopWorkers)[0].restart is False
    cluster.lose_stream()
    (again,) = sent(cluster.join("a", (found(key(0)),)), StopWorkers)
    assert (again.keys, again.restart) == ((key(0),), False)


def test_ranks_that_are_alone_move_alone():
    cluster = leading("a", "b", "c")
    cluster.submit(spec(6, Scope.RANK))
    for rank in range(6):
        cluster.started(key(rank))
    there = [rank for rank in range(6) if cluster.where(key(rank)) == "b"]
    (ask,) = sent(cluster.drain("b"), AskStop)
    assert ask.keys == tuple(key(rank) for rank in there)
    moved(cluster, 3, *there)
    assert all(cluster.worker(rank).attempt == (2 if rank in there else 1) for rank in range(6))
    assert cluster.job().state is JobState.STARTING


def test_what_is_starting_there_has_nothing_to_save_and_moves_at_once():
    cluster = leading("a", "b")
    cluster.submit(spec(2))
    effects = cluster.drain(cluster.where(key(0)))
    assert sent(effects, StopWorkers)[0].keys == (key(0), key(1))
    assert cluster.gang().attempt == 2


def test_one_that_does_not_listen_moves_all_the_same():
    cluster = running(1, nodes=("a", "b"))
    cluster.commit(5)
    cluster.drain(cluster.where(key(0)))
    effects = cluster.answer(key(0), None)
    assert sent(effects, StopWorkers) == [StopWorkers((key(0),), force=False, reason=cluster.gang().cause)]
    (started,) = sent(cluster.exited(key(0), signal=15), StartWorkers)
    assert [commit.step for commit in started.resume] == [5]


def test_one_that_ends_badly_meanwhile_moves_all_the_same():
    cluster = running(2, nodes=("a", "b"), budget=0)
    cluster.drain("a")
    stops = sent(cluster.exited(key(0), signal=11), StopWorkers)
    assert [stop.keys for stop in stops] == [(key(1),)]
    cluster.exited(key(1), signal=15)
    assert cluster.worker(0).node == "b"
    assert cluster.gang().streak == ()


def test_one_that_is_done_before_it_should_stop_has_succeeded():
    cluster = running(1, nodes=("a", "b"))
    cluster.drain("a")
    cluster.answer(key(0), 9)
    cluster.exited(key(0), 0, at_step=8)
    assert cluster.job().state is JobState.SUCCEEDED


def test_one_that_ends_where_it_should_without_a_checkpoint_goes_on_elsewhere():
    cluster = running(1, nodes=("a", "b"))
    cluster.drain("a")
    cluster.answer(key(0), 9)
    (started,) = sent(cluster.exited(key(0), 0, at_step=9), StartWorkers)
    assert started.resume == ()


def test_a_job_that_is_stopped_meanwhile_goes_nowhere():
    cluster = running(1, nodes=("a", "b"))
    cluster.drain("a", 3_600_000)
    effects = cluster.stop()
    assert sent(effects) == [AskStop((key(0),), "job stop", 22_500, None)]
    moved(cluster, 9, 0)
    assert (cluster.job().state, cluster.worker().attempt) == (JobState.STOPPED, 1)


def test_a_node_that_is_lost_and_comes_back_is_still_cordoned():
    cluster = running(1, nodes=("a", "b"))
    cluster.cordon("a", "maintenance")
    cluster.tick(10_000, "a")
    cluster.join("a", boot_id="boot-2")
    assert cluster.node("a").cordon.reason == "maintenance"


def test_a_notice_ends_with_the_agent_that_had_it():
    cluster = running(1, nodes=("a", "b"))
    ask = AskStop((key(0),), "spot notice: terminate", 22_500, None)
    assert sent(cluster.notice("a", "spot notice: terminate", 30_000)) == [ask]
    cluster.lose_stream("a")
    effects = cluster.join("a", (found(key(0)),), notice=Notice("spot notice: terminate", 29_500))
    assert cluster.node("a").cordon.draining
    assert sent(effects, AskStop) == [ask]
    cluster.join("a")
    assert cluster.node("a").cordon is None


def test_a_notice_that_comes_with_the_hello_drains():
    cluster = leading("a")
    cluster.join("b", notice=Notice("spot notice", 30_000))
    assert cluster.node("b").cordon.drained
    cluster.submit(spec(1))
    assert cluster.where(key(0)) == "a"


def test_what_its_user_cordoned_outlasts_a_notice():
    cluster = leading("a")
    cluster.cordon("a", "maintenance")
    cluster.notice("a")
    cluster.join("a")
    assert cluster.node("a").cordon is not None
    cluster.uncordon("a")
    cluster.notice("a")
    cluster.cordon("a", "mine now")
    cluster.join("a")
    assert cluster.node("a").cordon.reason == "mine now"


def test_a_node_with_strays_is_not_drained_yet():
    cluster = running(1, nodes=("a", "b"))
    old = cluster.where(key(0))
    other = {"a": "b", "b": "a"}[old]
    cluster.tick(10_000, old)
    assert cluster.where(key(0)) == other
    cluster.join(old, (found(key(0)),))
    cluster.drain(old)
    assert cluster.node(old).cordon.draining
    cluster.exited(key(0), signal=9, node=old)
    assert cluster.node(old).cordon.drained
