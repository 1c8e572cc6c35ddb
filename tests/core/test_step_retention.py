"""Dropped, deleted, pinned: what is kept of the history, and who deletes the files of the rest."""

import pytest

from holdfast_coordinator.core import checkpoints
from holdfast_coordinator.core.effects import AckCommit, Problem
from holdfast_coordinator.core.jobspec import Mode, RetentionPolicy, Scope
from holdfast_coordinator.core.model import JobState, ReportKind
from tests.core.builders import found, key, running, sent

DROPPED = ReportKind.DROPPED


def keeping(world=2, steps=(), **policy):
    cluster = running(world, backoff_ms=0, retention=RetentionPolicy(**policy))
    for step in steps:
        cluster.commit(step)
    return cluster


def refused(effects):
    assert effects.writes == ()
    return effects.refusal.problem, effects.refusal.message, effects.refusal.remedy


def drops(effects):
    return [ack.drop for ack in sent(effects, AckCommit)]


class TestPolicy:
    def test_without_one_everything_is_kept(self):
        cluster = running(1)
        for step in range(1, 50):
            assert drops(cluster.commit(step)) == [()]
        assert len(cluster.history()) == 49
        assert cluster.gang().kept == ()

    def test_the_publisher_is_asked_to_delete_until_it_says_that_it_has(self):
        cluster = keeping(steps=(10,), keep_last=1)
        assert drops(cluster.commit(20)) == [(10,)]
        assert drops(cluster.commit(30)) == [(10, 20)]
        cluster.report(key(0), DROPPED, 10)
        assert drops(cluster.commit(40)) == [(20, 30)]
        assert cluster.history() == [40]
        assert cluster.kinds()[-1] == "CheckpointDropped"
        assert cluster.timeline[-1].message == "step 30: kept are the last 1"

    def test_only_the_node_of_the_publisher_is_asked(self):
        cluster = running(5, nodes=("a", "b"), retention=RetentionPolicy(keep_last=1))
        cluster.commit(10)
        assert sorted(drops(cluster.commit(20))) == [(), (10,)]

    def test_a_lost_ack_is_given_again_with_what_it_asked_for(self):
        cluster = keeping(steps=(10, 20), keep_last=1)
        assert [drops(cluster.prepare(key(rank), 20)) for rank in (0, 1)] == [[(10,)], [()]]

    def test_it_is_durable_before_it_is_asked_for(self):
        cluster = keeping(steps=(10, 20), keep_last=1)
        cluster.restart_coordinator()
        cluster.join("a", (found(key(0)), found(key(1))))
        assert cluster.history() == [20]
        assert drops(cluster.commit(30)) == [(10, 20)]

    def test_what_a_live_attempt_resumed_from_stays(self):
        cluster = keeping(steps=(10,), keep_last=1)
        cluster.exited(key(0), 1)
        cluster.restart()
        for step in (20, 30):
            cluster.commit(step)
        assert cluster.history() == [30, 10]
        cluster.exited(key(0, 2), 1)
        cluster.restart()
        cluster.commit(40)
        assert cluster.history() == [40, 30]

    def test_the_best_stay_by_what_the_lowest_rank_said(self):
        cluster = keeping(keep_last=1, best=1, metric="accuracy", mode=Mode.MAX)
        for step, accuracy in ((10, 0.5), (20, 0.9), (30, 0.7), (40, 0.8)):
            cluster.commit(step, accuracy=accuracy)
        assert cluster.history() == [40, 20]

    def test_in_scope_rank_every_rank_keeps_its_own(self):
        cluster = running(2, Scope.RANK, retention=RetentionPolicy(keep_last=1))
        for step in (10, 20):
            cluster.prepare(key(1), step)
        assert (cluster.gang(1).dropping, cluster.gang(0).dropping) == ((10,), ())

    def test_a_step_that_is_made_anew_is_not_deleted(self):
        cluster = keeping(steps=(10, 20, 30), keep_last=3)
        cluster.drop_checkpoint(20)
        cluster.corrupt(key(0), 30)
        cluster.restart()
        assert cluster.gang().dropping == (20,)
        assert drops(cluster.commit(20)) == [()]
        assert cluster.gang().dropping == ()
        cluster.report(key(0), DROPPED, 20)  # late
        assert cluster.history() == [20, 10]

    def test_what_may_be_staged_anew_is_not_deleted_either(self):
        cluster = keeping(steps=(10, 20, 30), keep_last=3)
        cluster.drop_checkpoint(20)
        cluster.corrupt(key(0), 30)
        cluster.restart()
        assert drops(cluster.commit(15)) == [()]
        assert drops(cluster.commit(25)) == [(20,)]

    def test_files_that_nobody_can_delete_are_given_up_in_the_end(self, monkeypatch):
        monkeypatch.setattr(checkpoints, "MOST_DROPPING", 3)
        monkeypatch.setattr(checkpoints, "DROPS_A_MESSAGE", 2)
        cluster = keeping(keep_last=1, steps=(1, 2, 3, 4))
        assert cluster.gang().dropping == (1, 2, 3)
        assert drops(cluster.commit(5)) == [(2, 3)]
        assert cluster.gang().dropping == (2, 3, 4)
        left = [entry.message for entry in cluster.timeline if entry.kind == "CheckpointFilesLeft"]
        assert left == ["no worker could delete the files of step 1"]


