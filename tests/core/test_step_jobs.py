"""Submitting, stopping and deleting jobs."""

import pytest

from holdfast_coordinator.core.effects import (
    AskStop,
    Assignment,
    ForgetJob,
    JobOver,
    Problem,
    Refusal,
    Send,
    StartWorkers,
    StopWorkers,
)
from holdfast_coordinator.core.jobspec import Resources, Scope
from holdfast_coordinator.core.model import Desired, JobState, WorkerState
from tests.core.builders import T0, key, leading, running, sent, spec


def test_a_job_that_fits_starts_at_once():
    cluster = leading("a")
    job_spec = spec(2)
    first = Assignment(0, 1, 0, 2, 0, (), 0)
    second = Assignment(1, 1, 1, 2, 0, (), 0)
    assert cluster.submit(job_spec).commands == (
        Send("s1", StartWorkers("j1", job_spec, (first, second), "10.0.0.a", 7001, ())),
    )
    assert cluster.job().state is JobState.STARTING
    assert cluster.node().ports == (7002,)


def test_it_runs_when_every_worker_is_up():
    cluster = leading("a")
    cluster.submit()
    cluster.started(key(0))
    assert (cluster.job().state, cluster.job().reason) == (JobState.STARTING, "1 of 2 workers are up")
    cluster.started(key(1))
    assert (cluster.job().state, cluster.job().reason) == (JobState.RUNNING, "2 of 2 workers are up")
    assert cluster.job().started_ms == T0


def test_it_succeeds_when_every_rank_exits_with_0():
    cluster = running(2)
    cluster.exited(key(0), 0)
    assert cluster.job().reason == "1 of 2 workers are up, 1 finished"
    cluster.now += 5
    cluster.exited(key(1), 0)
    assert (cluster.job().state, cluster.job().finished_ms) == (JobState.SUCCEEDED, T0 + 5)


@pytest.mark.parametrize("scope", Scope)
def test_the_end_of_a_job_is_told_where_something_may_be_preloaded_for_it(scope):
    cluster = running(8, scope, nodes=("a", "b"), preload=("numpy",))
    assert sent(cluster.exited(key(0), 0), JobOver) == []
    for rank in range(1, 7):
        cluster.exited(key(rank), 0)
    last = cluster.exited(key(7), 0)
    assert cluster.job().state is JobState.SUCCEEDED
    assert [send for send in last.commands if isinstance(send.command, JobOver)] == [
        Send(cluster.node(name).session, JobOver("j1")) for name in ("a", "b")
    ]


def test_the_end_of_a_job_that_was_stopped_is_told_too():
    cluster = running(1, preload=("numpy",))
    assert sent(cluster.stop(), JobOver) == []
    assert sent(cluster.exited(key(0), 0, 15), JobOver) == [JobOver("j1")]


def test_a_request_id_names_one_job():
    cluster = leading()
    cluster.submit(spec(1), "j1", "r")
    assert cluster.submit(spec(1), "j2", "r").writes == ()
    assert cluster.submit(spec(2), "j2", "r").refusal == Refusal(
        Problem.ALREADY_EXISTS,
        "request id r was used for another job, j1",
        "use a new request id for every job",
    )
    assert list(cluster.state.jobs) == ["j1"]


def test_a_request_id_outlives_the_coordinator():
    cluster = leading()
    cluster.submit(spec(1), "j1", "r")
    cluster.restart_coordinator()
    assert cluster.submit(spec(1), "j2", "r").writes == ()


def test_a_job_without_room_waits_and_says_what_is_short():
    cluster = leading("a")
    assert sent(cluster.submit(spec(5))) == []
    assert cluster.job().state is JobState.PENDING
    assert cluster.job().reason == "waits for room: short of slots: needs 5, 4 free on 1 node"
    assert len(sent(cluster.join("b"), StartWorkers)) == 2


def test_the_timeline_says_once_that_it_waits():
    cluster = leading()
    cluster.submit(spec(9))
    cluster.join("a")
    cluster.join("b")
    assert cluster.kinds().count("JobWaiting") == 1
    assert cluster.job().reason.endswith("needs 9, 8 free on 2 nodes")


