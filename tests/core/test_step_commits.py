"""Prepared shards, commits, acks."""

from holdfast_coordinator.core.effects import AckCommit, RefuseShard, Send, StartWorkers
from holdfast_coordinator.core.jobspec import Scope
from holdfast_coordinator.core.model import Commit
from tests.core.builders import T0, found, key, leading, running, sent, shard, spec


def committed(step=10, attempt=1, world=2):
    return Commit("j1", 0, step, attempt, T0, None, world, tuple(shard(r, attempt) for r in range(world)))


def two_nodes():
    """Rank 0..3 on node a, rank 4 on node b."""
    cluster = leading("a", "b")
    cluster.submit(spec(5))
    for rank in range(5):
        cluster.started(key(rank))
    return cluster


def test_a_commit_is_acked_to_every_node_and_published_by_the_lowest_rank():
    cluster = two_nodes()
    for rank in range(4):
        assert cluster.prepare(key(rank), 10).commands == ()
    done = committed(world=5)
    assert cluster.prepare(key(4), 10).commands == (
        Send("s2", AckCommit("j1", 1, 10, (4,), None)),
        Send("s1", AckCommit("j1", 1, 10, (0, 1, 2, 3), done)),
    )
    assert cluster.gang().commit == done
    assert cluster.store.commits("j1", limit=9) == [done]
    assert cluster.state.prepared == {}


def test_a_rank_that_has_finished_does_not_publish():
    cluster = running(2)
    cluster.prepare(key(0), 10)
    cluster.exited(key(0), 0)
    assert sent(cluster.prepare(key(1), 10)) == [AckCommit("j1", 1, 10, (1,), committed())]


def test_in_scope_rank_every_rank_commits_by_itself():
    cluster = running(2, Scope.RANK)
    done = Commit("j1", 1, 7, 1, T0, 1, 2, (shard(1),))
    assert sent(cluster.prepare(key(1), 7)) == [AckCommit("j1", 1, 7, (1,), done)]
    assert cluster.gang(0).commit is None


def test_a_lost_ack_is_given_again_with_the_record():
    cluster = running(2)
    cluster.prepare(key(0), 10)
    cluster.prepare(key(1), 10)
    cluster.join("a", (found(key(0)), found(key(1))))
    effects = cluster.prepare(key(1), 10)
    assert sent(effects) == [AckCommit("j1", 1, 10, (1,), committed())]
    assert effects.writes == ()


def commits(effects):
    return [command.step for command in sent(effects) if isinstance(command, AckCommit)]


def test_a_rank_that_is_ahead_is_met_where_it_was():
    cluster = running(2)
    for step in (10, 20, 30):
        assert commits(cluster.prepare(key(0), step)) == []
    for step in (10, 30):
        assert commits(cluster.prepare(key(1), step)) == [step]
    assert cluster.state.prepared == {}


def test_of_one_that_is_far_ahead_the_first_steps_and_the_newest_are_kept():
    cluster = running(2)
    for step in range(10, 90, 10):
        cluster.prepare(key(0), step)
    assert [held.step for held in cluster.state.held_by("j1", 0)] == [10, 20, 30, 80]
    met = [step for step in range(10, 90, 10) if commits(cluster.prepare(key(1), step))]
    assert met == [10, 20, 30, 80]
    assert cluster.state.prepared == {}


def test_a_superseded_attempt_is_refused():
    cluster = running(2)
    cluster.prepare(key(0), 10)
    cluster.exited(key(1), 1)
    assert cluster.state.prepared == {}
    assert sent(cluster.prepare(key(0), 20)) == [
        RefuseShard(key(0), 20, "attempt 1 is superseded by attempt 2")
    ]


def test_a_worker_on_a_lost_node_is_refused():
    cluster = running(1, nodes=("a", "b"), backoff_ms=0)
    home = cluster.where(key(0))
    cluster.tick(10_000, home)
    cluster.join(home, (found(key(0)),))
    (refused,) = sent(cluster.prepare(key(0), 10, node=home))
    assert refused == RefuseShard(key(0), 10, f"rank 0 of job j1 does not run on node {home}")
    assert cluster.gang().commit is None


def test_a_job_that_nobody_knows_is_refused():
    cluster = leading("a")
    assert sent(cluster.prepare(key(0, job="j9"), 1, node="a")) == [
        RefuseShard(key(0, job="j9"), 1, "rank 0 of job j9 does not run on node a")
    ]


def test_a_stopping_worker_may_still_commit():
    cluster = running(1)
    cluster.stop()
    assert len(sent(cluster.prepare(key(0), 10), AckCommit)) == 1


def test_the_next_attempt_resumes_from_the_commit():
    cluster = running(2, backoff_ms=0)
    for rank in (0, 1):
        cluster.prepare(key(rank), 10)
    cluster.exited(key(0), 1)
    (start,) = sent(cluster.exited(key(1), signal=15), StartWorkers)
    assert start.resume == (committed(),)
    assert cluster.worker().resume_step == 10


def test_a_commit_outlives_the_coordinator_and_so_does_what_waits():
    cluster = running(2)
    for rank in (0, 1):
        cluster.prepare(key(rank), 10)
    cluster.prepare(key(0), 20)
    cluster.restart_coordinator()
    cluster.join("a", (found(key(0)), found(key(1))))
    assert cluster.gang().commit == committed()
    assert sent(cluster.prepare(key(1), 20)) == [AckCommit("j1", 1, 20, (0, 1), committed(20))]
