"""What workers report of checkpoints: corrupt, drained, not written."""

import pytest

from holdfast_coordinator.core.effects import NoteReport, StartWorkers, StopWorkers
from holdfast_coordinator.core.events import CheckpointReported
from holdfast_coordinator.core.jobspec import Scope
from holdfast_coordinator.core.model import JobState, ReportKind, WorkerState
from tests.core.builders import found, key, leading, running, sent, shard, spec

CORRUPT, DRAINED, FAILED = ReportKind.CORRUPT, ReportKind.DRAINED, ReportKind.SAVE_FAILED


def resumed(world=2, scope=Scope.GANG, steps=(10, 20), **kwargs):
    """A cluster with job j1, in its second attempt, resumed from the last of these steps."""
    cluster = running(world, scope, backoff_ms=0, **kwargs)
    for step in steps:
        cluster.commit(step)
    cluster.exited(key(0), 1)
    cluster.restart()
    return cluster


def told(cluster, kind):
    return [entry.message for entry in cluster.timeline if entry.kind == kind]


class TestCorrupt:
    def test_the_gang_resumes_from_the_commit_before(self):
        cluster = resumed()
        before = cluster.store.commit_upto("j1", 0, 10)
        effects = cluster.corrupt(key(1, 2), 20)
        assert sent(effects)[0] == NoteReport(key(1, 2), CORRUPT, 20)
        (stop,) = sent(effects, StopWorkers)
        assert stop.keys == (key(0, 2), key(1, 2))
        assert (cluster.gang().attempt, cluster.gang().commit, cluster.history()) == (3, before, [10])
        cluster.exited(key(0, 2), signal=15)
        (start,) = sent(cluster.exited(key(1, 2), signal=15), StartWorkers)
        assert start.resume == (before,)
        assert told(cluster, "CheckpointQuarantined") == [
            "step 20 failed verification: xxh3 differs; resumed from instead is step 10"
        ]

    def test_without_one_before_it_the_gang_begins_anew_and_says_so_loudly(self):
        cluster = resumed(steps=(20,))
        cluster.corrupt(key(0, 2), 20)
        assert cluster.gang().commit is None
        assert told(cluster, "CheckpointQuarantined")[0].endswith(
            "resumed from instead is THE BEGINNING: no older checkpoint is kept"
        )
        cluster.restart()
        assert cluster.worker().resume_step is None

    @pytest.mark.parametrize(("uri", "hinted"), [("", True), ("/shared/checkpoints", False)])
    def test_a_file_that_only_its_writer_sees_is_not_called_corrupt_without_a_hint(self, uri, hinted):
        cluster = resumed(steps=(20,), checkpoint_uri=uri)
        cluster.corrupt(key(0, 2), 20, "checkpoint is corrupt: /x: expected a file of 9 bytes, found no file")
        (message,) = told(cluster, "CheckpointQuarantined")
        assert message.endswith("Give one that all nodes see") is hinted

    def test_it_costs_no_restart_and_waits_for_no_backoff(self):
        cluster = resumed(budget=1)
        streak = cluster.gang().streak
        assert len(streak) == 1  # by the budget, one more failure ends the job
        cluster.corrupt(key(0, 2), 20)
        assert (cluster.gang().streak, cluster.gang().not_before_ms) == (streak, 0)
        assert cluster.job().state is JobState.RESTARTING

    def test_a_whole_chain_of_corrupt_ones_is_gone_back(self):
        cluster = resumed(steps=(10, 20, 30))
        for attempt, step, left in ((2, 30, [20, 10]), (3, 20, [10]), (4, 10, [])):
            assert cluster.worker().resume_step == step
            cluster.corrupt(key(1, attempt), step)
            cluster.restart()
            assert cluster.history() == left
        assert cluster.worker().resume_step is None

    def test_the_step_may_be_committed_again(self):
        cluster = resumed()
        cluster.corrupt(key(1, 2), 20)
        cluster.restart()
        cluster.commit(20)
        assert (cluster.gang().commit.step, cluster.gang().commit.attempt) == (20, 3)
        assert cluster.history() == [20, 10]

    def test_what_is_said_twice_counts_once(self):
        cluster = resumed(steps=(10, 20, 30))
        cluster.corrupt(key(1, 2), 30)
        again = cluster.corrupt(key(1, 2), 30)
        assert sent(again) == [NoteReport(key(1, 2), CORRUPT, 30)]
        assert again.writes == ()
        other = cluster.corrupt(key(0, 2), 30)
        assert (sent(other), other.writes) == ([NoteReport(key(0, 2), CORRUPT, 30)], ())

    def test_a_superseded_attempt_cannot_set_aside_what_was_made_anew(self):
        cluster = resumed()
        cluster.corrupt(key(1, 2), 20)
        cluster.restart()
        cluster.commit(20)
        late = cluster.corrupt(key(1, 2), 20)
        assert sent(late) == [NoteReport(key(1, 2), CORRUPT, 20)]
        assert late.reason == "Key(job_id='j1', rank=1, attempt=2) is no live attempt on node a"
        assert cluster.history() == [20, 10]

    @pytest.mark.parametrize("step", [15, 30])
    def test_a_step_that_is_not_there_changes_nothing(self, step):
        cluster = resumed()
        effects = cluster.corrupt(key(1, 2), step)
        assert sent(effects) == [NoteReport(key(1, 2), CORRUPT, step)]
        assert effects.writes == ()

    def test_an_older_one_leaves_the_history_and_nobody_restarts(self):
        cluster = resumed()
        effects = cluster.corrupt(key(1, 2), 10)
        assert cluster.history() == [20]
        assert cluster.gang().attempt == 2
        assert sent(effects, StopWorkers) == []
        assert told(cluster, "CheckpointQuarantined")[0].endswith("resumed from is step 20 as before")

    def test_in_scope_rank_the_others_train_on(self):
        cluster = running(2, Scope.RANK, backoff_ms=0)
        for step in (10, 20):
            for rank in (0, 1):
                cluster.prepare(key(rank), step)
        cluster.exited(key(1), 1)
        cluster.started(key(1, 2))
        cluster.corrupt(key(1, 2), 20)
        assert (cluster.gang(1).commit.step, cluster.gang(0).commit.step) == (10, 20)
        assert cluster.worker(0).state is WorkerState.RUNNING

    def test_while_the_job_is_being_stopped_nobody_restarts(self):
        cluster = resumed()
        cluster.stop()
        cluster.corrupt(key(1, 2), 20)
        assert (cluster.gang().commit.step, cluster.gang().attempt) == (10, 2)
        cluster.restart()
        assert cluster.job().state is JobState.STOPPED

    def test_what_waits_to_be_committed_falls_with_its_attempt(self):
        cluster = resumed()
        cluster.prepare(key(0, 2), 30)
        cluster.corrupt(key(1, 2), 20)
        assert cluster.state.prepared == {}

    def test_it_is_durable(self):
        cluster = resumed()
        cluster.corrupt(key(1, 2), 20)
        cluster.restart_coordinator()
        assert (cluster.gang().attempt, cluster.gang().commit.step) == (3, 10)

    def test_going_back_over_known_ground_is_no_progress(self):
        cluster = resumed()
        cluster.corrupt(key(1, 2), 20)
        cluster.restart()
        before = cluster.gang().streak
        cluster.commit(15)
        cluster.exited(key(0, 3), 1)
        assert len(cluster.gang().streak) == len(before) + 1

    def test_the_steps_since_count_as_done_again(self):
        cluster = running(1, backoff_ms=0)
        for step in (10, 20):
            cluster.commit(step)
        cluster.exited(key(0), 1, at_step=23)
        cluster.restart()
        assert cluster.worker().account.steps_redone == 3
        kept = cluster.worker().account.kept_ms
        cluster.corrupt(key(0, 2), 20)
        cluster.restart()
        assert cluster.worker().account.steps_redone == 13
        assert cluster.worker().account.kept_ms == kept // 2

    def test_a_pin_on_it_is_let_go_of(self):
        cluster = resumed()
        cluster.pin(20, "good")
        cluster.corrupt(key(1, 2), 20)
        assert cluster.gang().pins == ()


