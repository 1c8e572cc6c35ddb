"""The agent's decisions: P2 (one live attempt), P6 (commands at most once), facts at least once."""

import pytest

from holdfast_agent.core import (
    MOST_REPORTS,
    AgentState,
    AnswerCommitted,
    AnswerNoted,
    AnswerRefused,
    CheckpointReported,
    CommitAcked,
    Disconnect,
    Ended,
    Fence,
    JobForgotten,
    Key,
    LeftAlone,
    MarkReleased,
    Phase,
    ReleaseCommanded,
    RemoveJob,
    Report,
    ReportNoted,
    Shard,
    ShardPrepared,
    ShardRefused,
    Signal,
    Spawn,
    Start,
    StartCommanded,
    Stop,
    StopCommanded,
    StreamLost,
    TellEnded,
    TellPrepared,
    TellReported,
    TellStarted,
    Welcomed,
    Worker,
    WorkerEnded,
    WorkerSpawned,
    handle,
    inventory,
    recover,
)

FIRST = Key("job1", 0, 1)
SECOND = Key("job1", 0, 2)
THIRD = Key("job1", 0, 3)
OTHER_RANK = Key("job1", 1, 1)
ENDED = Ended("exit code 0")
CORRUPT, DRAINED = 2, 3
REPORT = Report(CORRUPT, 10, "content")


def start(*keys, epoch=1):
    return StartCommanded(epoch, tuple(Start(key) for key in keys))


def running(key, stop=Stop.NO):
    return Worker(key, Phase.RUNNING, pid=100 + key.attempt, pid_start=7, stop=stop)


def ended(key, stop=Stop.NO):
    return Worker(key, Phase.ENDED, pid=100 + key.attempt, pid_start=7, ended=ENDED, stop=stop)


def spawned(key):
    return WorkerSpawned(key, 100 + key.attempt, 7)


@pytest.fixture
def state():
    """Connected in epoch 1."""
    state = AgentState()
    connect(state)
    return state


def connect(state, epoch=1):
    inventory(state)
    return handle(state, Welcomed(epoch))


def run(state, *keys):
    """Start workers and let them be up."""
    handle(state, start(*keys))
    for key in keys:
        handle(state, spawned(key))


class TestStarting:
    def test_a_start_spawns_and_is_told_when_it_is_up(self, state):
        assert handle(state, start(FIRST, OTHER_RANK)) == [Spawn(Start(FIRST)), Spawn(Start(OTHER_RANK))]
        assert handle(state, spawned(FIRST)) == [TellStarted(running(FIRST))]

    def test_a_start_said_twice_spawns_once(self, state):
        handle(state, start(FIRST))
        assert handle(state, start(FIRST)) == []
        handle(state, spawned(FIRST))
        assert handle(state, start(FIRST)) == []

    @pytest.mark.parametrize("late", [FIRST, SECOND])
    def test_an_attempt_at_or_below_one_that_ran_is_never_started(self, state, late):
        run(state, SECOND)
        handle(state, WorkerEnded(SECOND, ENDED))
        handle(state, ReleaseCommanded(1, (SECOND,)))
        assert handle(state, start(late)) == []

    def test_a_newer_attempt_begins_when_the_older_is_gone(self, state):
        run(state, FIRST)
        assert handle(state, start(SECOND)) == [Signal(FIRST, Stop.FORCE)]
        told = TellEnded(ended(FIRST, Stop.FORCE))
        assert handle(state, WorkerEnded(FIRST, ENDED)) == [told, Spawn(Start(SECOND))]
        assert handle(state, spawned(SECOND)) == [TellStarted(running(SECOND))]

    def test_attempts_that_pile_up_begin_one_after_the_other_and_only_the_newest_lives(self, state):
        run(state, FIRST)
        handle(state, start(SECOND))
        assert handle(state, start(THIRD)) == []
        assert Spawn(Start(SECOND)) in handle(state, WorkerEnded(FIRST, ENDED))
        assert Signal(SECOND, Stop.FORCE) in handle(state, spawned(SECOND))
        assert Spawn(Start(THIRD)) in handle(state, WorkerEnded(SECOND, ENDED))
        assert handle(state, spawned(THIRD)) == [TellStarted(running(THIRD))]

    def test_other_ranks_do_not_wait(self, state):
        run(state, FIRST)
        assert handle(state, start(OTHER_RANK)) == [Spawn(Start(OTHER_RANK))]

    def test_one_that_could_not_be_started_is_told_as_ended(self, state):
        handle(state, start(FIRST))
        never_up = Worker(FIRST, Phase.ENDED, ended=ENDED)
        assert handle(state, WorkerEnded(FIRST, ENDED)) == [TellEnded(never_up)]


