"""Shards, wherever they are, as content that is open here, and is what was counted.

A shard that lies elsewhere comes by way of the cache. When its place cannot be reached, the mirror stands in for it, if
there is one that holds what was counted; if not, the place is asked again until it answers. A shard that is not what
was counted is an error.
"""

# pathlib is one more import to pay for at every restart
# ruff: noqa: PTH116, PTH118

import errno
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping

import xxhash

from holdfast.data.cache import ShardCache, cache_dir, cache_limit
from holdfast.data.columns import Content
from holdfast.data.digests import Digests
from holdfast.data.errors import DataError, ShardChanged
from holdfast.data.formats import open_shard
from holdfast.data.shards import DataIndex, ShardInfo
from holdfast.data.source import Source, is_local, open_place
from holdfast.storage.api import Storage, Unreachable
from holdfast.worker.report import say

OPEN_BYTES = 4 << 30
"""Memory that shards may take which had to be decoded."""
OPEN_SHARDS = 10_000
"""Shards that may be mapped at once; Linux allows a process 65,530 mappings."""

_PIECE = 16 << 20
_FIRST_PAUSE = 1.0
_LAST_PAUSE = 30.0
_FETCHERS = 4
_TRIES = 3
_AWAY = 30.0
"""For so many seconds a place that could not be reached is not asked again, where there is a mirror."""