class TestDegraded:
    def test_it_is_told_when_it_begins_and_when_a_commit_ends_it(self):
        cluster = running(4)
        cluster.commit(10, local=(1, 3))
        cluster.commit(20, local=(0,))
        cluster.commit(30)
        assert told(cluster, "CheckpointDegraded") == [
            "step 10: the files of 2 of 4 ranks lie on their nodes alone until the storage can be reached"
        ]
        assert told(cluster, "CheckpointDrained") == ["step 30 is in the storage, all of it"]
        assert cluster.gang().degraded_commits == 2
        assert [commit.degraded for commit in cluster.store.commits("j1", limit=9)] == [False, True, True]

    def test_it_is_over_when_every_rank_has_drained(self):
        cluster = running(2)
        cluster.commit(10, local=(0, 1))
        cluster.report(key(1), DRAINED, 10)
        assert cluster.gang().commit.degraded
        effects = cluster.report(key(0), DRAINED, 10)
        assert sent(effects) == [NoteReport(key(0), DRAINED, 10)]
        assert not cluster.gang().commit.degraded
        assert told(cluster, "CheckpointDrained") == ["step 10 is in the storage, all of it"]
        assert cluster.report(key(0), DRAINED, 10).writes == ()

    def test_an_older_one_is_drained_in_the_history(self):
        cluster = running(2)
        cluster.commit(10, local=(0,))
        cluster.commit(20, local=(0,))
        cluster.report(key(0), DRAINED, 10)
        assert [commit.degraded for commit in cluster.store.commits("j1", limit=9)] == [True, False]
        assert cluster.gang().commit.degraded

    def test_what_is_drained_before_it_is_committed_stays_so(self):
        cluster = running(2)
        cluster.prepare(key(0), 10, what=shard(0, local_only=True))
        cluster.report(key(0), DRAINED, 10)
        cluster.join("a", (found(key(0)), found(key(1))))
        cluster.prepare(key(0), 10, what=shard(0, local_only=True))  # an agent says it as it was
        cluster.prepare(key(1), 10)
        assert not cluster.gang().commit.degraded

    def test_a_lost_ack_is_given_again_whatever_was_drained_meanwhile(self):
        cluster = running(1)
        cluster.commit(10, local=(0,))
        cluster.report(key(0), DRAINED, 10)
        (ack,) = sent(cluster.prepare(key(0), 10, what=shard(0, local_only=True)))
        assert ack.publish == cluster.gang().commit

    def test_a_worker_that_is_over_may_have_drained(self):
        cluster = running(2, backoff_ms=0)
        cluster.commit(10, local=(0,))
        cluster.exited(key(0), 1)
        cluster.restart()
        cluster.report(key(0), DRAINED, 10)
        assert not cluster.gang().commit.degraded

    def test_but_not_what_was_committed_anew(self):
        cluster = running(1, backoff_ms=0)
        cluster.commit(10, local=(0,))
        cluster.corrupt(key(0), 10)
        cluster.restart()
        cluster.commit(10, local=(0,))
        cluster.report(key(0), DRAINED, 10)
        assert cluster.gang().commit.degraded

    def test_going_back_to_one_that_is_tells_so(self):
        cluster = resumed(steps=())
        cluster.commit(10, local=(0,))
        cluster.commit(20)
        cluster.corrupt(key(0, 2), 20)
        assert len(told(cluster, "CheckpointDegraded")) == 2

    def test_a_job_that_has_ended_may_still_be_drained(self):
        cluster = running(1)
        cluster.commit(10, local=(0,))
        cluster.exited(key(0), 0)
        cluster.report(key(0), DRAINED, 10)
        assert (cluster.job().state, cluster.gang().commit.degraded) == (JobState.SUCCEEDED, False)