class TestStopping:
    def test_grace_then_force(self, state):
        run(state, FIRST)
        assert handle(state, StopCommanded(1, (FIRST,), Stop.GRACE)) == [Signal(FIRST, Stop.GRACE)]
        assert handle(state, StopCommanded(1, (FIRST,), Stop.GRACE)) == []
        assert handle(state, StopCommanded(1, (FIRST,), Stop.FORCE)) == [Signal(FIRST, Stop.FORCE)]
        assert handle(state, StopCommanded(1, (FIRST,), Stop.GRACE)) == []

    def test_one_that_is_being_started_is_signalled_as_soon_as_it_is_up(self, state):
        handle(state, start(FIRST))
        assert handle(state, StopCommanded(1, (FIRST,), Stop.GRACE)) == []
        stopping = running(FIRST, Stop.GRACE)
        assert handle(state, spawned(FIRST)) == [TellStarted(stopping), Signal(FIRST, Stop.GRACE)]

    def test_who_has_ended_or_was_never_here_is_not_signalled(self, state):
        run(state, FIRST)
        handle(state, WorkerEnded(FIRST, ENDED))
        assert handle(state, StopCommanded(1, (FIRST, OTHER_RANK), Stop.FORCE)) == []


class TestEnding:
    def test_an_end_is_told_once(self, state):
        run(state, FIRST)
        assert handle(state, WorkerEnded(FIRST, ENDED)) == [TellEnded(ended(FIRST))]
        assert handle(state, WorkerEnded(FIRST, ENDED)) == []

    def test_it_stays_in_the_inventory_until_it_is_released(self, state):
        run(state, FIRST)
        handle(state, WorkerEnded(FIRST, ENDED))
        assert inventory(state) == [ended(FIRST)]
        assert handle(state, ReleaseCommanded(1, (FIRST,))) == [MarkReleased(FIRST)]
        assert inventory(state) == []
        assert handle(state, ReleaseCommanded(1, (FIRST,))) == []

    def test_who_runs_cannot_be_released(self, state):
        run(state, FIRST)
        assert handle(state, ReleaseCommanded(1, (FIRST,))) == []
        assert inventory(state) == [running(FIRST)]


