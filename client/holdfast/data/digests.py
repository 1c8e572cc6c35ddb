"""Checksums of local files, each of which is computed once.

Reading a data set through at every restart, to see that it is unchanged, would cost more than most restarts do. So the
digest of a file is remembered under what the file system says of it: inode, size, and when it was last changed, down
to the nanosecond. No program can write to a file and leave all of that as it was.
"""

# pathlib is one more import to pay for at every restart
# ruff: noqa: PTH103, PTH108, PTH118, PTH123, PTH208

import contextlib
import mmap
import os
import re
import time

import xxhash

_PIECE = 1 << 24
_SETTLED_NS = 2_000_000_000
"""A file that was changed more recently could change once more within the same tick of the clock."""
_MOST = 200_000
"""So many are remembered; then all are forgotten."""
_DIGEST = re.compile(rb"[0-9a-f]{16}")


class Digests:
    """Remembers in a directory. Several processes and threads may use one."""

    def __init__(self, directory: str) -> None:
        """The directory need not exist yet."""
        self._directory = directory
        self._ready = False

    def of(self, path: str) -> str:
        """xxh3_64 of a file, 16 hex digits. Raises OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            before = os.fstat(fd)
            known = self._recall(before)
            if known:
                return known
            digest = _digest(fd, before.st_size)
            after = os.fstat(fd)
            if _name(before) == _name(after) and time.time_ns() - after.st_ctime_ns > _SETTLED_NS:
                self._remember(after, digest)
            return digest
        finally:
            os.close(fd)

    def _recall(self, status: os.stat_result) -> str:
        try:
            with open(os.path.join(self._directory, _name(status)), "rb") as file:
                found = file.read()
        except OSError:
            return ""
        return found.decode() if _DIGEST.fullmatch(found) else ""

    def _remember(self, status: os.stat_result, digest: str) -> None:
        """What cannot be remembered is computed again."""
        with contextlib.suppress(OSError):
            if not self._ready:
                self._make_room()
                self._ready = True
            with open(os.path.join(self._directory, _name(status)), "wb") as file:
                file.write(digest.encode())

    def _make_room(self) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        known = os.listdir(self._directory)
        if len(known) >= _MOST:
            for name in known:
                os.unlink(os.path.join(self._directory, name))


def _name(status: os.stat_result) -> str:
    numbers = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return "-".join(f"{number:x}" for number in numbers)


def _digest(fd: int, size: int) -> str:
    found = xxhash.xxh3_64()
    if size:
        with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            for start in range(0, size, _PIECE):
                with view[start : start + _PIECE] as piece:
                    found.update(piece)
    return found.hexdigest()