class TestDelete:
    def test_a_worker_deletes_the_files_while_the_job_runs(self):
        cluster = running(1)
        for step in (10, 20, 30):
            cluster.commit(step)
        assert cluster.drop_checkpoint(10).refusal is None
        assert cluster.history() == [30, 20]
        assert drops(cluster.commit(40)) == [(10,)]

    def test_nobody_is_asked_when_the_job_has_ended(self):
        cluster = running(1)
        for step in (10, 20):
            cluster.commit(step)
        cluster.exited(key(0), 0)
        cluster.drop_checkpoint(10)
        assert (cluster.history(), cluster.gang().dropping) == ([20], ())
        assert cluster.job().state is JobState.SUCCEEDED

    def test_the_newest_is_refused(self):
        cluster = running(1)
        cluster.commit(10)
        assert refused(cluster.drop_checkpoint(10)) == (
            Problem.FAILED_PRECONDITION,
            "the checkpoint of step 10 of job j1 is its newest",
            "delete older ones, or wait for a newer one",
        )

    def test_one_that_a_live_attempt_resumed_from_is_refused(self):
        cluster = running(1, backoff_ms=0)
        cluster.commit(10)
        cluster.exited(key(0), 1)
        cluster.restart()
        cluster.commit(20)
        assert refused(cluster.drop_checkpoint(10)) == (
            Problem.FAILED_PRECONDITION,
            "the checkpoint of step 10 of job j1 is being resumed from",
            "wait until its attempt is over",
        )

    def test_a_pinned_one_is_refused(self):
        cluster = keeping(1, steps=(10, 20), keep_last=2)
        cluster.pin(10, "good")
        problem, message, remedy = refused(cluster.drop_checkpoint(10))
        assert (problem, remedy) == (Problem.FAILED_PRECONDITION, "unpin it first")
        assert message == 'the checkpoint of step 10 of job j1 is pinned as "good"'

    @pytest.mark.parametrize("step", [5, 15, 99])
    def test_one_that_is_not_there_is_not_found(self, step):
        cluster = running(1)
        for committed in (10, 20):
            cluster.commit(committed)
        problem, message, _ = refused(cluster.drop_checkpoint(step))
        assert (problem, message) == (Problem.NOT_FOUND, f"job j1 has no checkpoint of step {step}")

    def test_a_job_that_is_not_there_is_not_found(self):
        assert refused(running(1).drop_checkpoint(1, job="j9"))[:2] == (
            Problem.NOT_FOUND,
            "there is no job j9",
        )

    @pytest.mark.parametrize(
        ("scope", "rank", "message"),
        [
            (Scope.GANG, 0, "the ranks of job j1 commit their checkpoints together"),
            (Scope.RANK, None, "every rank of job j1 commits its own checkpoints"),
            (Scope.RANK, 2, "job j1 has no rank 2"),
        ],
    )
    def test_a_rank_is_named_where_ranks_commit_alone_and_nowhere_else(self, scope, rank, message):
        assert refused(running(2, scope).drop_checkpoint(10, rank))[1] == message

    def test_in_scope_rank_it_is_that_of_one_rank(self):
        cluster = running(2, Scope.RANK)
        for rank in (0, 1):
            for step in (10, 20):
                cluster.prepare(key(rank), step)
        cluster.drop_checkpoint(10, rank=1)
        assert [(c.step, c.gang) for c in cluster.store.commits("j1", limit=9)] == [(20, 1), (20, 0), (10, 0)]


class TestPin:
    def test_what_is_pinned_stays_until_it_is_let_go_of(self):
        cluster = keeping(steps=(10, 20), keep_last=2)
        cluster.pin(10, "good")
        for step in (30, 40):
            cluster.commit(step)
        assert cluster.history() == [40, 30, 10]
        cluster.pin(10, "")
        assert cluster.history() == [40, 30, 10]  # until the policy is asked again
        cluster.commit(50)
        assert cluster.history() == [50, 40]
        assert {"CheckpointPinned", "CheckpointUnpinned"} <= set(cluster.kinds())

    def test_every_nth_stays_though_it_was_pinned_once(self):
        cluster = keeping(steps=(10, 15), keep_last=1, keep_every=10)
        cluster.pin(10, "good")
        cluster.pin(10, "")
        cluster.commit(25)
        assert cluster.history() == [25, 10]

    def test_it_can_have_another_name(self):
        cluster = keeping(steps=(10,))
        for name in ("good", "better"):
            assert cluster.pin(10, name).refusal is None
        assert [(pin.step, pin.name) for pin in cluster.gang().pins] == [(10, "better")]

    def test_asking_twice_is_asking_once(self):
        cluster = keeping(steps=(10,))
        cluster.pin(10, "good")
        again = cluster.pin(10, "good")
        assert (again.refusal, again.writes) == (None, ())
        assert cluster.pin(10, "").writes != ()
        assert cluster.pin(10, "").writes == ()

    def test_a_name_is_of_one_step(self):
        cluster = keeping(steps=(10, 20))
        cluster.pin(10, "good")
        assert refused(cluster.pin(20, "good")) == (
            Problem.ALREADY_EXISTS,
            '"good" is the name of step 10',
            "unpin that one first, or use another name",
        )

    def test_there_are_not_too_many(self, monkeypatch):
        monkeypatch.setattr(checkpoints, "MOST_PINS", 2)
        cluster = running(1)
        for step in (1, 2, 3):
            cluster.commit(step)
        cluster.pin(1, "a")
        cluster.pin(2, "b")
        assert refused(cluster.pin(3, "c"))[:2] == (Problem.FAILED_PRECONDITION, "2 checkpoints are pinned")
        assert cluster.pin(2, "c").refusal is None

    def test_what_is_not_there_is_not_pinned(self):
        cluster = keeping(steps=(10, 20, 30), keep_last=1)
        assert refused(cluster.pin(10, "good"))[1] == "job j1 has no checkpoint of step 10"
