"""Joining, reattaching, losing nodes; a leader that takes over."""

from dataclasses import replace

from holdfast_coordinator.core.effects import (
    CloseSession,
    ReleaseWorkers,
    Send,
    StartWorkers,
    StopWorkers,
    Welcome,
)
from holdfast_coordinator.core.events import Found, WorkerExited
from holdfast_coordinator.core.jobspec import Resources, Scope
from holdfast_coordinator.core.model import JobState, NodeState, WorkerState
from holdfast_coordinator.core.step import deadline
from tests.core.builders import T0, ended, found, key, leading, running, sent, spec


def test_a_session_opens_with_welcome():
    cluster = leading()
    assert cluster.join("a").commands == (Send("s1", Welcome()),)
    assert (cluster.node().state, cluster.node().reason) == (NodeState.READY, "connected")


def test_running_workers_are_reattached_and_nothing_is_said():
    cluster = running(2)
    cluster.lose_stream()
    assert sent(cluster.join("a", (found(key(0)), found(key(1))))) == [Welcome()]
    assert cluster.job().state is JobState.RUNNING


def test_a_worker_whose_start_was_not_reported_is_found():
    cluster = leading("a")
    cluster.submit(spec(1))
    cluster.lose_stream()
    cluster.now += 7
    cluster.join("a", (found(key(0)),))
    assert (cluster.worker().state, cluster.worker().pid) == (WorkerState.RUNNING, 100)
    assert cluster.job().started_ms == T0 + 7


def test_a_start_that_is_reported_twice_is_noted_once():
    cluster = running(1)
    cluster.join("a", (found(key(0)),))
    assert cluster.started(key(0), pid=100).writes == ()


def test_a_worker_that_was_found_before_it_had_a_process_gets_its_pid():
    cluster = leading("a")
    cluster.submit(spec(1))
    cluster.join("a", (Found(key(0)),))
    assert (cluster.worker().state, cluster.worker().pid) == (WorkerState.RUNNING, 0)
    cluster.started(key(0), pid=101)
    assert cluster.worker().pid == 101


def test_a_start_that_was_lost_is_said_again():
    cluster = leading("a")
    (start,) = sent(cluster.submit(spec(2)))
    cluster.lose_stream()
    assert sent(cluster.join("a")) == [Welcome(), start]


def test_a_start_of_which_a_part_was_lost_gives_the_rest_the_same_gpus():
    cluster = leading("a")
    (start,) = sent(cluster.submit(spec(2, resources=Resources(gpus=1))))
    assert sent(cluster.join("a", (found(key(0)),)), StartWorkers) == [
        replace(start, assignments=start.assignments[1:])
    ]


def test_a_start_is_not_said_again_to_a_machine_that_has_booted():
    """It may have run before, and its directory is gone: the same key must never run twice (P6)."""
    cluster = leading("a")
    cluster.submit(spec(1))
    effects = cluster.join("a", boot_id="boot-2")
    assert [a.attempt for start in sent(effects, StartWorkers) for a in start.assignments] == [2]


def test_a_start_is_not_said_again_to_another_agent():
    """The one before it may have applied it; this one has another state directory, and cannot know (P6)."""
    cluster = leading("a")
    cluster.submit(spec(1))
    cluster.lose_stream()
    effects = cluster.join("a", instance_id="another")
    assert [a.attempt for start in sent(effects, StartWorkers) for a in start.assignments] == [2]


def test_a_worker_that_is_gone_is_lost_and_its_gang_superseded():
    cluster = running(2)
    effects = cluster.join("a", (found(key(0)),))
    gone = "rank 1: it was gone when the agent of node a came back"
    assert sent(effects, StopWorkers) == [StopWorkers((key(0),), force=False, reason=gone, restart=True)]
    assert (cluster.worker(1).state, cluster.gang().attempt) == (WorkerState.LOST, 2)


def test_an_exit_that_happened_meanwhile_keeps_its_status():
    cluster = running(2, Scope.RANK)
    cluster.lose_stream()
    effects = cluster.join("a", (found(key(0)), found(key(1), ended(0), at_step=9)))
    assert sent(effects) == [Welcome(), ReleaseWorkers((key(1),))]
    assert (cluster.worker(1).state, cluster.worker(1).progress.step) == (WorkerState.SUCCEEDED, 9)


