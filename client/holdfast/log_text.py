"""Chunks of logs as lines, and of these the ones that match a regular expression."""

import re
from collections.abc import Iterator

from holdfast.log_wire import AnyChunk, span
from holdfast.v1 import job_pb2

LONGEST_LINE = 64 * 1024
"""A line that is longer is taken in pieces of this size: a progress bar may never end its line."""

Place = tuple[int, int, "job_pb2.LogStream.ValueType"]


class Lines:
    """Puts together the lines that chunks have cut; of each log it holds at most one piece of a line."""

    def __init__(self) -> None:
        self._rests: dict[Place, tuple[int, bytes]] = {}

    def add(self, chunk: AnyChunk) -> Iterator[tuple[int, bytes]]:
        """Take what follows in a log; give what is whole now, with its offset, at most a piece at a time.

        Either are lines, and end with a line end, or one piece of a line, and have none. Pieces are small for the
        memory's sake: the allocator takes blocks that are much larger from the kernel, and gives them back, every time.
        """
        data, at, last = span(chunk)
        cursor = chunk.cursor
        place = (cursor.rank, cursor.attempt, cursor.stream)
        offset = cursor.offset - at  # of where `data` begins
        if place in self._rests:
            begun, rest = self._rests.pop(place)
            if begun + len(rest) != cursor.offset:  # the rest of that line was freed
                yield begun, rest
            else:
                begin, room = at, LONGEST_LINE - len(rest)
                at = data.find(b"\n", begin, min(begin + room + 1, last)) + 1 or min(begin + room, last)
                line = rest + data[begin:at]
                if line.endswith(b"\n") or at < last:
                    yield begun, line
                else:
                    self._rests[place] = begun, line
                    return
        while last - at > LONGEST_LINE:
            end = data.rfind(b"\n", at, min(at + LONGEST_LINE + 1, last)) + 1 or at + LONGEST_LINE
            yield offset + at, data[at:end]
            at = end
        end = data.rfind(b"\n", at, last) + 1 or at
        if at < end:
            yield offset + at, data[at:end]
        if end < last:
            self._rests[place] = offset + end, data[end:last]

    def finish(self) -> Iterator[tuple[Place, int, bytes]]:
        """Give up the lines that never got their end."""
        while self._rests:
            place = next(iter(self._rests))
            yield place, *self._rests.pop(place)


class Filter:
    """Lets the lines pass in which a regular expression is found. The cursors of what it gives are exact."""

    def __init__(self, pattern: str) -> None:
        """Raises re.error."""
        self._found = re.compile(pattern).search
        self._lines = Lines()

    def add(self, chunk: AnyChunk) -> Iterator[AnyChunk]:
        """Give what matches, in chunks of lines that follow each other. What says more than its data passes."""
        at = chunk.cursor
        if chunk.HasField("away"):
            yield chunk
            return
        if chunk.skipped:
            yield job_pb2.StreamLogsResponse(cursor=at, skipped=chunk.skipped)
        for offset, block in self._lines.add(chunk):
            yield from self._matching((at.rank, at.attempt, at.stream), offset, block)

    def finish(self) -> Iterator[job_pb2.StreamLogsResponse]:
        """Give what matches of the lines that never got their end."""
        for place, offset, rest in self._lines.finish():
            yield from self._matching(place, offset, rest)

    def _matching(self, place: Place, offset: int, block: bytes) -> Iterator[job_pb2.StreamLogsResponse]:
        run: list[bytes] = []
        rank, attempt, stream = place
        begun = offset
        for line in split_lines(block):
            if self._found(line.decode(errors="replace").rstrip("\r\n")):
                if not run:
                    begun = offset
                run.append(line)
            elif run:
                yield _chunk(rank, attempt, stream, begun, b"".join(run))
                run = []
            offset += len(line)
        if run:
            yield _chunk(rank, attempt, stream, begun, b"".join(run))


def split_lines(block: bytes) -> list[bytes]:
    """The lines of a block with their ends; a carriage return is none."""
    *lines, rest = block.split(b"\n")
    return [line + b"\n" for line in lines] + ([rest] if rest else [])


def _chunk(
    rank: int, attempt: int, stream: "job_pb2.LogStream.ValueType", offset: int, data: bytes
) -> job_pb2.StreamLogsResponse:
    at = job_pb2.LogCursor(rank=rank, attempt=attempt, stream=stream, offset=offset)
    return job_pb2.StreamLogsResponse(cursor=at, data=data)
