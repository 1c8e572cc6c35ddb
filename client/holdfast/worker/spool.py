"""Checkpoints while their storage cannot be reached: kept on this machine, and brought there when it is back.

`SpooledStorage` is the storage and a local directory that stands in for it. The first write that fails goes to the
directory, and so does every one after it, at once, so that a storage that is away costs training one timeout. A
thread brings what is held to the storage, oldest first, and when it has, writes go there again.

A manifest is held until every shard that it names is in the storage: what others see there is whole (P1). Ranks of
one machine share the directory, so a manifest goes to the storage, or away, under the directory's lock.
"""

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from holdfast.storage.api import Body, Entry, Reader, Storage, StorageError, Unreachable
from holdfast.storage.local import LocalStorage
from holdfast.storage.places import open_storage
from holdfast.worker import manifest
from holdfast.worker.layout import attempt_of, directory, is_manifest, is_quarantined, publish
from holdfast.worker.report import say

FIRST_PAUSE = 1.0
LAST_PAUSE = 30.0
"""Seconds between two tries to reach the storage."""
_PIECE_BYTES = 8 << 20
_DESTINATION = "DESTINATION"
_UNREADABLE = "unreadable."


class SpooledStorage:
    """A storage that is never away for whoever writes. See `holdfast.storage.api.Storage`.

    `drained` is called with the name of each shard of `own` that has reached the storage, by the thread that brought
    it there. While it says False the shard stays here too: whoever comes after this process is to tell it.
    """

    def __init__(
        self,
        main: Storage,
        spool: LocalStorage,
        own: str,
        drained: Callable[[str], bool] = lambda _: True,
        dead: int = 0,
    ) -> None:
        """`own` is how the base names of this process's shards begin.

        It also brings those that attempts before `dead` left here: their ranks may run elsewhere now.
        """
        self.uri = main.uri
        self._main = main
        self._spool = spool
        self._own = own
        self._dead = dead
        self._drained = drained
        self._changed = threading.Condition()
        self._away = False
        self._aimed = False
        self._closed = False
        self._finishing = False
        self._gave_up = False
        self._deleted: set[str] = set()
        self._thread: threading.Thread | None = None
        with contextlib.suppress(OSError):  # what cannot be looked at now is when the next file is held
            if self._held():
                self._start()

    def holds(self, name: str) -> bool:
        """The file is held here, and not in the storage yet."""
        return any(entry.name == name for entry in self._spool.files(os.path.dirname(name)))

    def hold(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Keep a small file here until it can go to the storage. `change` is that of `Storage.update`."""
        self._deleted.discard(name)
        self._spool.update(name, change)
        self._aim()
        self._start()

    def wait(self, timeout: float) -> bool:
        """Wait until nothing is held. False when `timeout` seconds have gone by first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout)

    def finish(self, timeout: float) -> bool:
        """Try once more to bring what is held; wait, `timeout` seconds at most, unless the storage is still away."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._thread is None or self._gave_up, timeout)
            return self._thread is None

    def put(self, name: str, body: Body) -> None:
        """See `Storage`."""
        if not self._away:
            try:
                self._main.put(name, body)
            except OSError as error:
                self._away = True
                say(
                    f"{self._main.uri} cannot be written: {error}; checkpoints stay in {self._spool.uri} meanwhile"
                )
            else:
                return
        self._deleted.discard(name)
        self._spool.put(name, body)
        self._aim()
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
        if is_manifest(name):  # LATEST follows from the manifests
            self.hold(name, change)

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
        """See `Storage`. When the storage is away those of checkpoints that are whole here, if there are any.

        They are newer than what is there: the oldest is brought there first.
        """
        try:
            there = self._main.names()
        except Unreachable:
            whole = self._whole_here()
            if not whole:
                raise
            return whole
        return sorted({*there, *self._spool.names()} - {_DESTINATION})

    def files(self, under: str = "") -> list[Entry]:
        """See `Storage`."""
        both = {entry.name: entry for entry in (*self._main.files(under), *self._spool.files(under))}
        return sorted(entry for entry in both.values() if entry.name != _DESTINATION)

    def rename(self, name: str, new: str) -> None:
        """See `Storage`. What is half way to the storage is renamed at both ends."""
        found = False
        with self._spool.locked():
            for place in (self._spool, self._main):
                with contextlib.suppress(FileNotFoundError):
                    place.rename(name, new)
                    found = True
        if not found:
            raise FileNotFoundError(f"{name} is neither in {self.uri} nor held in {self._spool.uri}")

    def delete(self, names: Iterable[str]) -> None:
        """See `Storage`."""
        names = list(names)
        self._deleted.update(names)
        with self._spool.locked():
            self._spool.delete(names)
            self._main.delete(names)

    def close(self) -> None:
        """See `Storage`. What is still held stays held."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            if left := self._held():
                say(
                    f"{len(left)} files of checkpoints are only in {self._spool.uri} yet; "
                    f"`holdfast checkpoint drain {self._spool.uri}` brings them to {self._main.uri}"
                )
        self._spool.close()
        self._main.close()

    def _aim(self) -> None:
        """Say where what is held here belongs, for whoever brings it there when this process is gone."""
        if not self._aimed:
            text = f"{self._main.uri}\n".encode()
            self._spool.update(_DESTINATION, lambda before: None if before == text else text)
            self._aimed = True

    def _held(self) -> list[str]:
        """What this process is to bring to the storage: shards, then the manifests, oldest first."""
        tests = (is_manifest, is_quarantined, self._is_own, self._is_dead)
        return [name for name in held(self._spool) if any(test(name) for test in tests)]

    def _is_own(self, name: str) -> bool:
        return os.path.basename(name).startswith(self._own)

    def _is_dead(self, name: str) -> bool:
        attempt = attempt_of(name)
        return attempt is not None and attempt < self._dead

    def _whole_here(self) -> list[str]:
        """The directories of checkpoints all of whose files are held."""
        names = held(self._spool)
        whole = []
        for name in filter(is_manifest, names):
            with contextlib.suppress(OSError, ValueError):
                commit = manifest.decode(self._spool.read(name))
                inside = directory(commit.step)
                if all(f"{inside}/{shard.file}" in names for shard in commit.shards):
                    whole.append(inside)
        return whole

    def _start(self) -> None:
        with self._changed:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._drain, name="holdfast-drain", daemon=True)
                with contextlib.suppress(
                    RuntimeError
                ):  # no thread is to be had, for instance at exit: it stays held
                    thread.start()
                    self._thread = thread

    def _drain(self) -> None:
        pause = FIRST_PAUSE
        while True:
            finishing = self._finishing
            passed = self._pass()
            with self._changed:
                if passed.failed and finishing:
                    self._gave_up = True
                    self._changed.notify_all()
                try:
                    left = self._held()
                except OSError:
                    left = [_DESTINATION]  # at least something
                if not passed.failed and all(map(is_manifest, left)):
                    self._away = False
                if not left or self._closed:
                    self._thread = None
                    self._deleted.clear()
                    self._changed.notify_all()
                    return
                pause = FIRST_PAUSE if passed.brought else min(2 * pause, LAST_PAUSE)
                self._changed.wait_for(partial(self._is_called, finishing), pause)

    def _is_called(self, finishing: bool) -> bool:
        """There is no time to pause any more, and was when the last pass began."""
        return self._closed or self._finishing > finishing

    def _pass(self) -> "Pass":
        """Try once to bring everything."""
        try:
            names = (name for name in self._held() if not self._closed)
            return drain(self._spool, self._main, names, self._on_brought)
        except Exception as error:  # noqa: BLE001  without this thread nothing would reach the storage any more
            say(f"what is held in {self._spool.uri} could not be brought to {self._main.uri}: {error}")
            return Pass(0, failed=True)

    def _on_brought(self, name: str) -> bool:
        if name in self._deleted:
            self._main.delete([name])
            return True
        return not self._is_own(name) or self._drained(name)


