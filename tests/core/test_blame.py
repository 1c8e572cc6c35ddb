"""The first culprit is told from its victims (P10)."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.blame import AS_ONE_MS, shown, verdict
from holdfast_coordinator.core.model import Exit, Worker, WorkerState

FAILED, STOPPED, LOST = WorkerState.FAILED, WorkerState.STOPPED, WorkerState.LOST


def dead(rank, at=0, code=1, signal=0, state=FAILED, line=""):
    how = Exit(-1 if signal else code, signal, f"exit code {code}", 1_000 + at, line=line)
    return Worker("j1", rank, 0, state, exit=how)


def ranks(found):
    return found.culprit.rank, [w.rank for w in found.victims], [w.rank for w in found.stopped]


def test_the_earliest_of_those_that_ended_by_themselves():
    members = [dead(0, at=700), dead(1, at=200), dead(2, at=900, signal=15, state=STOPPED)]
    assert ranks(verdict(members)) == (1, [0], [2])


def test_whoever_says_that_a_peer_was_gone_is_a_victim_however_early():
    gone = "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"
    members = [
        dead(0, at=0, line=gone),
        dead(1, at=400, line="ZeroDivisionError"),
        dead(2, at=1, line=gone),
    ]
    assert ranks(verdict(members)) == (1, [0, 2], [])


def test_when_all_say_so_it_is_the_earliest():
    gone = "ConnectionResetError"
    assert ranks(verdict([dead(0, at=500, line=gone), dead(1, at=100, line=gone)])) == (1, [0], [])


def test_of_one_moment_the_one_that_was_killed():
    members = [dead(0, at=0), dead(1, at=AS_ONE_MS, signal=11), dead(2, at=AS_ONE_MS + 1, signal=9)]
    assert ranks(verdict(members)) == (1, [0, 2], [])


def test_one_that_failed_after_it_was_told_to_stop_may_be_the_culprit():
    """The coordinator heard of its victim first."""
    members = [dead(0, at=300), dead(1, at=100, signal=11, state=STOPPED)]
    assert ranks(verdict(members)) == (1, [0], [])


def test_one_that_hung_came_to_its_end_when_it_moved_last():
    hung = dead(1, at=900, signal=9, state=STOPPED)
    hung = replace(hung, exit=replace(hung.exit, hung_ms=700))
    assert ranks(verdict([dead(0, at=300), hung])) == (1, [0], [])


def test_a_lost_node_takes_all_that_ran_there():
    members = [dead(0, state=LOST), dead(1, state=LOST), dead(2, at=10, signal=15, state=STOPPED)]
    assert ranks(verdict(members)) == (0, [1], [2])


def test_nobody_is_to_blame_when_all_were_stopped():
    assert verdict([dead(0, signal=15, state=STOPPED), dead(1, code=0, state=STOPPED)]) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 10_000), st.sampled_from([0, 9, 11, 15]), st.sampled_from([FAILED, STOPPED]))
    )
)
def test_everyone_is_told_of_once(made):
    members = [dead(rank, at, signal=signal, state=state) for rank, (at, signal, state) in enumerate(made)]
    found = verdict(members)
    if found is None:
        assert all(worker.state is STOPPED for worker in members)
    else:
        culprit, victims, stopped = ranks(found)
        assert sorted([culprit, *victims, *stopped]) == list(range(len(members)))


def test_ranks_in_words():
    assert shown([3]) == "rank 3"
    assert shown([2, 0, 1, 5]) == "ranks 0 to 2, 5"
