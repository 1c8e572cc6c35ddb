"""How far the reader of a log stream is, as the id of an event.

Such an id says where to go on in every log that has begun: rank, attempt, stdout or stderr, offset. While that is
short, the id holds all of it, and any gateway can go on from it, also one that was restarted. For a job of many workers
it would be many kilobytes on every line; then the id names a track that is kept here.
"""

import base64
import binascii
import secrets
from array import array
from collections import OrderedDict
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from holdfast.v1 import job_pb2

Place = tuple[int, int, "job_pb2.LogStream.ValueType"]

LONGEST_INLINE = 768
"""Bytes of places that an id holds itself; a third more as text. About 60 logs."""
KEPT_EVENTS = 65_536
"""Of a track: at least so many events before the newest can be gone on from. More are not on their way to a client."""
KEPT_TRACKS = 64
"""The ones used last. At 2 MiB each when full, 128 MiB."""
_INLINE, _KEPT = "c", "k"


class UnknownTrackError(Exception):
    """An id that is not known, or not any more."""


class Track:
    """The places of one stream, now and after each of its last events."""

    def __init__(self, cursors: Iterable[job_pb2.LogCursor] = ()) -> None:
        self.name = secrets.token_hex(8)
        self._offsets: dict[Place, int] = {}
        self._encoded: dict[Place, bytes] = {}
        self._size = 0
        self._kept = False
        self._places: list[Place] = []
        self._numbers: dict[Place, int] = {}
        self._base: dict[Place, int] = {}
        self._first = 0
        self._which, self._where = array("i"), array("q")
        for cursor in cursors:
            self._set((cursor.rank, cursor.attempt, cursor.stream), cursor.offset)

    def __contains__(self, place: Place) -> bool:
        """Whether a log has begun."""
        return place in self._offsets

    def move(self, place: Place, offset: int) -> None:
        """Go on to an offset in a log."""
        self._set(place, offset)
        if self._kept:
            if place not in self._numbers:
                self._numbers[place] = len(self._places)
                self._places.append(place)
            self._which.append(self._numbers[place])
            self._where.append(offset)
            if len(self._which) >= 2 * KEPT_EVENTS:
                self._fold(KEPT_EVENTS)

    def id(self, tracks: "Tracks") -> str:
        """The id of the event that ends here."""
        if not self._kept:
            if self._size <= LONGEST_INLINE:
                return _INLINE + base64.urlsafe_b64encode(b"".join(self._encoded.values())).decode().rstrip(
                    "="
                )
            self._kept, self._base = True, dict(self._offsets)
            tracks.keep(self)
        return f"{_KEPT}{self.name}.{self._first + len(self._which)}"

    def cursors(self, event: int | None = None) -> list[job_pb2.LogCursor]:
        """The places now, or after an event. Raises UnknownTrackError."""
        offsets = self._offsets
        if event is not None:
            if not self._first <= event <= self._first + len(self._which):
                raise UnknownTrackError
            offsets = dict(self._base)
            for which, where in zip(self._which[: event - self._first], self._where, strict=False):
                offsets[self._places[which]] = where
        return [_cursor(place, offset) for place, offset in offsets.items()]

    def _set(self, place: Place, offset: int) -> None:
        self._offsets[place] = offset
        if not self._kept:
            encoded = _encode(place, offset)
            self._size += len(encoded) - len(self._encoded.get(place, b""))
            self._encoded[place] = encoded

    def _fold(self, count: int) -> None:
        """Forget the oldest events."""
        for which, where in zip(self._which[:count], self._where, strict=False):
            self._base[self._places[which]] = where
        del self._which[:count], self._where[:count]
        self._first += count


class Tracks:
    """The tracks that are kept."""

    def __init__(self) -> None:
        self._tracks: OrderedDict[str, Track] = OrderedDict()

    def keep(self, track: Track) -> None:
        """Keep a track, and let go of the one that was not asked for the longest."""
        self._tracks[track.name] = track
        if len(self._tracks) > KEPT_TRACKS:
            self._tracks.popitem(last=False)

    def resume(self, event_id: str) -> Track:
        """A new track that goes on behind an event. Raises UnknownTrackError."""
        if event_id.startswith(_INLINE):
            return Track(_decode(event_id.removeprefix(_INLINE)))
        name, dot, event = event_id.removeprefix(_KEPT).partition(".")
        track = self._tracks.get(name)
        if track is None or not event_id.startswith(_KEPT) or not dot or not event.isdecimal():
            raise UnknownTrackError
        self._tracks.move_to_end(name)
        return Track(track.cursors(int(event[:20])))


def _cursor(place: Place, offset: int) -> job_pb2.LogCursor:
    rank, attempt, stream = place
    return job_pb2.LogCursor(rank=rank, attempt=attempt, stream=stream, offset=offset)


def _encode(place: Place, offset: int) -> bytes:
    """One of the cursors of a message; several of them behind each other are such a message, too."""
    return job_pb2.StreamLogsRequest(cursors=[_cursor(place, offset)]).SerializeToString()


def _decode(text: str) -> list[job_pb2.LogCursor]:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
        return list(job_pb2.StreamLogsRequest.FromString(raw).cursors)
    except (ValueError, binascii.Error, DecodeError) as error:
        raise UnknownTrackError from error