class TestReconnecting:
    def test_nothing_is_said_while_the_stream_is_gone(self, state):
        run(state, FIRST)
        handle(state, StreamLost())
        assert handle(state, ShardPrepared(FIRST, Shard(10, "shard"))) == []
        assert handle(state, WorkerEnded(FIRST, ENDED)) == []

    def test_the_inventory_says_what_happened_meanwhile(self, state):
        run(state, FIRST, OTHER_RANK)
        handle(state, StreamLost())
        handle(state, WorkerEnded(FIRST, ENDED))
        assert inventory(state) == [ended(FIRST), running(OTHER_RANK)]
        assert handle(state, Welcomed(1)) == []

    def test_what_happened_between_hello_and_welcome_is_told_after_it(self, state):
        handle(state, start(FIRST, OTHER_RANK))
        handle(state, spawned(OTHER_RANK))
        handle(state, StreamLost())
        inventory(state)
        assert handle(state, spawned(FIRST)) == []
        assert handle(state, WorkerEnded(OTHER_RANK, ENDED)) == []
        assert handle(state, Welcomed(1)) == [TellStarted(running(FIRST)), TellEnded(ended(OTHER_RANK))]

    def test_a_prepared_shard_is_sent_again_until_it_is_answered(self, state):
        run(state, FIRST)
        shard = Shard(10, "shard")
        assert handle(state, ShardPrepared(FIRST, shard)) == [TellPrepared(FIRST, shard)]
        assert connect(state) == [TellPrepared(FIRST, shard)]
        handle(state, CommitAcked(1, "job1", 1, 10, (0,)))
        assert connect(state) == []

    def test_an_older_leader_is_left(self, state):
        connect(state, epoch=3)
        assert connect(state, epoch=2) == [Disconnect("its epoch 2 is older than 3")]

    def test_a_message_of_an_older_leader_is_dropped(self, state):
        run(state, FIRST)
        connect(state, epoch=2)
        for late in (
            start(SECOND, epoch=1),
            StopCommanded(1, (FIRST,), Stop.FORCE),
            JobForgotten(1, "job1"),
            CommitAcked(1, "job1", 1, 10, (0,)),
            ReportNoted(1, FIRST, CORRUPT, 10),
        ):
            assert handle(state, late) == []
        assert inventory(state) == [running(FIRST)]


class TestCheckpoints:
    def test_an_ack_reaches_every_rank_and_the_first_publishes(self, state):
        run(state, FIRST, OTHER_RANK)
        acked = CommitAcked(1, "job1", 1, 10, (0, 1), publish="record")
        assert handle(state, acked) == [
            AnswerCommitted(FIRST, 10, "record"),
            AnswerCommitted(OTHER_RANK, 10, None),
        ]

    def test_an_ack_of_an_older_step_leaves_a_newer_shard_unanswered(self, state):
        run(state, FIRST)
        shard = Shard(20, "shard")
        handle(state, ShardPrepared(FIRST, shard))
        handle(state, CommitAcked(1, "job1", 1, 10, (0,)))
        assert connect(state) == [TellPrepared(FIRST, shard)]

    def test_a_refusal_is_passed_on_and_ends_the_matter(self, state):
        run(state, FIRST)
        handle(state, ShardPrepared(FIRST, Shard(10, "shard")))
        assert handle(state, ShardRefused(1, FIRST, 10, "why")) == [AnswerRefused(FIRST, 10, "why")]
        assert connect(state) == []

    def test_a_refusal_of_another_step_leaves_the_shard_unanswered(self, state):
        run(state, FIRST)
        shard = Shard(20, "shard")
        handle(state, ShardPrepared(FIRST, shard))
        handle(state, ShardRefused(1, FIRST, 10, "why"))
        assert connect(state) == [TellPrepared(FIRST, shard)]

    def test_a_shard_of_an_attempt_that_is_over_goes_nowhere(self, state):
        run(state, FIRST)
        handle(state, ShardPrepared(FIRST, Shard(10, "shard")))
        handle(state, WorkerEnded(FIRST, ENDED))
        assert connect(state) == []
        refused = AnswerRefused(FIRST, 20, "this attempt is over")
        assert handle(state, ShardPrepared(FIRST, Shard(20, "shard"))) == [refused]

    def test_a_shard_of_a_superseded_attempt_goes_nowhere(self, state):
        run(state, FIRST)
        handle(state, start(SECOND))
        refused = AnswerRefused(FIRST, 20, "attempt 1 is superseded by attempt 2")
        assert handle(state, ShardPrepared(FIRST, Shard(20, "shard"))) == [refused]

    def test_the_rank_that_publishes_is_told_what_to_delete(self, state):
        run(state, FIRST, OTHER_RANK)
        acked = CommitAcked(1, "job1", 1, 10, (0, 1), publish="record", drop=(3, 4))
        assert handle(state, acked) == [
            AnswerCommitted(FIRST, 10, "record", (3, 4)),
            AnswerCommitted(OTHER_RANK, 10, None, ()),
        ]