def test_jobs_are_placed_in_the_order_they_came_and_a_small_one_may_pass():
    cluster = leading()
    for number, world in enumerate((6, 3, 3)):
        cluster.now += 1
        cluster.submit(spec(world), f"j{number}")
    cluster.join("a")
    assert [job.state for job in cluster.state.jobs.values()] == ["pending", "starting", "pending"]


def test_in_scope_rank_a_job_starts_whole_as_well():
    cluster = leading("a")
    assert sent(cluster.submit(spec(5, Scope.RANK)), StartWorkers) == []


def test_resources_are_placed_not_only_slots():
    cluster = leading("a")
    cluster.submit(spec(2, resources=Resources(cpus=3.0, gpus=2)))
    assert [cluster.worker(rank).gpus for rank in (0, 1)] == [(0, 1), (2, 3)]
    cluster.submit(spec(1, resources=Resources(cpus=3.0)), "j2")
    assert cluster.job("j2").reason == "waits for room: short of cpus: needs 3, 2 free on 1 node"


def test_a_worker_sees_all_gpus_of_its_gang_on_the_node():
    cluster = leading("a")
    (start,) = sent(cluster.submit(spec(2, resources=Resources(gpus=2))))
    assert [a.gpus for a in start.assignments] == [(0, 1, 2, 3), (0, 1, 2, 3)]


def test_stopping_asks_every_worker_and_waits_for_it():
    cluster = running(2)
    assert sent(cluster.stop()) == [AskStop((key(0), key(1)), "job stop", 22_500, None)]
    stop = StopWorkers((key(0), key(1)), force=False, reason="stopped by its user")
    assert sent(cluster.answer(key(1), None)) == [stop]
    assert (cluster.job().state, cluster.job().desired) == (JobState.STOPPING, Desired.STOPPED)
    cluster.exited(key(0), signal=15)
    cluster.exited(key(1), 0)
    assert cluster.job().state is JobState.STOPPED
    assert [cluster.worker(rank).state for rank in (0, 1)] == [WorkerState.STOPPED] * 2


def test_stopping_twice_is_stopping_once():
    cluster = running(1)
    cluster.stop()
    assert cluster.stop().writes == ()


def test_a_waiting_job_stops_at_once():
    cluster = leading()
    cluster.submit()
    cluster.stop()
    assert cluster.job().state is JobState.STOPPED


def test_force_tells_the_workers_once_more():
    cluster = running(2)
    cluster.stop()
    (again,) = sent(cluster.stop(force=True))
    assert again == StopWorkers((key(0), key(1)), force=True, reason="stopped by its user, by force")
    assert cluster.stop(force=True).writes == ()


def test_force_is_said_once_to_every_worker():
    cluster = running(4)
    cluster.stop(force=True)
    for rank in range(3):
        assert sent(cluster.exited(key(rank), signal=9), StopWorkers) == []


def test_a_failed_job_that_is_stopped_has_still_failed():
    cluster = running(2)
    cluster.exited(key(0), never_ran=True)
    cluster.stop()
    cluster.exited(key(1), signal=15)
    assert cluster.job().state is JobState.FAILED
    assert "starting it again cannot help" in cluster.job().reason


def test_a_running_job_can_not_be_deleted():
    cluster = running(1)
    assert cluster.delete().refusal == Refusal(
        Problem.FAILED_PRECONDITION, "job j1 is running", "stop it first, and wait until it has ended"
    )


def test_deleting_leaves_nothing_and_tells_every_node():
    cluster = running(1, nodes=("a", "b"))
    cluster.prepare(key(0), 5)
    cluster.exited(key(0), 0)
    assert cluster.delete().commands == (Send("s1", ForgetJob("j1")), Send("s2", ForgetJob("j1")))
    state = cluster.state
    left = [*state.rows(), *state.requests, *state.waiting, *state.on_node]
    assert left == list(state.nodes.values())
    assert cluster.store.commits("j1", limit=9) == []


def test_a_job_that_is_not_there():
    cluster = leading()
    for effects in (cluster.stop("j9"), cluster.delete("j9")):
        assert effects.refusal == Refusal(
            Problem.NOT_FOUND, "there is no job j9", "list the jobs to see their ids"
        )