class TestFailed:
    def test_it_is_told_once_for_each_step_whoever_it_is(self):
        cluster = running(3)
        for rank, step in ((1, 10), (1, 10), (2, 10), (1, 20), (0, 15)):
            effects = cluster.report(key(rank), FAILED, step, "No space left on device")
            assert sent(effects) == [NoteReport(key(rank), FAILED, step)]
        assert told(cluster, "CheckpointFailed") == [
            "step 10: No space left on device",
            "step 20: No space left on device",
        ]

    def test_a_new_attempt_tells_anew(self):
        cluster = running(1, backoff_ms=0)
        cluster.report(key(0), FAILED, 10, "No space left on device")
        cluster.exited(key(0), 1)
        cluster.restart()
        assert cluster.report(key(0), FAILED, 10, "again").writes == ()
        cluster.report(key(0, 2), FAILED, 10, "once more")
        assert told(cluster, "CheckpointFailed")[1:] == ["step 10: once more"]


@pytest.mark.parametrize("kind", ReportKind)
def test_a_report_of_nobody_is_noted_and_changes_nothing(kind):
    cluster = leading("a")
    effects = cluster.report(key(0, job="j9"), kind, 10, node="a")
    assert sent(effects) == [NoteReport(key(0, job="j9"), kind, 10)]
    assert effects.writes == ()


@pytest.mark.parametrize("kind", ReportKind)
def test_a_report_of_an_old_session_is_left_for_the_next(kind):
    cluster = running(1)
    cluster.commit(10)
    late = CheckpointReported(cluster.now, "a", "s0", key(0), kind, 10)
    effects = cluster.do(late)
    assert (effects.commands, effects.writes) == ((), ())
    assert effects.reason == "session s0 does not speak for node a"


def test_placed_again_on_another_node_the_old_one_reports_nothing_corrupt():
    cluster = leading("a", "b")
    cluster.submit(spec(1, backoff_ms=0))
    cluster.started(key(0))
    home = cluster.where(key(0))
    cluster.commit(10)
    cluster.tick(10_000, home)
    cluster.join(home, (found(key(0)),))
    assert cluster.corrupt(key(0), 10, node=home).reason
    assert cluster.history() == [10]