class TestReports:
    def test_one_goes_up_and_its_note_comes_down(self, state):
        run(state, FIRST)
        assert handle(state, CheckpointReported(FIRST, REPORT)) == [TellReported(FIRST, REPORT)]
        noted = ReportNoted(1, FIRST, CORRUPT, 10)
        assert handle(state, noted) == [AnswerNoted(FIRST, CORRUPT, 10)]
        assert state.reports == {}

    def test_it_is_sent_again_until_it_is_noted(self, state):
        run(state, FIRST)
        handle(state, StreamLost())
        assert handle(state, CheckpointReported(FIRST, REPORT)) == []
        for _ in range(2):
            assert connect(state) == [TellReported(FIRST, REPORT)]
        handle(state, ReportNoted(1, FIRST, CORRUPT, 10))
        assert connect(state) == []

    def test_each_kind_and_step_is_noted_for_itself(self, state):
        run(state, FIRST)
        others = [Report(CORRUPT, 20), Report(DRAINED, 10)]
        for report in (REPORT, *others):
            handle(state, CheckpointReported(FIRST, report))
        handle(state, ReportNoted(1, FIRST, CORRUPT, 10))
        assert connect(state) == [TellReported(FIRST, report) for report in others]

    def test_what_a_worker_says_twice_is_kept_once(self, state):
        run(state, FIRST)
        for _ in range(2):
            handle(state, CheckpointReported(FIRST, REPORT))
        assert connect(state) == [TellReported(FIRST, REPORT)]

    def test_shards_go_first(self, state):
        """A file that was drained is reported after it was prepared, in every session."""
        run(state, FIRST)
        shard = Shard(10, "shard")
        handle(state, CheckpointReported(FIRST, REPORT))
        handle(state, ShardPrepared(FIRST, shard))
        assert connect(state) == [TellPrepared(FIRST, shard), TellReported(FIRST, REPORT)]

    def test_it_outlives_its_worker(self, state):
        run(state, FIRST)
        handle(state, CheckpointReported(FIRST, REPORT))
        handle(state, WorkerEnded(FIRST, ENDED))
        handle(state, ReleaseCommanded(1, (FIRST,)))
        assert connect(state) == [TellReported(FIRST, REPORT)]

    def test_a_report_of_a_worker_that_is_over_is_not_waited_for(self, state):
        run(state, FIRST)
        handle(state, WorkerEnded(FIRST, ENDED))
        assert handle(state, CheckpointReported(FIRST, REPORT)) == [AnswerNoted(FIRST, CORRUPT, 10)]

    def test_that_of_a_superseded_attempt_is_for_the_coordinator_to_judge(self, state):
        run(state, FIRST)
        handle(state, start(SECOND))
        assert handle(state, CheckpointReported(FIRST, REPORT)) == [TellReported(FIRST, REPORT)]

    def test_of_too_many_the_oldest_are_forgotten(self, state):
        run(state, FIRST)
        for step in range(MOST_REPORTS + 3):
            handle(state, CheckpointReported(FIRST, Report(DRAINED, step)))
        assert [report.step for report in state.reports[FIRST].values()] == list(range(3, MOST_REPORTS + 3))

    def test_those_of_a_deleted_job_go_with_it(self, state):
        run(state, FIRST)
        handle(state, CheckpointReported(FIRST, REPORT))
        handle(state, WorkerEnded(FIRST, ENDED))
        handle(state, ReleaseCommanded(1, (FIRST,)))
        handle(state, JobForgotten(1, "job1"))
        assert state.reports == {}


