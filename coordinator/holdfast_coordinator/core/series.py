"""Curves of a job at a bounded number of points.

A series that is full loses points of its older part, so that what is left of that is spread evenly over its time: a
curve of a day and one of a month have as many points, and no stretch of either is emptied. Its first point stays, and
the newest ones all do.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

MOST_POINTS = 1_000
"""Of a series."""
RECENT = 250
"""The newest points of a series that is full, none of which goes."""
OLDER = 500
"""To how many the others are thinned then. The rest is room, so that this happens seldom."""
MOST_SERIES = 40
"""Of a job."""
OWN = ("goodput", "steps_per_second")
"""What the coordinator measures; a program's metric of such a name has no series."""


@dataclass(frozen=True, slots=True)
class Point:
    """A value at a time, in milliseconds since the Unix epoch, and at the step that the job had reached then."""

    at_ms: int
    step: int
    value: float


def crowded_out(points: Sequence[Point]) -> list[Point]:
    """What goes of a series, oldest first; nothing while it has no more than MOST_POINTS."""
    if len(points) <= MOST_POINTS:
        return []
    older = points[:-RECENT]
    kept = {point.at_ms for point in thin(older, OLDER)}
    return [point for point in older if point.at_ms not in kept]


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` (2 or more) of the points, spread evenly over their time, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    # The smallest gap that leaves few enough: one more than all of their time leaves the ends.
    least, enough = 0, points[-1].at_ms - points[0].at_ms + 1
    while enough - least > 1:
        middle = (least + enough) // 2
        if len(_spaced(points, middle)) <= most:
            enough = middle
        else:
            least = middle
    return _spaced(points, enough)


def _spaced(points: Sequence[Point], gap_ms: int) -> list[Point]:
    """The points that are so far from the one before; and the last, at worst in the place of the one before it."""
    kept = [points[0]]
    for point in points:
        if point.at_ms - kept[-1].at_ms >= gap_ms:
            kept.append(point)
    if kept[-1] is not points[-1]:
        if len(kept) > 1:
            kept.pop()
        kept.append(points[-1])
    return kept


def admitted(known: Collection[str], fresh: Iterable[str]) -> list[str]:
    """The names of `fresh` that a job with the series `known` has room for; there always is some for our own."""
    foreign = sum(name not in OWN for name in known)
    found = []
    for name in sorted(fresh):
        if name not in known and name not in OWN:
            if foreign >= MOST_SERIES - len(OWN):
                continue
            foreign += 1
        found.append(name)
    return found
