"""Checkpoints while their storage cannot be reached: kept on this machine, and brought there when it is back.

`SpooledStorage` is the storage and a local directory that stands in for it. The first write that fails goes to the
directory, and so does every one after it, at once, so that a storage that is away costs training one timeout. A
thread brings what is held to the storage, oldest first, and when nothing is left writes go there again.

A manifest is held until every shard that it names is in the storage: what others see there is whole (P1).
"""

import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator

from holdfast.storage.api import Body, Bytes, Entry, Reader, Storage
from holdfast.worker import manifest
from holdfast.worker.layout import is_manifest, publish
from holdfast.worker.report import say

FIRST_PAUSE = 1.0
LAST_PAUSE = 30.0
"""Seconds between two tries to reach the storage."""
_PIECE_BYTES = 8 << 20
_DESTINATION = "DESTINATION"


class SpooledStorage:
    """A storage that is never away for whoever writes. See `holdfast.storage.api.Storage`.

    `drained` is called with the name of each file that has reached the storage, by the thread that brought it there.
    """

    def __init__(
        self, main: Storage, spool: Storage, own: str, drained: Callable[[str], None] = lambda _: None
    ) -> None:
        """`own` is how the base names begin of the files that this process brings to the storage, of all held."""
        self.uri = main.uri
        self._main = main
        self._spool = spool
        self._own = own
        self._drained = drained
        self._changed = threading.Condition()
        self._away = False
        self._closed = False
        self._thread: threading.Thread | None = None
        if self._held():
            self._start()

    def holds(self, name: str) -> bool:
        """The file is held here, and not in the storage yet."""
        return any(entry.name == name for entry in self._spool.files(os.path.dirname(name)))

    def hold(self, name: str, data: bytes) -> None:
        """Keep a file here until it can go to the storage."""
        self._spool.update(_DESTINATION, lambda _: f"{self._main.uri}\n".encode())
        self._spool.put(name, Bytes(data))
        self._start()

    def wait(self, timeout: float) -> bool:
        """Wait until nothing is held. False when `timeout` seconds have gone by first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout)

    def put(self, name: str, body: Body) -> None:
        """See `Storage`."""
        if not self._away:
            try:
                self._main.put(name, body)
            except OSError as error:
                say(
                    f"{self._main.uri} cannot be written: {error}; checkpoints stay in {self._spool.uri} meanwhile"
                )
            else:
                return
        self._spool.update(_DESTINATION, lambda _: f"{self._main.uri}\n".encode())
        self._spool.put(name, body)
        self._away = True
        self._start()

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """See `Storage`. What is not there is held, when the storage is away."""
        if not self._away:
            try:
                self._main.update(name, change)
            except FileExistsError:
                raise
            except OSError as error:
                say(f"{self._main.uri} cannot be written: {error}")
                self._away = True
            else:
                return
        data = change(None)
        if data is not None and is_manifest(name):  # LATEST follows from the manifests
            self.hold(name, data)

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        try:
            return self._spool.read(name)
        except FileNotFoundError:
            return self._main.read(name)

    def open(self, name: str) -> Reader:
        """See `Storage`."""
        try:
            return self._spool.open(name)
        except FileNotFoundError:
            return self._main.open(name)

    def names(self) -> list[str]:
        """See `Storage`."""
        return sorted({*self._main.names(), *self._spool.names()} - {_DESTINATION})

    def files(self, under: str = "") -> list[Entry]:
        """See `Storage`."""
        both = {entry.name: entry for entry in (*self._main.files(under), *self._spool.files(under))}
        return sorted(entry for entry in both.values() if entry.name != _DESTINATION)

    def rename(self, name: str, new: str) -> None:
        """See `Storage`."""
        try:
            self._spool.rename(name, new)
        except FileNotFoundError:
            self._main.rename(name, new)

    def delete(self, names: Iterable[str]) -> None:
        """See `Storage`."""
        names = list(names)
        self._spool.delete(names)
        self._main.delete(names)

    def close(self) -> None:
        """See `Storage`. What is still held stays held."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if left := self._held():
            say(
                f"{len(left)} files of checkpoints are only in {self._spool.uri} yet; "
                f"`holdfast checkpoint drain {self._spool.uri}` brings them to {self._main.uri}"
            )
        self._spool.close()
        self._main.close()

    def _held(self) -> list[str]:
        """What this process is to bring to the storage: its files, then the manifests, oldest first."""
        held = [entry.name for entry in self._spool.files()]
        shards = [name for name in held if os.path.basename(name).startswith(self._own)]
        manifests = [name for name in held if is_manifest(name)]
        return [*shards, *manifests]

    def _start(self) -> None:
        with self._changed:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._drain, name="holdfast-drain", daemon=True)
                self._thread.start()

    def _drain(self) -> None:
        pause = FIRST_PAUSE
        while True:
            progress = drain(self._spool, self._main, self._held(), self._drained)
            with self._changed:
                if not self._held():
                    self._away = False
                    self._thread = None
                    self._changed.notify_all()
                    return
                pause = FIRST_PAUSE if progress else min(2 * pause, LAST_PAUSE)
                if self._changed.wait_for(lambda: self._closed, pause):
                    self._thread = None
                    return


def drain(
    spool: Storage, main: Storage, names: Iterable[str], drained: Callable[[str], None] = lambda _: None
) -> bool:
    """Bring files to the storage, each once it may be there, until one can't be. True when any got there."""
    progress = False
    for name in names:
        try:
            if is_manifest(name):
                if not _publish(spool, main, name):
                    continue
            else:
                with spool.open(name) as reader:
                    main.put(name, _FileBody(reader))
            spool.delete([name])
        except FileNotFoundError:
            continue  # another process, or retention, was first
        except OSError:
            return progress
        progress = True
        drained(name)
    return progress


class _FileBody:
    """A file on this machine, to be written elsewhere. See `Body`."""

    def __init__(self, reader: Reader) -> None:
        self.size = reader.size
        with open(str(reader.path), "rb") as file:
            self._memory = memoryview(mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ))

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """See `Body`."""
        for offset in range(0, self.size, _PIECE_BYTES):
            yield offset, self._memory[offset : offset + _PIECE_BYTES]


def _publish(spool: Storage, main: Storage, name: str) -> bool:
    """Bring a manifest to the storage if everything that it names is there."""
    commit = manifest.decode(spool.read(name))
    inside = os.path.dirname(name)
    there = {entry.name: entry.size for entry in main.files(inside)}
    if any(there.get(f"{inside}/{shard.file}") != shard.size_bytes for shard in commit.shards):
        return False
    publish(main, commit)
    return True
