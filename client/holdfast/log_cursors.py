"""How far whoever reads logs is in each of them: every byte once, whatever is said twice."""

from collections.abc import Iterable

from holdfast.log_wire import AnyChunk, span
from holdfast.v1 import job_pb2


class Cursors:
    """The places of one reader, by rank, attempt and stream."""

    def __init__(self, cursors: Iterable[job_pb2.LogCursor] = ()) -> None:
        self._at = {(c.rank, c.attempt, c.stream): c.offset for c in cursors}

    def take(self, chunk: AnyChunk) -> bool:
        """Go on behind a chunk, and cut from it what was there before. False when that is all of it.

        What says where a log begins is no repetition, though it has no bytes.
        """
        at = chunk.cursor
        place = (at.rank, at.attempt, at.stream)
        raw, start, last = span(chunk)
        end = at.offset + last - start
        before = self._at.get(place)
        if before is not None:
            if at.offset < before:
                if end <= before:
                    return False
                chunk.data = raw[start + before - at.offset : last]
                at.offset = before
            chunk.skipped = at.offset - before
        self._at[place] = end
        return True

    def of(self, rank: int) -> list[job_pb2.LogCursor]:
        """Those of a rank."""
        return [cursor for cursor in self.all() if cursor.rank == rank]

    def all(self) -> list[job_pb2.LogCursor]:
        """All of them."""
        return [
            job_pb2.LogCursor(rank=rank, attempt=attempt, stream=stream, offset=offset)
            for (rank, attempt, stream), offset in self._at.items()
        ]

    def offset(self, rank: int, attempt: int, stream: "job_pb2.LogStream.ValueType") -> int | None:
        """Where it goes on in a log; None where it has not begun."""
        return self._at.get((rank, attempt, stream))

    def first_attempt(self, rank: int) -> int:
        """The first attempt of a rank that it has begun; 0: none."""
        return min((attempt for of, attempt, _ in self._at if of == rank), default=0)
