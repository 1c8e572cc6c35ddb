"""Curves have a bounded number of points, which say as much as so many can."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_coordinator.core.series import (
    MOST_POINTS,
    MOST_SERIES,
    OWN,
    RECENT,
    Point,
    admitted,
    crowded_out,
    thin,
)

gaps = st.lists(st.integers(1, 10**7), min_size=1, max_size=400)


def curve(gaps_ms, begin=0):
    at, points = begin, []
    for step, gap in enumerate(gaps_ms):
        points.append(Point(at, step, float(step % 7)))
        at += gap
    return points


@given(gaps, st.integers(2, 400))
def test_a_thinned_curve_is_bounded_ordered_and_keeps_its_ends(gaps_ms, most):
    points = curve(gaps_ms)
    kept = thin(points, most)
    assert len(kept) == len(points) if len(points) <= most else 2 <= len(kept) <= most
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert set(kept) <= set(points)
    assert [point.at_ms for point in kept] == sorted(point.at_ms for point in kept)
    assert thin(points, most) == kept
    assert thin(kept, most) == kept


@given(st.integers(20, 1_000), st.integers(2, 40))
def test_points_that_come_evenly_are_thinned_evenly(count, most):
    kept = [point.at_ms for point in thin(curve([1_000] * count), most)]
    widest = max(after - before for before, after in pairwise(kept))
    assert widest <= 2 * (1_000 + count * 1_000 / (most - 1))


def grown(gaps_ms, at_once):
    """A series as it is after points were added to it, some at a time."""
    kept = []
    points = curve(gaps_ms)
    for start in range(0, len(points), at_once):
        kept += points[start : start + at_once]
        gone = set(crowded_out(kept))
        kept = [point for point in kept if point not in gone] if gone else kept
        assert len(kept) <= MOST_POINTS
        assert kept[0] == points[0]
        newest = points[: start + at_once][-RECENT:]
        assert kept[-len(newest) :] == newest
    return kept


def test_no_stretch_of_a_long_curve_is_emptied():
    """However long ago: a series that was thinned by halves of its older half would keep nothing of its beginning."""
    count = 6_000
    kept = [point.at_ms for point in grown([1_000] * count, at_once=10)]
    widest = max(after - before for before, after in pairwise(kept))
    assert widest <= 6 * count * 1_000 / MOST_POINTS


@settings(max_examples=20)
@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=20), st.integers(100, 700))
def test_a_series_grows_within_its_bound_however_its_points_come(gaps_ms, at_once):
    grown([*gaps_ms * (2_000 // len(gaps_ms)), 10**9, *gaps_ms * 10], at_once)


NAMES = [*OWN, *(f"m{n}" for n in range(60))]


@given(st.lists(st.sets(st.sampled_from(NAMES)), max_size=6))
def test_a_job_has_a_bounded_number_of_series_and_always_its_own(reports):
    known = set()
    for fresh in reports:
        found = admitted(known, fresh)
        assert fresh & (known | set(OWN)) <= set(found) <= fresh
        known |= set(found)
        assert len(known) <= MOST_SERIES
    assert admitted(known, known | set(OWN)) == sorted(known | set(OWN))
