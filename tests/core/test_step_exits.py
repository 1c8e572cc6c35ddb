"""Exits and restarts, of gangs and of ranks; fencing."""

from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.effects import ReleaseWorkers, StartWorkers, StopWorkers
from holdfast_coordinator.core.jobspec import Scope
from holdfast_coordinator.core.model import JobState, WorkerState
from holdfast_coordinator.core.step import deadline
from tests.core.builders import T0, found, key, leading, running, sent, spec


def test_a_dead_rank_takes_its_gang_down_and_all_start_again():
    cluster = running(3, backoff_ms=500)
    effects = cluster.exited(key(1), 1, at_step=7)
    cause = "rank 1 on node a: exit code 1 at step 7"
    assert sent(effects) == [
        StopWorkers((key(0), key(2)), force=False, reason=cause, restart=True),
        ReleaseWorkers((key(1),)),
    ]
    assert (cluster.job().state, cluster.job().reason) == (JobState.RESTARTING, cause)
    cluster.exited(key(0), signal=15)
    cluster.exited(key(2), signal=15)
    assert deadline(cluster.state) == T0 + 500
    (start,) = sent(cluster.tick(500))
    assert [(a.rank, a.attempt, a.restart_count) for a in start.assignments] == [
        (0, 2, 1),
        (1, 2, 1),
        (2, 2, 1),
    ]


def test_the_second_to_die_of_a_gang_decides_nothing():
    cluster = running(3)
    cluster.exited(key(1), 1)
    cluster.exited(key(0), 1)
    assert (cluster.gang().attempt, len(cluster.gang().streak)) == (2, 1)


def test_nothing_starts_before_all_of_the_old_attempt_are_gone():
    cluster = running(2, backoff_ms=0)
    cluster.exited(key(0), 1)
    assert sent(cluster.tick(60_000), StartWorkers) == []
    assert sent(cluster.exited(key(1), signal=9), StartWorkers) != []


def test_a_rank_that_had_succeeded_starts_again_with_its_gang():
    cluster = running(2, backoff_ms=0)
    cluster.exited(key(0), 0)
    (start,) = sent(cluster.exited(key(1), 1), StartWorkers)
    assert [a.rank for a in start.assignments] == [0, 1]


def test_in_scope_rank_the_others_go_on():
    cluster = running(3, Scope.RANK, backoff_ms=0)
    effects = cluster.exited(key(1), signal=9)
    assert sent(effects, StopWorkers) == []
    (start,) = sent(effects, StartWorkers)
    assert [(a.rank, a.attempt, a.local_rank) for a in start.assignments] == [(1, 2, 1)]
    assert [cluster.gang(index).attempt for index in range(3)] == [1, 2, 1]


def test_in_scope_rank_a_rank_that_had_succeeded_stays_so():
    cluster = running(2, Scope.RANK, backoff_ms=0)
    cluster.exited(key(0), 0)
    cluster.exited(key(1), 1)
    assert cluster.worker(0).state is WorkerState.SUCCEEDED
    cluster.started(key(1, 2))
    cluster.exited(key(1, 2), 0)
    assert cluster.job().state is JobState.SUCCEEDED


def test_a_job_of_which_all_that_is_left_waits_for_room_is_pending():
    cluster = running(2, Scope.RANK, backoff_ms=0)
    cluster.exited(key(0), 0)
    cluster.tick(10_000, "a")
    assert cluster.job().state is JobState.PENDING
    assert cluster.job().reason == "waits for room: no node is ready; start an agent"


def test_a_spent_budget_fails_the_job_and_stops_the_others():
    cluster = running(2, Scope.RANK, budget=0)
    effects = cluster.exited(key(0), 3)
    reason = "rank 0 on node a: exit code 3; its restart budget is 0"
    assert sent(effects, StopWorkers) == [StopWorkers((key(1),), force=False, reason=reason)]
    cluster.exited(key(1), 0)
    assert (cluster.job().state, cluster.job().reason) == (JobState.FAILED, reason)


def test_an_exit_is_released_though_nobody_expects_it():
    cluster = running(1)
    effects = cluster.exited(key(0, 9), 1)
    assert sent(effects) == [ReleaseWorkers((key(0, 9),))]
    assert effects.writes == ()


def test_a_worker_of_a_superseded_attempt_can_not_start():
    cluster = running(2, backoff_ms=0)
    cluster.exited(key(0), 1)
    cluster.exited(key(1), 1)
    assert cluster.started(key(0)).reason == "Key(job_id='j1', rank=0, attempt=1) is superseded"


def test_a_worker_starts_on_the_node_that_it_was_placed_on():
    cluster = leading("a", "b")
    cluster.submit(spec(1))
    effects = cluster.started(key(0), node="b")
    assert effects.reason == "Key(job_id='j1', rank=0, attempt=1) is not expected on node b"
    assert effects.writes == ()
    assert cluster.worker().state is WorkerState.STARTING


def test_reconnecting_eats_no_progress():
    """A commit is progress of the attempt that made it, whenever the job happens to be looked at."""
    cluster = running(1, backoff_ms=0, budget=1)
    cluster.exited(key(0), 1)
    cluster.started(key(0, 2))
    cluster.prepare(key(0, 2), 10)
    cluster.join("a", (found(key(0, 2)),))
    cluster.exited(key(0, 2), 1)
    assert cluster.job().ending is None


def test_a_backoff_that_is_over_wakes_nobody_while_there_is_no_room():
    """Or the engine would step one Ticked after another without ever sleeping."""
    cluster = running(1, backoff_ms=500)
    cluster.exited(key(0), 1)
    cluster.lose_stream()
    assert deadline(cluster.state) == T0 + 500
    cluster.tick(500)
    assert cluster.job().state is JobState.PENDING
    assert deadline(cluster.state) is None


def test_the_backoff_of_a_rank_wakes_nobody_while_its_job_is_stopped():
    cluster = running(2, Scope.RANK, backoff_ms=500)
    cluster.exited(key(0), 1)
    cluster.stop()
    assert deadline(cluster.state) == cluster.gang(1).stopping.term_ms > T0 + 500
    cluster.answer(key(1), None)
    assert deadline(cluster.state) == cluster.gang(1).stopping.kill_ms


def test_the_earliest_backoff_is_the_deadline():
    cluster = running(2, Scope.RANK, backoff_ms=500)
    cluster.exited(key(1), 1)
    cluster.now += 100
    cluster.exited(key(0), 1)
    assert deadline(cluster.state) == T0 + 500


def test_without_waiting_there_is_no_deadline():
    assert deadline(running(2).state) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["die", "exit", "commit", "tick", "rejoin"])),
        max_size=30,
    )
)
def test_any_order_of_events_keeps_the_invariants(events):
    """The checks are in `Cluster.do`."""
    cluster = leading("a", "b")
    cluster.submit(spec(3, backoff_ms=100, budget=99))
    for step, (rank, what) in enumerate(events, 1):
        worker = cluster.worker(rank)
        live = worker.state in ("starting", "running", "stopping")
        if what == "tick":
            cluster.tick(200)
        elif what == "rejoin":
            here = [w for w in cluster.state.live_on("a") if w.state != "starting"]
            cluster.join("a", tuple(found(w.key) for w in here))
        elif live and what == "commit":
            cluster.prepare(worker.key, step)
        elif live:
            cluster.exited(worker.key, 0 if what == "exit" else 1, at_step=step)
