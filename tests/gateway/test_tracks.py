import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.v1 import job_pb2
from holdfast_gateway import tracks
from holdfast_gateway.tracks import LONGEST_INLINE, Track, Tracks, UnknownTrackError

PLACES = st.tuples(st.integers(0, 2_000), st.integers(1, 50), st.sampled_from([1, 2]))
MOVES = st.lists(st.tuples(PLACES, st.integers(0, 2**40)), max_size=60)


def at(cursors):
    return {(c.rank, c.attempt, c.stream): c.offset for c in cursors}


@settings(max_examples=50, deadline=None)
@given(MOVES, st.data())
def test_an_id_is_where_the_reader_was_after_that_event(moves, data):
    """Also long ago: what is still on its way to a reader when its connection is cut must be gone back over."""
    kept, track, ids, wanted = Tracks(), Track(), [], []
    for place, offset in moves:
        track.move(place, offset)
        ids.append(track.id(kept))
        wanted.append(at(track.cursors()))
    if moves:
        n = data.draw(st.integers(0, len(moves) - 1))
        assert at(kept.resume(ids[n]).cursors()) == wanted[n]


def test_ids_of_many_logs_stay_short_and_are_known_here_alone():
    kept, track = Tracks(), Track()
    for rank in range(1_000):
        track.move((rank, 1, job_pb2.LOG_STREAM_STDOUT), rank)
        assert len(track.id(kept)) <= LONGEST_INLINE * 4 / 3 + 2
    last = track.id(kept)
    assert len(kept.resume(last).cursors()) == 1_000
    with pytest.raises(UnknownTrackError):
        Tracks().resume(last)


def test_an_id_of_few_logs_is_known_to_every_gateway():
    track = Track()
    track.move((3, 2, job_pb2.LOG_STREAM_STDERR), 17)
    assert at(Tracks().resume(track.id(Tracks())).cursors()) == {(3, 2, job_pb2.LOG_STREAM_STDERR): 17}


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(tracks, "KEPT_EVENTS", 10)
    monkeypatch.setattr(tracks, "KEPT_TRACKS", 3)
    monkeypatch.setattr(tracks, "LONGEST_INLINE", 0)
    kept, ids = Tracks(), []
    track = Track()
    for offset in range(100):
        track.move((0, 1, 1), offset)
        ids.append(track.id(kept))
    for n, known in enumerate(ids[-10:], 90):
        assert at(kept.resume(known).cursors()) == {(0, 1, 1): n}
    with pytest.raises(UnknownTrackError):
        kept.resume(ids[5])
    for _ in range(3):
        other = Track()
        other.move((0, 1, 1), 1)
        other.id(kept)
    with pytest.raises(UnknownTrackError):
        kept.resume(ids[-1])


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_what_is_no_id_is_refused(text):
    try:
        track = Tracks().resume(text)
    except UnknownTrackError:
        return
    assert text.startswith("c")
    track.cursors()