def test_a_stop_that_was_lost_is_said_again():
    cluster = running(2)
    cluster.stop()
    cluster.answer(key(0), None)
    cluster.lose_stream()
    effects = cluster.join("a", (found(key(0)), found(key(1))))
    again = StopWorkers((key(0), key(1)), force=False, reason="it was told to stop before")
    assert sent(effects) == [Welcome(), again]


def test_superseded_workers_are_killed_and_nothing_is_placed_beside_them():
    cluster = running(1, nodes=("a",))
    cluster.tick(10_000, "a")
    assert cluster.job().state is JobState.PENDING
    effects = cluster.join("a", (found(key(0)),))
    assert sent(effects) == [
        Welcome(),
        StopWorkers((key(0),), force=True, reason="their attempts are superseded"),
    ]
    assert cluster.node().strays == (key(0),)
    assert [type(c) for c in sent(cluster.exited(key(0), signal=9))] == [StartWorkers, ReleaseWorkers]
    assert cluster.node().strays == ()


def test_another_agent_can_not_take_a_name_that_is_connected():
    cluster = leading("a")
    effects = cluster.join("a", instance_id="other")
    reason = "another agent is connected as node a; start this one with another --name"
    assert effects.commands == (Send("s2", CloseSession(reason)),)
    assert effects.writes == ()


def test_a_newer_session_of_the_same_agent_takes_over():
    cluster = running(1)
    effects = cluster.join("a", (found(key(0)),))
    assert effects.commands[0] == Send("s1", CloseSession("a newer session speaks for this node"))
    assert cluster.lose_stream("a", "s1").reason == "session s1 does not speak for node a"
    assert cluster.node().state is NodeState.READY


def test_a_broken_stream_makes_a_suspect_and_kills_nothing():
    cluster = running(1)
    assert cluster.lose_stream().commands == ()
    assert cluster.node().state is NodeState.SUSPECT
    assert cluster.tick(9_999, "a").commands == ()
    assert cluster.worker().state is WorkerState.RUNNING


def test_a_pod_whose_stream_broke_is_lost_soon_and_its_gang_goes_on_elsewhere():
    cluster = running(2, nodes=("a", "b"))
    cluster.tick(900, "a")
    cluster.lose_stream(ends_workers=True)
    assert cluster.tick(1_999, "a").commands == ()
    (start,) = sent(cluster.tick(1, "a"), StartWorkers)
    assert [(a.rank, a.attempt) for a in start.assignments] == [(0, 2), (1, 2)]
    assert cluster.node().state is NodeState.LOST


def test_a_pod_that_is_back_in_time_keeps_its_workers():
    cluster = running(2)
    cluster.lose_stream(ends_workers=True)
    cluster.tick(1_999, "a")
    cluster.join("a", (found(key(0)), found(key(1))))
    assert cluster.tick(1_999, "a").commands == ()
    cluster.lose_stream()  # and what one agent said holds for no other
    assert cluster.tick(2_001, "a").commands == ()
    assert {worker.state for worker in cluster.state.workers.values()} == {WorkerState.RUNNING}


def test_a_new_leader_waits_for_pods_as_for_any_node():
    cluster = running(1)
    cluster.lose_stream(ends_workers=True)
    cluster.restart_coordinator()
    assert cluster.tick(9_999, "a").commands == ()
    assert cluster.node().state is NodeState.SUSPECT


def test_a_pod_that_was_silent_when_its_stream_broke_has_the_time_of_any_node():
    cluster = running(1)
    cluster.tick(6_000, "a")
    cluster.lose_stream(ends_workers=True)
    assert cluster.tick(3_999, "a").commands == ()
    assert cluster.node().state is NodeState.SUSPECT


def test_a_suspect_gets_no_new_work():
    cluster = leading("a")
    cluster.lose_stream()
    assert sent(cluster.submit(spec(1))) == []


def test_a_silent_node_is_suspected_and_heard_from_again():
    cluster = leading("a")
    cluster.tick(5_000, "a")
    assert cluster.node().state is NodeState.SUSPECT
    cluster.tick(1)
    assert cluster.node().state is NodeState.READY


def test_a_lost_node_takes_its_workers_with_it():
    cluster = running(2, nodes=("a", "b"), backoff_ms=500)
    effects = cluster.tick(10_000, "a")
    assert effects.commands[0] == Send("s1", CloseSession("node a was lost: not heard from for 10.0 s"))
    (start,) = sent(effects, StartWorkers)
    assert [(a.rank, a.attempt) for a in start.assignments] == [(0, 2), (1, 2)]
    assert {cluster.worker(rank).node for rank in (0, 1)} == {"b"}
    assert cluster.gang().streak == ()