class Pass(NamedTuple):
    """What became of one try to bring files to the storage."""

    brought: int
    failed: bool
    """The storage did not take something that it should have."""


def held(spool: Storage) -> list[str]:
    """What waits in a spool: shards, then what stands beside them, oldest first; the manifests are the last."""
    names = [
        entry.name for entry in spool.files() if not os.path.basename(entry.name).startswith(_UNREADABLE)
    ]
    return sorted(
        (name for name in names if name != _DESTINATION), key=lambda name: (is_manifest(name), name)
    )


def drain(
    spool: LocalStorage, main: Storage, names: Iterable[str], brought: Callable[[str], bool] = lambda _: True
) -> Pass:
    """Bring files to the storage, each once it may be there, until the storage is away.

    May be done by several processes at once, and again after any of them has died. `brought` hears the names, and
    says whether the file may go from the spool.
    """
    count, failed = 0, False
    for name in names:
        try:
            if is_manifest(name):
                done = _bring_manifest(spool, main, name) and brought(name)
            else:
                done = _bring(spool, main, name, brought)
        except FileNotFoundError:
            continue  # another process, or retention, was first
        except Unreachable:
            return Pass(count, failed=True)
        except OSError as error:
            say(f"{spool.uri}/{name} could not be brought to {main.uri}: {error}")
            failed = True
            continue
        count += done
    return Pass(count, failed)


