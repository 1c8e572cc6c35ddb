"""Which node each worker goes to."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from holdfast_coordinator.core.jobspec import Resources
from holdfast_coordinator.core.model import Capacity, Node, NodeState, Worker, WorkerState
from holdfast_coordinator.core.placement import Room, Spot, place, usable
from tests.core.builders import key


def node(name="a", slots=4, **kwargs):
    capacity = Capacity(
        slots, kwargs.pop("cpus", 8.0), kwargs.pop("memory_bytes", 2**33), kwargs.pop("gpus", 0)
    )
    return Node(name, f"i-{name}", NodeState.READY, "", "addr", capacity, 0, session=f"s-{name}", **kwargs)


def room(name="a", slots=4, **kwargs):
    return Room.of(node(name, slots, **kwargs), [])


def waiting(count, *homes):
    homes += ("",) * count
    return [Worker("j1", rank, 0, WorkerState.WAITING, node=homes[rank]) for rank in range(count)]


def where(spots):
    return [spot.node for spot in spots]


def test_one_node_takes_all_that_fit():
    assert place(waiting(3), Resources(), [room()]) == (
        (Spot(0, "a", ()), Spot(1, "a", ()), Spot(2, "a", ())),
        "",
    )


def test_all_or_nothing():
    spots, reason = place(waiting(5), Resources(), [room()])
    assert spots == ()
    assert reason == "short of slots: needs 5, 4 free on 1 node"


def test_tenths_of_a_cpu_add_up():
    """Ten times 0.1 is a little less than 1 in floating point."""
    spots, _ = place(waiting(10), Resources(cpus=0.1), [room("a", 10, cpus=1.0)])
    assert len(spots) == 10
    almost = Room.of(node("a", cpus=0.3), [(waiting(1)[0], Resources(cpus=0.1))])
    assert almost.fits(Resources(cpus=0.2)) == 1


def test_no_node_at_all():
    assert place(waiting(1), Resources(), []) == ((), "no node is ready; start an agent")


def test_the_roomiest_node_is_filled_first_by_rank():
    spots, _ = place(waiting(5), Resources(), [room("a", 2), room("b", 4)])
    assert where(spots) == ["b", "b", "b", "b", "a"]


def test_a_rank_goes_back_home():
    spots, _ = place(waiting(3, "a", "b", "a"), Resources(), [room("a", 4), room("b", 4)])
    assert where(spots) == ["a", "b", "a"]


def test_home_is_left_when_it_is_full_or_gone():
    spots, _ = place(waiting(3, "a", "gone", "a"), Resources(), [room("a", 1), room("b", 4)])
    assert where(spots) == ["a", "b", "b"]


def test_gpus_are_given_once():
    rooms = [room("a", 4, gpus=4)]
    spots, _ = place(waiting(2), Resources(gpus=2), rooms)
    assert [spot.gpus for spot in spots] == [(0, 1), (2, 3)]
    busy = Worker("j0", 0, 0, WorkerState.RUNNING, gpus=(0, 2))
    left = Room.of(node("a", 4, gpus=4), [(busy, Resources(gpus=2))])
    assert place(waiting(1), Resources(gpus=2), [left])[0] == (Spot(0, "a", (1, 3)),)


def test_what_is_short_is_named():
    needs = Resources(cpus=3.0, memory_bytes=2**32, gpus=1)
    _, reason = place(waiting(3), needs, [room("a"), room("b", 0, cpus=0.5, memory_bytes=0)])
    assert reason == (
        "short of cpus: needs 9, 8.5 free; memory: needs 12 GiB, 8 GiB free; gpus: needs 3, 0 free on 2 nodes"
    )


def test_pieces_too_small_are_told_from_too_little():
    _, reason = place(waiting(1), Resources(cpus=10.0), [room("a"), room("b")])
    assert (
        reason == "no room for 1 workers of slots 1, cpus 10 on 2 nodes: what is free is in pieces too small"
    )


def test_what_is_just_enough_is_not_short_and_what_is_not_needed_is_not_named():
    needs = Resources(memory_bytes=2**32)
    rooms = [room("a", 1, memory_bytes=2**33), room("b", 1, memory_bytes=0)]
    assert place(waiting(2), needs, rooms) == (
        (),
        "no room for 2 workers of slots 1, memory 4 GiB on 2 nodes: what is free is in pieces too small",
    )


def test_only_a_ready_node_with_a_session_and_no_strays_is_usable():
    good = node()
    assert usable(good)
    assert not usable(replace(good, state=NodeState.SUSPECT))
    assert not usable(replace(good, session=""))
    assert not usable(replace(good, strays=(key(0),)))


RESOURCES = st.builds(
    Resources,
    cpus=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]),
    memory_bytes=st.integers(0, 4),
    gpus=st.integers(0, 2),
)
ROOMS = st.lists(
    st.tuples(st.integers(0, 5), st.floats(0, 8), st.integers(0, 12), st.integers(0, 4)), max_size=5
)


@given(RESOURCES, ROOMS, st.integers(1, 12), st.data())
def test_placing_never_overcommits_and_is_all_or_nothing(needs, sizes, count, data):
    names = "abcde"[: len(sizes)]
    nodes = [
        node(name, slots, cpus=cpus, memory_bytes=memory, gpus=gpus)
        for name, (slots, cpus, memory, gpus) in zip(names, sizes, strict=True)
    ]
    ranks = waiting(count, *(data.draw(st.sampled_from(["", *names])) for _ in range(count)))
    rooms = [Room.of(there, []) for there in nodes]
    fits = sum(r.fits(needs) for r in rooms)
    spots, reason = place(ranks, needs, rooms)
    assert bool(spots) != bool(reason)
    assert bool(spots) == (fits >= count)
    if spots:
        assert [spot.rank for spot in spots] == list(range(count))
    for there in nodes:
        here = [spot for spot in spots if spot.node == there.name]
        assert len(here) <= there.capacity.slots
        assert len(here) * needs.cpus <= there.capacity.cpus + 1e-6
        assert len(here) * needs.memory_bytes <= there.capacity.memory_bytes
        gpus = [gpu for spot in here for gpu in spot.gpus]
        assert len(gpus) == len(set(gpus)) == len(here) * needs.gpus
        assert set(gpus) <= set(range(there.capacity.gpus))