class TestForgetting:
    def test_a_deleted_job_leaves_nothing(self, state):
        run(state, FIRST)
        handle(state, WorkerEnded(FIRST, ENDED))
        handle(state, ReleaseCommanded(1, (FIRST,)))
        assert handle(state, JobForgotten(1, "job1")) == [RemoveJob("job1")]
        assert state == AgentState(epoch=1, connected=True, told=state.told)

    def test_a_worker_that_still_runs_is_killed_and_its_end_told_before_its_directory_goes(self, state):
        run(state, FIRST)
        assert handle(state, JobForgotten(1, "job1")) == [Signal(FIRST, Stop.FORCE)]
        assert handle(state, WorkerEnded(FIRST, ENDED)) == [TellEnded(ended(FIRST, Stop.FORCE))]
        assert handle(state, ReleaseCommanded(1, (FIRST,))) == [MarkReleased(FIRST), RemoveJob("job1")]

    def test_other_jobs_stay(self, state):
        other = Key("job2", 0, 1)
        run(state, FIRST, other)
        handle(state, WorkerEnded(FIRST, ENDED))
        handle(state, ReleaseCommanded(1, (FIRST,)))
        handle(state, JobForgotten(1, "job1"))
        assert inventory(state) == [running(other)]
        assert handle(state, start(other)) == []


class TestRecovering:
    """After the agent was killed."""

    def test_workers_and_fences_are_known_again(self):
        state = recover([running(FIRST), ended(OTHER_RANK)], {("job1", 0): 1, ("job1", 1): 1})
        assert inventory(state) == [running(FIRST), ended(OTHER_RANK)]
        handle(state, Welcomed(1))
        assert handle(state, start(FIRST, OTHER_RANK)) == []

    def test_a_released_attempt_is_a_fence_still(self):
        state = recover([], {("job1", 0): 2})
        handle(state, Welcomed(1))
        assert handle(state, start(SECOND)) == []
        assert handle(state, start(THIRD)) == [Spawn(Start(THIRD))]

    def test_a_start_that_never_began_is_taken_when_it_is_said_again(self):
        state = recover([], {})
        handle(state, Welcomed(1))
        assert handle(state, start(FIRST)) == [Spawn(Start(FIRST))]


class TestLeftAlone:
    """Without a coordinator for as long as the operator allows."""

    def test_who_runs_is_stopped_with_its_grace_and_noted(self, state):
        handle(state, start(FIRST))
        handle(state, spawned(FIRST))
        handle(state, StreamLost())
        assert handle(state, LeftAlone()) == [Fence(FIRST)]
        assert handle(state, LeftAlone()) == []

    def test_who_is_only_being_started_is_stopped_when_it_exists(self, state):
        handle(state, start(FIRST))
        handle(state, StreamLost())
        assert handle(state, LeftAlone()) == [Fence(FIRST)]
        assert Signal(FIRST, Stop.GRACE) in handle(state, spawned(FIRST))

    def test_who_was_told_to_stop_before_is_let_be(self, state):
        handle(state, start(FIRST))
        handle(state, spawned(FIRST))
        handle(state, StopCommanded(1, (FIRST,), Stop.RESTART))
        handle(state, StreamLost())
        assert handle(state, LeftAlone()) == []

    def test_a_session_that_opened_just_now_is_none_without_one(self, state):
        handle(state, start(FIRST))
        handle(state, spawned(FIRST))
        handle(state, Welcomed(1))
        assert handle(state, LeftAlone()) == []


def test_a_restart_has_a_grace_of_its_own_and_the_end_of_the_job_another(state):
    handle(state, start(FIRST))
    handle(state, spawned(FIRST))
    assert handle(state, StopCommanded(1, (FIRST,), Stop.RESTART)) == [Signal(FIRST, Stop.RESTART)]
    assert handle(state, StopCommanded(1, (FIRST,), Stop.RESTART)) == []
    assert handle(state, StopCommanded(1, (FIRST,), Stop.GRACE)) == [Signal(FIRST, Stop.GRACE)]
