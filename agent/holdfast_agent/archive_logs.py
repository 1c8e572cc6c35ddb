"""`python -m holdfast_agent.archive_logs JOB_DIRECTORY ATTEMPT...`: what an agent starts for attempts that have ended.

Brings their logs to the checkpoint storage of the job; see holdfast.archive. Writes the name of each attempt that is
archived, one a line. Exits with 0 when all are, with 1 when it may work later, with 2 when it can't as things are set
up here.
"""

import gzip
import json
import mmap
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from holdfast.archive import STREAMS, Archived, open_archive
from holdfast.storage.api import Bytes, Storage, StorageError
from holdfast_agent.log_file import LogReader
from holdfast_agent.shim import START
from holdfast_agent.workdir import ARCHIVED

NICE = 10
"""Nobody waits for it, and workers may want every core."""
TURNS = 10


class _Mapped:
    """A file as a body for `Storage.put`."""

    def __init__(self, file: BinaryIO) -> None:
        self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.size = len(self._map)

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """See `Body`."""
        yield 0, memoryview(self._map)


def main(job: Path, names: list[str]) -> int:
    """Archive attempts of a job."""
    os.nice(NICE)
    for name in names:
        try:
            archive(job / name)
        except StorageError as error:
            print(f"the logs of job {job.name} can't be archived: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            print(f"the logs of job {job.name} can't be archived now: {error}", file=sys.stderr)
            return 1
        print(name, flush=True)
    return 0


def archive(attempt: Path) -> None:
    """Archive one attempt, and note that. Raises OSError and StorageError."""
    start = json.loads((attempt / START).read_bytes())
    # Credentials that the job brings for its workers are for its logs, too.
    os.environ.update({name: value for name, value in start["env"].items() if name.startswith("AWS_")})
    storage = open_archive(attempt.parent.name, start["archive"], start["env"])
    try:
        for stream in STREAMS.values():
            _archive(storage, attempt, stream)
    finally:
        storage.close()
    (attempt / ARCHIVED).touch()


def _archive(storage: Storage, attempt: Path, stream: str) -> None:
    rank, _, number = attempt.name.partition("-")
    with tempfile.TemporaryFile(dir=attempt) as file:
        first, times = _compress(attempt, f"{stream}.log", file)
        place = Archived(int(rank), int(number), stream, first)
        storage.put(place.times_name, Bytes(gzip.compress(times)))
        storage.put(place.name, _Mapped(file))  # last: it is what says that there is an archive


def _compress(attempt: Path, name: str, file: BinaryIO) -> tuple[int, bytes]:
    """Write a log as gzip; returns the offset at which it begins, and its times. Raises OSError."""
    for _ in range(TURNS):
        with LogReader(str(attempt), name) as log:
            first, data = log.read(0)
            offset, squeeze = first, zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
            while data:
                file.write(squeeze.compress(data))
                offset += len(data)
                at, data = log.read(offset)
                if at != offset:
                    break  # some of it was freed meanwhile
            else:
                file.write(squeeze.flush())
                file.flush()
                return first, log.times()
        file.seek(0)
        file.truncate()
    raise OSError(f"{attempt / name} is being freed")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
