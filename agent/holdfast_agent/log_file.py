"""A log on disk: bytes at offsets that never change, of which the oldest can be freed.

Beside the log lies its index: what is freed, and when the rest was written. The standard library alone is imported
here, because every shim writes two of these.

Freed bytes leave a hole: the file keeps its size, and so every byte that is left its place. Where the file system makes
no holes, what is kept goes into a new file under the same name, and the index says at which offset that one begins.

====== ======= ===================================================================
offset format  meaning, of the index; little-endian
====== ======= ===================================================================
0      8s      magic, ``HOLDLOG1``
8      q       the first offset that is kept
16     2 x qq  inode of a file that the log may be, and the offset at which it begins
64     qq each wall clock milliseconds, offset: bytes from there on were written then, or
               later; at most one a second, in order. Zeros: freed
====== ======= ===================================================================
"""

import contextlib
import ctypes
import errno
import os
import struct
import time
from collections.abc import Callable
from typing import NamedTuple, Self

STDOUT, STDERR = "stdout.log", "stderr.log"
CHUNK = 64 * 1024
"""As much of a log is passed on at once; a line that is longer goes in pieces."""
LEAST_BYTES = 256 * 1024
"""Of both logs of a worker together, whatever the limit of its job."""
RECORD_EVERY_S = 1.0
RECORD_EVERY_MS = 1_000

_MAGIC = b"HOLDLOG1"
_HEAD = struct.Struct("<8sqqqqq")
_KEPT = struct.Struct("<q")
_KEPT_AT = 8
_BEGINS = struct.Struct("<qq")
_BEGINS_AT = (16, 32)
_RECORD = struct.Struct("<qq")
_RECORDS_AT = 64
_BLOCK = 4096
_PUNCH = 0x2 | 0x1  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_OPENINGS = 5
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


class Held(NamedTuple):
    """What there is of a log: bytes from `kept` up to `end`."""

    kept: int
    end: int

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.end - self.kept


def index_name(name: str) -> str:
    """The name of the index of a log."""
    return f"{name.removesuffix('.log')}.index"


