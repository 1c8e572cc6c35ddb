"""From a backup: what was committed since is not lost, and no number is used twice."""

from dataclasses import replace

import pytest

from holdfast_coordinator.core import recovery
from holdfast_coordinator.core.effects import StartWorkers
from holdfast_coordinator.core.jobspec import RetentionPolicy, Scope
from holdfast_coordinator.core.model import Commit, JobState, WorkerState
from tests.core.builders import Cluster, found, key, running, sent, shard

MUCH_LATER = 1_800_000_000_000


def made(at_step: int, attempt: int, ranks=(0, 1), gang: int = 0, rank: int | None = None) -> Commit:
    """A commit that a manifest tells of."""
    shards = tuple(shard(each, attempt, loss=1.0) for each in ranks)
    return Commit("j1", gang, at_step, attempt, MUCH_LATER, rank, 2, shards)


def restore(cluster: Cluster, *commits: Commit) -> None:
    """Have the state of a cluster be one that comes from a backup; these were committed since."""
    cluster.now = MUCH_LATER - 3_600_000
    cluster.back_up()
    cluster.restore(commits)


def test_what_was_committed_since_is_resumed_from_by_an_attempt_that_there_never_was():
    cluster = running(2)
    cluster.commit(5)
    restore(cluster, made(5, 1), made(15, 2), made(10, 1))
    assert cluster.state.epoch == MUCH_LATER // 60_000
    assert cluster.gang().commit == made(15, 2)
    assert [commit.step for commit in cluster.store.commits("j1", limit=9)] == [15, 10, 5]
    cluster.join("a", (found(key(0, 2)), found(key(1, 2))))  # of attempt 2, of which the backup knows nothing
    for rank in (0, 1):
        cluster.exited(key(rank, 2), signal=9, node="a")
    cluster.offer("a", 9001, 9002)
    assert {worker.attempt for worker in cluster.state.workers.values()} == {MUCH_LATER // 60_000 + 1}
    assert {worker.resume_step for worker in cluster.state.workers.values()} == {15}


def test_restored_once_more_it_takes_other_numbers():
    assert recovery.fresh(3, MUCH_LATER) < recovery.fresh(3, MUCH_LATER + 60_000)
    assert recovery.fresh(MUCH_LATER, MUCH_LATER) == MUCH_LATER + 1


def test_a_step_that_was_committed_anew_is_taken_as_it_is_now():
    cluster = running(2)
    cluster.commit(5)
    restore(cluster, made(5, 3))
    assert cluster.gang().commit == made(5, 3)
    assert cluster.store.commit_upto("j1", 0, 9) == made(5, 3)


def test_a_manifest_of_other_ranks_is_nobodys():
    cluster = running(2)
    cluster.commit(5)
    restore(cluster, made(9, 2, ranks=(0, 1, 2)))
    assert cluster.gang().commit.step == 5


def test_retention_decides_about_what_was_found():
    cluster = running(2, retention=RetentionPolicy(keep_last=2, metric="loss"))
    cluster.commit(5)
    restore(cluster, made(10, 1), made(15, 1))
    assert [each.step for each in cluster.gang().kept] == [5, 10, 15]


def test_a_job_that_has_ended_stays_so_and_can_be_restarted():
    cluster = running(2, backoff_ms=0, budget=0)
    cluster.exited(key(0), 1, at_step=7)
    cluster.exited(key(1), signal=15, at_step=7)
    assert cluster.job().state is JobState.FAILED
    restore(cluster, made(15, 2))
    assert cluster.job().state is JobState.FAILED
    cluster.join("a")
    cluster.offer("a", 9001, 9002)
    (start,) = sent(cluster.again(), StartWorkers)
    assert {each.attempt for each in start.assignments} == {MUCH_LATER // 60_000 + 1}
    assert start.resume[0].step == 15


@pytest.mark.parametrize("waits", [False, True])
def test_a_job_that_is_being_stopped_or_waits(waits):
    cluster = running(2, backoff_ms=60_000)
    cluster.prepare(key(0), 9)
    if waits:
        cluster.exited(key(0), 1)
        cluster.exited(key(1), signal=15)
    else:
        cluster.stop()
    restore(cluster, made(15, 1))
    state = JobState.PENDING if waits else JobState.STOPPING
    assert cluster.job().state is state
    assert not cluster.state.prepared


def test_of_independent_ranks_each_has_its_own_and_who_is_done_stays_so():
    cluster = running(2, Scope.RANK)
    cluster.exited(key(0), 0, at_step=20)
    restore(cluster, made(8, 4, (1,), gang=1, rank=1))
    assert cluster.worker(0).state is WorkerState.SUCCEEDED
    assert cluster.gang(0).attempt == 1
    assert cluster.gang(1).commit.step == 8
    assert cluster.gang(1).attempt > 4
    assert replace(cluster.gang(1).commit, shards=()) == replace(made(8, 4, (), gang=1, rank=1))