def drain_directory(path: str, told: Callable[[str], None] = lambda _: None) -> list[str]:
    """Bring what the workers of a job, who are gone, left in a spool, or in the spools below a directory.

    `told` hears the name of each file that has reached its storage. Returns the paths of those that are left: none
    where there is no file at all, as in a spool that was drained before. Raises StorageError when no spool is there,
    and OSError.
    """
    tree = [(where, names) for where, _, names in os.walk(path)]
    roots = [where for where, names in tree if _DESTINATION in names]
    if not roots and (not tree or any(names for _, names in tree)):
        raise StorageError(
            f"{path} is no spool: there is no file {_DESTINATION} in it or below; give its directory"
        )
    left = []
    for root in roots:
        spool = LocalStorage(root)
        main = open_storage(spool.read(_DESTINATION).decode().strip())
        try:
            main.names()  # an error that says why, where it is away
            drain(spool, main, held(spool), partial(_told, told))
        finally:
            main.close()
        names = held(spool)
        if not names:
            spool.delete([_DESTINATION])
        left += [os.path.join(root, name) for name in names]
    return left


def _told(told: Callable[[str], None], name: str) -> bool:
    told(name)
    return True


class _FileBody:
    """A file on this machine, to be written elsewhere. See `Body`."""

    def __init__(self, reader: Reader) -> None:
        """Reads all of it once: what the disk cannot read is an error here, and would be a signal in the mapping."""
        self.size = reader.size
        piece = memoryview(bytearray(min(_PIECE_BYTES, self.size)))
        for offset in range(0, self.size, _PIECE_BYTES):
            reader.read_into(piece[: self.size - offset], offset)
        with open(str(reader.path), "rb") as file:
            self._memory = memoryview(mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ))

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """See `Body`."""
        for offset in range(0, self.size, _PIECE_BYTES):
            yield offset, self._memory[offset : offset + _PIECE_BYTES]


def _bring(spool: LocalStorage, main: Storage, name: str, brought: Callable[[str], bool]) -> bool:
    with spool.open(name) as reader:
        there = main.files(os.path.dirname(name))
        if not any((entry.name, entry.size) == (name, reader.size) for entry in there):
            try:
                body = _FileBody(reader)
            except FileNotFoundError:
                raise
            except (OSError, ValueError, EOFError) as error:
                return _set_aside(spool, name, error)
            main.put(name, body)
    if not brought(name):
        return False
    spool.delete([name])
    return True


def _bring_manifest(spool: LocalStorage, main: Storage, name: str) -> bool:
    """Bring a manifest to the storage if everything that it names is there."""
    with spool.locked():
        try:
            commit = manifest.decode(spool.read(name))
        except ValueError as error:
            return _set_aside(spool, name, error)
        inside = os.path.dirname(name)
        there = {entry.name: entry.size for entry in main.files(inside)}
        if any(there.get(f"{inside}/{shard.file}") != shard.size_bytes for shard in commit.shards):
            return False
        try:
            publish(main, commit)
        except FileExistsError as error:
            say(f"a manifest that was held is let go: {error}")
        spool.delete([name])
    return True


def _set_aside(spool: LocalStorage, name: str, error: Exception) -> bool:
    inside, base = os.path.split(name)
    spool.rename(name, os.path.join(inside, f"{_UNREADABLE}{base}"))
    say(f"{spool.uri}/{name} cannot be read, and stays there as {_UNREADABLE}{base}: {error}")
    return False