class ShardReader:
    """The shards of one data set. Safe to use from several threads, and again in a forked child."""

    def __init__(self, index: DataIndex, source: Source, env: Mapping[str, str]) -> None:
        """Opens nothing yet. Raises ValueError when the environment says what can't be."""
        self.index = index
        self.remote = not is_local(source.base)
        self._base = source.base
        self._mirror = source.mirror
        self._env = env
        self._digests = Digests(os.path.join(cache_dir(env), "digests"))
        self._cache = ShardCache(cache_dir(env), cache_limit(env))
        self._renew()

    def _renew(self) -> None:
        """Begin with nothing open, also after a fork: a thread that is not here may have held any of the locks."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._locks: dict[int, threading.Lock] = {}
        self._open: OrderedDict[int, Content] = OrderedDict()
        self._held = 0
        self._mapped = 0
        """Bytes of what is open from the cache: it cannot be removed there before it is closed."""
        self._storage: Storage | None = None
        self._needed: frozenset[int] = frozenset()
        self._dropped = 0
        """So many of them were closed since, and have to be opened again."""
        self._told_memory = False
        self._away: tuple[float, Unreachable] | None = None
        self._told = False

    @property
    def cache_limit(self) -> int:
        """Bytes that shards from elsewhere may take here."""
        return self._cache.limit

    def check_process(self) -> None:
        """Call it before the threads of an iterator start."""
        if self._pid != os.getpid():
            self._renew()

    def content(self, number: int, stop: threading.Event) -> Content:
        """A shard, open. Waits for a place that cannot be reached until `stop` is set.

        Raises ShardChanged and DataError.
        """
        with self._lock:
            found = self._open.get(number)
            if found is not None:
                self._open.move_to_end(number)
                return found
            lock = self._locks.setdefault(number, threading.Lock())
        with lock:
            found = self._open.get(number)
            if found is None:
                found = self._load(self.index.shards[number], stop)
                self._keep(number, found)
            return found

    def need(self, numbers: Iterable[int]) -> None:
        """These are gone through together: each of them is asked for again and again, until others are needed."""
        with self._lock:
            self._needed = frozenset(numbers)
            self._dropped = 0

    def fetch(self, number: int) -> None:
        """Bring a shard from elsewhere into the cache. Raises what `content` does, and Unreachable."""
        shard = self.index.shards[number]
        self._cache.get(self._base, shard, lambda fd: self._fill(fd, shard))

    def _keep(self, number: int, content: Content) -> None:
        with self._lock:
            self._open[number] = content
            self._count(number, content, 1)
            while len(self._open) > 1 and (
                self._held > OPEN_BYTES or self._mapped > self._cache.limit or len(self._open) > OPEN_SHARDS
            ):
                of_memory = self._held > OPEN_BYTES
                dropped, was = self._open.popitem(last=False)
                self._count(dropped, was, -1)
                if of_memory and dropped in self._needed:
                    self._dropped += 1
                    self._tell_memory()

    def _count(self, number: int, content: Content, sign: int) -> None:
        self._held += sign * content.held_bytes
        if self.remote:
            self._mapped += sign * self.index.shards[number].size_bytes

    def _load(self, shard: ShardInfo, stop: threading.Event) -> Content:
        try:
            if not self.remote:
                return self._open_local(self._base, shard)
            return self._open_remote(shard, stop)
        except OSError as error:
            raise DataError(f"the shard {self._base}/{shard.file} cannot be read: {error}") from error

    def _open_local(self, base: str, shard: ShardInfo) -> Content:
        path = os.path.join(base, shard.file)
        try:
            _expect(path, shard, f"{os.stat(path).st_size} bytes")
            if _is_checksum(shard.digest):
                _expect(path, shard, self._digests.of(path))
            return open_shard(shard.file, path)
        except FileNotFoundError:
            raise ShardChanged(path, f"{shard.size_bytes} bytes", "") from None

    def _open_remote(self, shard: ShardInfo, stop: threading.Event) -> Content:
        pause = _FIRST_PAUSE
        tries = 0
        while True:
            try:
                path = self._cache.get(self._base, shard, lambda fd: self._fill(fd, shard))
                return open_shard(shard.file, path)
            except Unreachable as error:
                found = self._open_mirror(shard, error)
                if found is not None:
                    return found
                if stop.wait(pause):
                    raise
                pause = min(2 * pause, _LAST_PAUSE)
            except OSError as error:
                # Another process has just made room where it lay, or it was replaced while it was read.
                tries += 1
                if error.errno not in (errno.ENOENT, errno.ESTALE) or tries == _TRIES:
                    raise

    def _open_mirror(self, shard: ShardInfo, away: Unreachable) -> Content | None:
        """A shard that cannot be had from where it lies; None when there is no mirror, or another shard in it."""
        waiting = f"waiting for {self._base}/{shard.file}: {away}"
        if not self._mirror:
            self._tell(waiting)
            return None
        try:
            found = self._open_local(self._mirror, shard)
        except (DataError, OSError) as error:
            self._tell(f"{waiting}; the mirror does not help: {error}")
            return None
        self._tell(f"{away}; its data are read from {self._mirror}")
        return found

    def _fill(self, fd: int, shard: ShardInfo) -> None:
        """Bring a shard into a file, and see that it is what was counted."""
        where = f"{self._base}/{shard.file}"
        storage = self._reachable()
        try:
            with storage.open(shard.file) as reader:
                _expect(where, shard, f"{reader.size} bytes")
                if shard.digest and not _is_checksum(shard.digest):
                    _expect(where, shard, f"etag:{reader.version}")
                digest = xxhash.xxh3_64()
                buffer = memoryview(bytearray(min(_PIECE, shard.size_bytes)))
                for offset in range(0, shard.size_bytes, _PIECE):
                    piece = buffer[: shard.size_bytes - offset]
                    reader.read_into(piece, offset)
                    digest.update(piece)
                    os.pwrite(fd, piece, offset)
        except FileNotFoundError:
            raise ShardChanged(where, f"{shard.size_bytes} bytes", "") from None
        except Unreachable as error:
            with self._lock:
                self._away = time.monotonic() + _AWAY, error
            raise
        with self._lock:
            self._away, self._told = None, False
        if _is_checksum(shard.digest):
            _expect(where, shard, digest.hexdigest())

    def _reachable(self) -> Storage:
        """The place, unless a mirror is to be used without asking it: that takes as long as its timeouts."""
        with self._lock:
            if self._mirror and self._away is not None and time.monotonic() < self._away[0]:
                raise Unreachable(*self._away[1].args)
            if self._storage is None:
                self._storage = open_place(self._base, self._env)
            return self._storage

    def _tell_memory(self) -> None:
        """At the border of two windows a few may be dropped too early; here it is more than all of them."""
        if self._dropped > len(self._needed) and not self._told_memory:
            self._told_memory = True
            say(
                f"the shards of one window take more than {OPEN_BYTES >> 30} GiB when they are decoded, so that "
                f"they are decoded again and again ({self._base}); lower window, or store them uncompressed, as npy"
            )

    def _tell(self, sentence: str) -> None:
        with self._lock:
            told, self._told = self._told, True
        if not told:
            say(sentence)


class Fetcher:
    """Threads that bring shards into the cache before their turn comes."""

    def __init__(self, reader: ShardReader, stop: threading.Event) -> None:
        self._reader = reader
        self._stop = stop
        self._changed = threading.Condition()
        self._wanted: deque[int] = deque()
        for n in range(_FETCHERS):
            threading.Thread(target=self._work, name=f"holdfast-fetch-{n}", daemon=True).start()

    def want(self, shards: Iterable[int]) -> None:
        """These are needed next, and in this order; what was wanted before and is not here is forgotten."""
        with self._changed:
            self._wanted = deque(shards)
            self._changed.notify_all()

    def stop(self) -> None:
        """Fetch nothing more."""
        with self._changed:
            self._wanted.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._wanted and not self._stop.is_set():
                    self._changed.wait()
                if self._stop.is_set():
                    return
                number = self._wanted.popleft()
            try:
                self._reader.fetch(number)
            except (DataError, OSError):
                continue  # whoever needs it meets the same, and says it


def _is_checksum(digest: str) -> bool:
    return bool(digest) and not digest.startswith("etag:")


def _expect(file: str, shard: ShardInfo, found: str) -> None:
    expected = f"{shard.size_bytes} bytes" if found.endswith(" bytes") else shard.digest
    if found != expected:
        raise ShardChanged(file, expected, found)
