"""Rules, exclusion and times of exits, as the whole core does them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.effects import StartWorkers, StopWorkers
from holdfast_coordinator.core.exclusion import exclude
from holdfast_coordinator.core.jobspec import Action, CodeRange, ExitKind, Rule, Scope
from holdfast_coordinator.core.model import JobState, Output, WorkerState
from holdfast_coordinator.core.turn import Turn
from tests.core.builders import T0, found, key, leading, running, sent, spec


def rule(action, **conditions):
    return Rule(Action(action), **conditions)


CODE_5 = (CodeRange(5, 5),)


def test_what_never_ran_may_be_tried_again_by_a_rule():
    cluster = running(1, backoff_ms=0, rules=(rule("retry", kinds=(ExitKind.NEVER_RAN,)),))
    effects = cluster.exited(key(0), -1, never_ran=True, kind=ExitKind.NEVER_RAN)
    assert sent(effects, StartWorkers) != []


def test_a_rule_that_says_retry_is_charged_and_still_ends_with_the_budget():
    cluster = running(1, backoff_ms=0, budget=4, rules=(rule("retry"),))
    for attempt in range(1, 6):
        cluster.restart()
        cluster.exited(key(0, attempt), 1)
    assert cluster.job().state is JobState.FAILED
    assert "its budget of 4 restarts without progress is spent" in cluster.job().reason


def test_no_progress_can_be_turned_off_and_set():
    for limit, exits in ((0, 8), (1, 1), (5, 5)):
        cluster = running(1, backoff_ms=0, no_progress_limit=limit)
        for attempt in range(1, 9):
            if cluster.job().ending or cluster.job().state is JobState.FAILED:
                break
            cluster.restart()
            cluster.exited(key(0, attempt), 1)
        ended_by = attempt - 1 if limit else 8
        assert ended_by == exits
        assert (cluster.job().state is JobState.FAILED) is bool(limit)


def test_progress_in_between_is_no_rut():
    cluster = running(1, backoff_ms=0)
    for attempt in range(1, 12):
        cluster.restart()
        cluster.exited(key(0, attempt), 1, at_step=attempt)
    assert cluster.job().ending is None


def test_kills_from_outside_end_no_job():
    cluster = running(1, backoff_ms=0)
    for attempt in range(1, 12):
        cluster.restart()
        cluster.exited(key(0, attempt), -1, 9)
    assert cluster.job().ending is None


FULL = {"kind": ExitKind.DISK_FULL, "message": "exit code 1, disk full"}
UNSTARTED = {"message": "its agent could not start it: the disk is full"}


@pytest.mark.parametrize(("code", "how"), [(1, FULL), (-1, UNSTARTED)])
def test_a_node_that_can_run_nothing_is_left_where_there_is_another(code, how):
    cluster = running(1, nodes=("a", "b"), backoff_ms=0)
    home = cluster.where(key(0))
    for attempt in (1, 2, 3):
        assert cluster.where(key(0, attempt)) == home
        cluster.restart()
        cluster.exited(key(0, attempt), code, **how)
    assert cluster.gang().excluded == {home: f"3 times in a row {how['message']} there, and nowhere else"}
    assert cluster.where(key(0, 4)) != home


@pytest.mark.parametrize(("code", "how"), [(1, FULL), (-1, UNSTARTED)])
def test_the_only_node_is_tried_again_as_long_as_the_budget_lasts(code, how):
    cluster = running(1, backoff_ms=0, budget=8)
    for attempt in range(1, 9):
        cluster.restart()
        cluster.exited(key(0, attempt), code, **how)
    cluster.restart()
    cluster.exited(key(0, 9), signal=9)
    assert "its budget of 8 restarts without progress is spent" in cluster.job().reason


def test_in_a_gang_the_victims_decide_nothing():
    cluster = running(2, rules=(rule("ignore"),), backoff_ms=0)
    cluster.exited(key(0), 1, kind=ExitKind.ABANDONED)  # no rule is asked about it
    cluster.exited(key(1), 1)
    assert cluster.worker(1).state is not WorkerState.SUCCEEDED


def test_an_ignored_rank_ends_the_job_well():
    cluster = running(2, Scope.RANK, rules=(rule("ignore", exit_codes=CODE_5),))
    cluster.exited(key(0), 5)
    cluster.exited(key(1), 5)
    assert cluster.job().state is JobState.SUCCEEDED
    assert cluster.job().reason == "every rank has finished; 2 ranks are taken as such by a rule of the spec"


def test_who_was_stopped_by_its_own_agent_did_not_succeed_and_is_not_charged():
    cluster = running(1, backoff_ms=0)
    effects = cluster.exited(key(0), 0, kind=ExitKind.ABANDONED)
    assert sent(effects, StartWorkers) != []
    assert (cluster.gang().streak, cluster.gang().repeat.times) == ((), 0)


class TestExclusion:
    def exclude(self, cluster, node, gang=0):
        turn = Turn(cluster.state, cluster.now)
        exclude(turn, cluster.gang(gang), node, "it is slow")
        effects = turn.effects()
        cluster.store.commit(effects.writes, epoch=cluster.state.epoch)
        return effects

    def test_it_is_told_once(self):
        cluster = running(1, nodes=("a", "b"))
        where = cluster.where(key(0))
        cluster.exited(key(0), signal=9)
        assert len(self.exclude(cluster, where).writes) == 2
        assert self.exclude(cluster, where).writes == ()

    def test_nothing_of_the_gang_is_placed_there_and_others_are(self):
        cluster = running(1, nodes=("a", "b"), rules=(rule("exclude_node"),))
        cluster.exited(key(0), 1)
        assert cluster.where(key(0, 2)) == "b"
        cluster.submit(spec(7), "j2")
        assert {w.node for w in cluster.state.workers_of(cluster.job("j2"))} == {"a", "b"}

    def test_in_scope_rank_it_is_that_ranks_alone(self):
        cluster = running(2, Scope.RANK, nodes=("a", "b"), rules=(rule("exclude_node", signals=(7,)),))
        home = cluster.where(key(0))
        cluster.exited(key(0), -1, 7)
        assert cluster.where(key(0, 2)) != home
        assert cluster.gang(1).excluded == {}

    def test_a_restart_of_the_coordinator_forgets_nothing(self):
        cluster = running(1, rules=(rule("exclude_node"),))
        cluster.exited(key(0), 1)
        cluster.restart_coordinator()
        cluster.join("a")
        assert cluster.job().state is JobState.PENDING
        assert cluster.gang().excluded == {"a": "rule 1 of the spec, exit code 1"}

    @pytest.mark.parametrize(("boot", "back"), [("boot-1", False), ("boot-2", True)])
    def test_a_machine_that_booted_is_taken_back(self, boot, back):
        cluster = running(1, rules=(rule("exclude_node"),))
        cluster.exited(key(0), 1)
        cluster.lose_stream()
        cluster.join("a", boot_id=boot)
        assert (cluster.gang().excluded == {}) is back

    def test_the_only_node_is_never_excluded_by_default(self):
        cluster = running(2, backoff_ms=0)
        for attempt in (1, 2, 3):
            cluster.restart()
            cluster.exited(key(1, attempt), -1, 7)
            if attempt < 3:
                cluster.exited(key(0, attempt), -1, 15)
        assert cluster.gang().excluded == {}
        assert "built-in rule no_progress" in cluster.job().reason


class TestRestartGang:
    def test_ranks_that_restart_alone_restart_together(self):
        cluster = running(3, Scope.RANK, backoff_ms=0, rules=(rule("restart_gang", exit_codes=CODE_5),))
        effects = cluster.exited(key(1), 5)
        stopped = [k for command in sent(effects, StopWorkers) for k in command.keys]
        assert stopped == [key(0), key(2)]
        cluster.restart()
        assert [cluster.worker(rank).attempt for rank in range(3)] == [2, 2, 2]
        assert [len(cluster.gang(index).streak) for index in range(3)] == [0, 1, 0]

    def test_other_exits_do_not(self):
        cluster = running(3, Scope.RANK, backoff_ms=0, rules=(rule("restart_gang", exit_codes=CODE_5),))
        assert sent(cluster.exited(key(1), 6), StopWorkers) == []

    def test_a_spent_budget_ends_the_job_and_restarts_nobody(self):
        cluster = running(2, Scope.RANK, budget=0, rules=(rule("restart_gang"),))
        cluster.exited(key(0), 5)
        assert cluster.job().ending is JobState.FAILED
        assert cluster.gang(1).attempt == 1


class TestGraces:
    def test_survivors_have_one_of_their_own(self):
        (stop,) = sent(running(2).exited(key(0), 1), StopWorkers)
        assert stop.restart

    def test_who_is_stopped_with_the_job_has_the_jobs(self):
        cluster = running(1)
        cluster.stop()
        (stop,) = sent(cluster.answer(key(0), None), StopWorkers)
        assert not stop.restart

    def test_also_when_it_is_said_again(self):
        cluster = running(2)
        cluster.exited(key(0), 1)
        cluster.lose_stream()
        (again,) = sent(cluster.join("a", (found(key(1)),)), StopWorkers)
        assert again.restart


class TestTimes:
    def test_those_of_all_machines_are_by_one_clock(self):
        """Node a booted long before node b; their monotonic clocks have nothing in common."""
        cluster = leading()
        base = T0 * 1_000_000
        cluster.join("a", clock_offset_ns=base - 900_000)
        cluster.join("b", clock_offset_ns=base - 50)
        cluster.submit(spec(8))
        for rank in (0, 4):
            cluster.started(key(rank))
        cluster.now += 1
        cluster.exited(key(4), 1, ended_ns=70)
        cluster.exited(key(0), 1, ended_ns=900_010)
        of = [cluster.worker(rank).exit.ended_ns for rank in (0, 4)]
        assert of == [base + 10, base + 20]  # rank 0 was first, though it was heard of last

    def test_a_wall_clock_that_jumped_is_of_no_account(self):
        cluster = leading()
        cluster.join("a", clock_offset_ns=T0 * 1_000_000)
        cluster.submit(spec(1))
        cluster.now += 5_000
        exited = {"ended_ns": 3_000_000_000, "at_ms": T0 + 3_600_000}
        cluster.exited(key(0), 1, **exited)
        assert cluster.worker().exit.at_ms == T0 + 3_000

    def test_who_does_not_know_is_believed_by_the_wall_clock(self):
        cluster = running(1)
        cluster.now += 5_000
        cluster.exited(key(0), 1, at_ms=T0 + 2_000)
        assert (cluster.worker().exit.at_ms, cluster.worker().exit.ended_ns) == (T0 + 2_000, 0)


class TestEvidence:
    def tails(self, cluster):
        return [e.evidence for e in cluster.timeline if e.kind == "WorkerExited"]

    def test_the_last_lines_go_to_the_timeline(self):
        cluster = running(1)
        cluster.exited(key(0), 1, output=Output("a\nb"))
        assert self.tails(cluster) == ["a\nb"]

    def test_not_of_who_went_when_told_to(self):
        cluster = running(3)
        cluster.exited(key(0), 1, output=Output("culprit"))
        cluster.exited(key(1), -1, 15, output=Output("obeyed"))
        cluster.exited(key(2), 1, output=Output("victim"))
        assert self.tails(cluster) == ["culprit", "", "victim"]

    def test_of_a_large_gang_those_of_the_first(self):
        cluster = leading("a", "b", "c", "d", "e")
        cluster.submit(spec(20))
        for rank in range(20):
            cluster.exited(key(rank), 1, output=Output("x"))
        assert self.tails(cluster).count("x") == 16


def test_the_line_is_in_the_reason_where_it_is_what_ended_it():
    cluster = running(2, Scope.RANK)
    cluster.exited(key(0), 1, line="ValueError: nan")
    cluster.exited(key(1), -1, 9, line="epoch 3")
    causes = [cluster.gang(index).cause for index in range(2)]
    assert causes == [
        "rank 0 on node a: exit code 1: ValueError: nan",
        "rank 1 on node a: killed by signal 9",
    ]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["exit", "tick", "lose", "join", "restart"]),
            st.integers(0, 2),
            st.integers(0, 6),
            st.sampled_from([0, 7, 9]),
        ),
        max_size=25,
    ),
    st.sampled_from(Scope),
    st.permutations(Action),
)
def test_any_order_of_exits_and_rules_keeps_the_invariants(events, scope, actions):
    """The checks are in `Cluster.do`."""
    cluster = leading("a", "b", "c")
    of_spec = tuple(
        Rule(action, exit_codes=(CodeRange(code, code),)) for code, action in enumerate(actions, 1)
    )
    cluster.submit(spec(3, scope, backoff_ms=100, rules=of_spec))
    for what, rank, code, signal in events:
        live = cluster.worker(rank).state in ("starting", "running", "stopping")
        node = "abc"[rank]
        match what:
            case "exit" if live and cluster.node(cluster.where(key(rank))).session:
                which = cluster.worker(rank).key
                cluster.exited(which, -1 if signal else code, signal, at_step=code)
            case "tick":
                cluster.tick(code * 1_000, node)
            case "lose" if cluster.node(node).session:
                cluster.lose_stream(node)
            case "join":
                here = tuple(found(w.key) for w in cluster.state.live_on(node) if w.state != "starting")
                cluster.join(node, here, boot_id=f"boot-{code}")
            case "restart":
                cluster.restart_coordinator()


def test_ports_differ_from_attempt_to_attempt():
    cluster = running(2, backoff_ms=0, no_progress_limit=0)
    ports = []
    for attempt in range(1, 5):
        ports.append(cluster.gang().master_port)
        cluster.exited(key(0, attempt), 1)
        cluster.restart()
    assert len(set(ports)) == 4


def test_gpus_are_free_when_the_old_process_is_gone_and_not_before():
    cluster = running(2, backoff_ms=0, resources=replace(spec().resources, gpus=2))
    assert sent(cluster.exited(key(0), 1), StartWorkers) == []
    cluster.submit(spec(1, resources=replace(spec().resources, gpus=3)), "j2")
    assert cluster.job("j2").state is JobState.PENDING
    (start,) = sent(cluster.exited(key(1), -1, 15), StartWorkers)
    assert len(start.assignments) == 2
    assert {gpu for w in cluster.state.workers_of(cluster.job()) for gpu in w.gpus} == {0, 1, 2, 3}