def test_in_scope_rank_only_the_lost_ranks_move():
    cluster = leading("a", "b")
    cluster.submit(spec(5, Scope.RANK))
    for rank in range(5):
        cluster.started(key(rank))
    effects = cluster.tick(10_000, "b")
    assert sent(effects, StopWorkers) == []
    assert [cluster.gang(index).attempt for index in range(5)] == [1, 1, 1, 1, 2]


def test_progress_before_a_loss_clears_the_streak():
    cluster = running(1, backoff_ms=0)
    cluster.exited(key(0))
    cluster.prepare(key(0, 2), 10)
    assert len(cluster.gang().streak) == 1
    cluster.tick(10_000, "a")
    assert cluster.gang().streak == ()


def test_a_new_leader_presumes_nobody_dead_and_touches_no_worker():
    cluster = running(2, nodes=("a", "b"))
    effects = cluster.restart_coordinator()
    assert effects.commands == ()
    assert {node.state for node in cluster.state.nodes.values()} == {NodeState.SUSPECT}
    assert {worker.state for worker in cluster.state.workers.values()} == {WorkerState.RUNNING}
    assert cluster.tick().commands == ()


def test_a_new_leader_leaves_the_lost_lost():
    cluster = leading("a")
    cluster.tick(10_000, "a")
    cluster.restart_coordinator()
    assert cluster.node().state is NodeState.LOST


def test_epochs_grow():
    cluster = leading()
    cluster.restart_coordinator()
    assert cluster.state.epoch == 2


def test_a_clock_set_back_does_not_make_a_backoff_eternal():
    cluster = running(1, backoff_ms=500, backoff_cap_ms=30_000)
    cluster.exited(key(0))
    cluster.now -= 10**6
    cluster.restart_coordinator()
    assert deadline(cluster.state) == cluster.now + 30_000


def test_a_backoff_outlives_the_coordinator_and_is_not_begun_again():
    cluster = running(1, backoff_ms=500, backoff_cap_ms=30_000)
    cluster.exited(key(0))
    cluster.now += 100
    cluster.restart_coordinator()
    assert deadline(cluster.state) == T0 + 500


def test_what_an_old_session_says_is_dropped():
    cluster = running(1)
    cluster.lose_stream()
    cluster.join("a", (found(key(0)),))
    late = cluster.do(WorkerExited(cluster.now, "a", "s1", key(0), ended()))
    assert late.reason == "session s1 does not speak for node a"
    assert late.writes == ()


def test_a_port_is_reserved_for_one_gang():
    cluster = leading("a")
    for number in (1, 2):
        cluster.submit(spec(1), f"j{number}")
    assert [cluster.gang(0, f"j{n}").master_port for n in (1, 2)] == [7001, 7002]
    assert sent(cluster.submit(spec(1), "j3")) == []
    assert cluster.job("j3").reason == "waits for room: node a has no free port to offer yet"
    (start,) = sent(cluster.offer("a", 7003))
    assert start.master_port == 7003


def test_a_port_that_is_offered_while_it_is_being_taken_is_not_taken_twice():
    """The offer left the agent before the start that takes its first port had arrived."""
    cluster = leading("a")
    cluster.submit(spec(1))
    cluster.offer("a", 7001, 7002)
    cluster.submit(spec(1), "j2")
    assert cluster.gang(0, "j2").master_port == 7002


def test_the_time_of_a_worker_that_is_lost_with_its_node_was_kept_up_to_its_commit():
    cluster = running(1, nodes=("a", "b"), backoff_ms=0)
    home = cluster.where(key(0))
    cluster.tick(60_000)
    cluster.prepare(key(0), 100)
    cluster.tick(10_000, home)
    account = cluster.worker(0).account
    assert (account.kept_ms, account.stepping_ms, account.setup_ms) == (60_000, 69_999, 1)
    assert (account.steps_done, account.steps_redone) == (100, 0)


def test_of_one_that_committed_nothing_no_step_is_known():
    cluster = running(1, nodes=("a", "b"), backoff_ms=0)
    cluster.tick(60_000)
    cluster.tick(10_000, cluster.where(key(0)))
    account = cluster.worker(0).account
    assert (account.kept_ms, account.setup_ms, account.steps_done) == (0, 70_000, 0)
