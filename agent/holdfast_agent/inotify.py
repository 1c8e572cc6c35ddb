"""Tells when something is written into, or appears in, a directory: inotify, without polling.

One instance serves all who wait in this process: a user may have no more than 128 of them.
"""

import asyncio
import ctypes
import os
import struct
from pathlib import Path

_IN_MODIFY, _IN_CREATE, _IN_MOVED_TO = 0x2, 0x100, 0x80
_IN_IGNORED = 0x8000
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_READ_BYTES = 64 * 1024
PAUSE_S = 0.01
"""Between two looks at what happened: a worker's every write is an event, and may come a few microseconds later."""
_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """The instance. Opened with the first watch; belongs to one event loop."""

    def __init__(self) -> None:
        self._fd = -1
        self._watches: dict[int, tuple[Path, set[Changes]]] = {}
        self._pause: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """End all watches."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def add(self, directory: Path, changes: "Changes") -> bool:
        """Tell `changes` about `directory` from here on. False when it is not there; raises OSError."""
        if self._fd < 0:
            self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
            self._listen()
        try:
            events = _IN_MODIFY | _IN_CREATE | _IN_MOVED_TO
            watch = _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), events))
        except FileNotFoundError:
            return False
        self._watches.setdefault(watch, (directory, set()))[1].add(changes)
        return True

    def discard(self, changes: "Changes") -> None:
        """Tell `changes` no more."""
        for watch, (_, told) in list(self._watches.items()):
            told.discard(changes)
            if not told:
                del self._watches[watch]
                _libc.inotify_rm_watch(self._fd, watch)  # an error says that it is gone, with its directory

    def _listen(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._fd, self._on_events)

    def _on_events(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fd)
        self._pause = loop.call_later(PAUSE_S, self._listen)
        data = os.read(self._fd, _READ_BYTES)
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if watch < 0:  # more happened than the kernel kept
                for directory, told in self._watches.values():
                    _tell(told, directory)
            elif watch in self._watches:
                directory, told = self._watches[watch]
                _tell(told, directory)
                if mask & _IN_IGNORED:  # the directory was removed
                    del self._watches[watch]


class Changes:
    """What one reader waits for."""

    def __init__(self, inotify: Inotify) -> None:
        self._inotify = inotify
        self._changed: set[Path] = set()
        self._event = asyncio.Event()

    def watch(self, directory: Path) -> bool:
        """Wait for changes in `directory` too. False when it is not there; raises OSError."""
        return self._inotify.add(directory, self)

    async def wait(self) -> set[Path]:
        """Wait for changes; return the directories in which there were any since the last call."""
        await self._event.wait()
        return self.take()

    def take(self) -> set[Path]:
        """The same without waiting: none, where there was no change."""
        self._event.clear()
        changed, self._changed = self._changed, set()
        return changed

    def note(self, directory: Path) -> None:
        """There was a change in `directory`."""
        self._changed.add(directory)
        self._event.set()

    def close(self) -> None:
        """Wait for nothing more."""
        self._inotify.discard(self)


def _tell(told: set[Changes], directory: Path) -> None:
    for changes in told:
        changes.note(directory)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
