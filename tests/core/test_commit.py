"""When a checkpoint becomes the one to resume from."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.commit import AckAgain, Complete, Refuse, Wait, decide
from holdfast_coordinator.core.model import Commit, Gang, Prepared
from tests.core.builders import T0, shard

RANKS = (0, 1, 2)
GANG = Gang("j1", 0, attempt=2)


def prepared(rank, step=10, attempt=2):
    return Prepared("j1", 0, rank, attempt, step, shard(rank, attempt))


def held(*items):
    return {item.rank: item for item in items}


def committed(step=10, attempt=2):
    shards = tuple(shard(rank, attempt) for rank in RANKS)
    return replace(GANG, commit=Commit("j1", 0, step, attempt, T0, None, 3, shards))


def test_the_first_shards_wait():
    assert decide(GANG, RANKS, {}, prepared(1)) == Wait("step 10 waits for 2 of 3 ranks")


def test_the_last_shard_completes_it_in_order_of_rank():
    others = held(prepared(0), prepared(2))
    assert decide(GANG, RANKS, others, prepared(1)) == Complete((shard(0, 2), shard(1, 2), shard(2, 2)))


def test_a_gang_of_one_is_complete_at_once():
    assert decide(Gang("j1", 4, attempt=2), (4,), {}, prepared(4)) == Complete((shard(4, 2),))


class Unread(dict):
    """A gang's shards, at which nobody looks one by one."""

    def items(self):
        raise AssertionError("a gang of 10,000 would be walked for each of its shards")

    __iter__ = keys = values = items


def test_while_some_are_missing_the_others_are_not_looked_at():
    assert decide(GANG, RANKS, Unread(held(prepared(0))), prepared(1)) == Wait(
        "step 10 waits for 1 of 3 ranks"
    )


def test_shards_of_another_step_do_not_count():
    others = held(prepared(0, step=10), prepared(2, step=20))
    assert isinstance(decide(GANG, RANKS, others, prepared(1, step=20)), Wait)


def test_shards_of_another_attempt_do_not_count():
    others = held(prepared(0, attempt=1), prepared(2))
    assert isinstance(decide(GANG, RANKS, others, prepared(1)), Wait)


def test_a_superseded_attempt_is_refused():
    assert decide(GANG, RANKS, {}, prepared(1, attempt=1)) == Refuse("attempt 1 is superseded by attempt 2")


def test_an_attempt_that_is_yet_to_come_is_refused():
    assert isinstance(decide(GANG, RANKS, {}, prepared(1, attempt=3)), Refuse)


def test_a_lost_ack_is_given_again():
    gang = committed()
    assert decide(gang, RANKS, {}, prepared(1)) == AckAgain(gang.commit)


def test_another_shard_of_the_committed_step_is_refused():
    new = replace(prepared(1), shard=shard(1, 2, size=101))
    assert decide(committed(), RANKS, {}, new) == Refuse("step 10 is not after the committed step 10")


def test_the_committed_step_by_a_later_attempt_is_refused():
    gang = replace(committed(attempt=1), attempt=2)
    assert isinstance(decide(gang, RANKS, {}, prepared(1)), Refuse)


def test_an_older_step_is_refused():
    assert decide(committed(), RANKS, {}, prepared(1, step=9)) == Refuse(
        "step 9 is not after the committed step 10"
    )


SHARDS = st.tuples(st.sampled_from(RANKS), st.integers(1, 4), st.integers(1, 2))


@given(st.lists(SHARDS, max_size=60))
def test_committed_steps_only_grow_and_are_whole(arrivals):
    gang, waiting, steps = replace(GANG, attempt=1), {}, []
    for rank, step, attempt in arrivals:
        if attempt > gang.attempt:
            gang, waiting = replace(gang, attempt=attempt), {}
        new = prepared(rank, step, attempt)
        match decide(gang, RANKS, waiting, new):
            case Wait():
                waiting[rank] = new
            case Complete(shards):
                assert [s.rank for s in shards] == list(RANKS)
                assert {s.file for s in shards} == {shard(r, gang.attempt).file for r in RANKS}
                gang = replace(gang, commit=Commit("j1", 0, step, gang.attempt, T0, None, 3, shards))
                steps.append(step)
                waiting = {r: p for r, p in waiting.items() if p.step > step}
            case AckAgain(done):
                assert done == gang.commit
    assert steps == sorted(set(steps))