class Log:
    """A log with one writer: the shim of its worker while that lives, the agent afterwards. Raises OSError."""

    def __init__(self, directory: str, name: str, *, make: bool = False) -> None:
        """Open it. With `make`, make it where it is not there."""
        self._directory, self._name = directory, name
        create = os.O_CREAT if make else 0
        self._index = os.open(self._path(index_name(name)), os.O_RDWR | create | os.O_CLOEXEC, 0o600)
        self._fd = -1
        try:
            self._fd = os.open(self._path(name), os.O_RDWR | os.O_APPEND | create | os.O_CLOEXEC, 0o600)
            if not os.fstat(self._index).st_size:
                os.posix_fallocate(
                    self._index, 0, _BLOCK
                )  # so that no full disk keeps the log from being freed
                os.truncate(self._index, _RECORDS_AT)
                os.pwrite(self._index, _HEAD.pack(_MAGIC, 0, 0, 0, 0, 0), 0)
            self._begins, self._slot = _begin(self._index, self._fd)
        except OSError:
            self.close()
            raise
        self.kept = _kept(self._index)
        self.end = self._begins + os.fstat(self._fd).st_size
        self._records = max(_RECORDS_AT, os.fstat(self._index).st_size)
        self._noted_ms = 0
        self._next_record = 0.0
        self.full = False
        """The disk had no room for some of it."""
        self.punches = not self._begins
        """It is freed by making holes, which costs nothing."""
        self._hole = self._index_hole = 0

    def append(self, data: bytes) -> int:
        """Write at the end; returns how many bytes the disk did not take."""
        now = time.monotonic()
        if now >= self._next_record:
            self._next_record = now + RECORD_EVERY_S
            self._note_time()
        left = len(data)
        while left:
            try:
                done = os.write(self._fd, data)
            except OSError as error:
                self.full |= error.errno in (errno.ENOSPC, errno.EDQUOT)
                return left
            left -= done
            self.end += done
            if left:
                data = data[done:]
        return 0

    def free(self, before: int) -> None:
        """Free what stands before an offset, as far as blocks of the disk go. Raises OSError when that can't be."""
        before = min(before, self.end)
        if before < self.end:
            before -= (before - self._begins) % _BLOCK
        if before <= self.kept:
            return
        if self.punches:
            self._keep(before)
            try:
                self._punch(self._fd, self._hole, before)
            except OSError as error:
                if error.errno not in _NO_HOLES:
                    raise
                self.punches = False
            else:
                self._hole = before
        if not self.punches:
            self._copy_from(before)
        self._free_records()

    @property
    def size(self) -> int:
        """How many bytes are kept."""
        return self.end - self.kept

    def close(self) -> None:
        """Let go of it."""
        for fd in (self._fd, self._index):
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)  # noqa: PTH118  pathlib is a slow import

    def _note_time(self) -> None:
        """Note the time of what comes next. A clock that is set back stands still here: times only grow."""
        now_ms = time.time_ns() // 1_000_000
        if now_ms <= self._noted_ms:
            return
        self._noted_ms = now_ms
        with contextlib.suppress(OSError):  # a full disk costs times, too
            self._records += os.pwrite(self._index, _RECORD.pack(now_ms, self.end), self._records)

    def _keep(self, first: int) -> None:
        """Say that nothing before an offset is kept: first of all, so that no reader takes a hole for zeros."""
        self.kept = first
        os.pwrite(self._index, _KEPT.pack(first), _KEPT_AT)

    @staticmethod
    def _punch(fd: int, start: int, end: int) -> None:
        if end > start and _fallocate(fd, _PUNCH, start, end - start):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def _copy_from(self, first: int) -> None:
        """Put what is kept into a new file in the place of this one."""
        making = self._path(f".{self._name}")
        new = os.open(making, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            at = first - self._begins
            while data := os.pread(self._fd, CHUNK, at):
                at += os.write(new, data)
            for slot, fd, begins in ((self._slot, self._fd, self._begins), (1 - self._slot, new, first)):
                os.pwrite(self._index, _BEGINS.pack(os.fstat(fd).st_ino, begins), _BEGINS_AT[slot])
            self._slot = 1 - self._slot
            self._keep(first)
            os.rename(making, self._path(self._name))  # noqa: PTH104
        except OSError:
            os.close(new)
            raise
        os.close(self._fd)
        self._fd, self._begins = new, first

    def _free_records(self) -> None:
        """Free the records of the index before the one that the first byte that is kept belongs to."""
        index = _Index(self._index)
        before = _RECORDS_AT + max(0, index.after_offset(self.kept) - 1) * _RECORD.size
        before -= before % _BLOCK
        start = max(_BLOCK, self._index_hole)
        if before > start:
            with contextlib.suppress(OSError):  # they are small
                self._punch(self._index, start, before)
                self._index_hole = before


class LogReader:
    """A log, open for reading as it is now: open it anew to see what was put in its place. Raises OSError."""

    def __init__(self, directory: str, name: str) -> None:
        self._index = self._fd = -1
        path, index = (os.path.join(directory, each) for each in (name, index_name(name)))  # noqa: PTH118
        try:
            for left in reversed(range(_OPENINGS)):
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if self._index < 0:
                    self._index = os.open(index, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._begins, _ = _begin(self._index, self._fd)
                    break
                except OSError:  # another file has taken the place of this one since it was opened
                    if not left:
                        raise
                    os.close(self._fd)
        except OSError:
            self.close()
            raise

    @property
    def held(self) -> Held:
        """What there is."""
        end = self._begins + os.fstat(self._fd).st_size
        return Held(self._kept, max(end, self._kept))

    @property
    def _kept(self) -> int:
        return max(self._begins, _kept(self._index))

    def read(self, offset: int, size: int = CHUNK) -> tuple[int, bytes]:
        """Read on from an offset; where that is freed, from the first line that is kept.

        Gives the offset of what was read, and that: nothing at the end.
        """
        while True:
            if offset < self._kept:
                offset = self._first_line()
            data = os.pread(self._fd, size, offset - self._begins)
            if offset >= self._kept:  # else some of it was freed while it was read
                return offset, data

    def since(self, at_ms: int) -> int:
        """The first line with a byte that was written at a time, or later; exact to a second, and never too late."""
        index = _Index(self._index)
        # A record stands for the bytes of the second after it.
        offset = index.offset(index.after_time(at_ms - RECORD_EVERY_MS))
        return self._line_start(self.held.end if offset is None else offset)

    def times(self) -> bytes:
        """The records of its index that are not freed, as they are there."""
        found = os.pread(self._index, os.fstat(self._index).st_size, _RECORDS_AT)
        whole = len(found) - len(found) % _RECORD.size
        return b"".join(_RECORD.pack(*each) for each in _RECORD.iter_unpack(found[:whole]) if each[0])

    def last_lines(self, count: int) -> tuple[int, int]:
        """Where the last lines begin, and how many there are of them, `count` at most."""
        kept, end = self.held
        if count <= 0 or end == kept:
            return end, 0
        at, found = end, 0
        least = max(kept, end - count * CHUNK)
        last = os.pread(self._fd, 1, end - 1 - self._begins)
        wanted = count + (last == b"\n")
        while at > least:
            start = max(least, at - CHUNK)
            block = os.pread(self._fd, at - start, start - self._begins)
            here = block.count(b"\n")
            if found + here >= wanted:
                position = len(block)
                for _ in range(wanted - found):
                    position = block.rfind(b"\n", 0, position)
                return start + position + 1, count
            found, at = found + here, start
        return least, min(count, found + (last != b"\n"))

    def close(self) -> None:
        """Let go of it."""
        for fd in (self._fd, self._index):
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first_line(self) -> int:
        """The first line of which surely all is kept. Of a line that is too long, what is kept."""
        kept = self._kept
        found = os.pread(self._fd, CHUNK, kept - self._begins).find(b"\n")
        return kept + found + 1

    def _line_start(self, offset: int) -> int:
        """Where the line begins that an offset is in; the offset itself when that is far, or freed."""
        start = max(self._kept, offset - CHUNK)
        if offset <= start:
            return offset
        found = os.pread(self._fd, offset - start, start - self._begins).rfind(b"\n")
        if found < 0 and start:
            return offset
        return start + found + 1


class WorkerLogs:
    """The two logs of a worker, which together keep no more than so many bytes. Raises OSError."""

    def __init__(self, directory: str, most: int) -> None:
        """Make them."""
        self._logs = {name: Log(directory, name, make=True) for name in (STDOUT, STDERR)}
        self._most = self._free_at = max(most, LEAST_BYTES)
        self._size = 0

    def append(self, name: str, data: bytes) -> int:
        """Write at the end of one; returns how many bytes the disk did not take."""
        lost = self._logs[name].append(data)
        self._size += len(data) - lost
        if self._size > self._free_at:
            self._free()
        return lost

    @property
    def full(self) -> bool:
        """The disk had no room for some of what was written."""
        return any(log.full for log in self._logs.values())

    def _free(self) -> None:
        """Free the oldest bytes of the larger one: many lines of progress don't push out the few of an error."""
        log = max(self._logs.values(), key=lambda each: each.size)
        more = min(self._most // (16 if log.punches else 2), log.size // 2)
        with contextlib.suppress(OSError):
            log.free(log.kept + self._size - self._most + more)
        self._size = sum(each.size for each in self._logs.values())
        # Where nothing could be freed it is tried again, but not with every write.
        self._free_at = max(self._most, self._size + more if self._size > self._most else 0)


def measure(directory: str, name: str) -> Held:
    """What there is of a log; nothing when it is not there. Raises OSError."""
    try:
        with LogReader(directory, name) as log:
            return log.held
    except FileNotFoundError:
        return Held(0, 0)


class _Index:
    """The records of an index, looked up by bisection: most of them are never read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._count = max(0, os.fstat(fd).st_size - _RECORDS_AT) // _RECORD.size

    def after_time(self, at_ms: int) -> int:
        """The number of the first record that is later than a time."""
        return self._bisect(lambda record: record[0] > at_ms)

    def after_offset(self, offset: int) -> int:
        """The number of the first record behind an offset."""
        return self._bisect(lambda record: record[1] > offset)

    def offset(self, number: int) -> int | None:
        """The offset of a record; None behind the last."""
        return self._record(number)[1] if number < self._count else None

    def _record(self, number: int) -> tuple[int, int]:
        found = os.pread(self._fd, _RECORD.size, _RECORDS_AT + number * _RECORD.size)
        at_ms, offset = _RECORD.unpack(found)
        return at_ms, offset

    def _bisect(self, beyond: Callable[[tuple[int, int]], bool]) -> int:
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if beyond(self._record(middle)):
                high = middle
            else:
                low = middle + 1
        return low


def _kept(index: int) -> int:
    found = os.pread(index, _KEPT.size, _KEPT_AT)
    return int(_KEPT.unpack(found)[0]) if len(found) == _KEPT.size else 0


def _begin(index: int, log: int) -> tuple[int, int]:
    """The offset at which a file begins, and the slot of the index that says so.

    Raises OSError when another file is the log by now.
    """
    head = os.pread(index, _HEAD.size, 0)
    slots = _HEAD.unpack(head)[2:] if len(head) == _HEAD.size else (0, 0, 0, 0)
    if not any(slots):
        return 0, 0
    inode = os.fstat(log).st_ino
    for slot in (0, 1):
        if slots[2 * slot] == inode:
            return slots[2 * slot + 1], slot
    raise OSError(errno.ESTALE, "its index is of another file")
