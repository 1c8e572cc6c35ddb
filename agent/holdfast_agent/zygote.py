"""A preloaded process: has imported what its job names, and forks workers, or waits to become one.

It runs in the job's own interpreter, started with the job's own command line; the hook (hook/sitecustomize.py) is what
brings it here, before the program. Only the standard library is imported, and Python may be another version.

While it may (`may_fork` says), it is a *zygote*: asked over a socket, in the nursery's protocol, it forks a shim, which
forks a worker; both share the memory of the imports. The worker comes back out of `main`, and its interpreter
goes on to run the program. Where it may not fork it is a *spare*: it becomes one worker itself, its threads and all,
under the shim that has been its parent all along (spare.py).

A fork hands on more than an exec would. What is put right in the worker: descriptors, signals, environment, name, the
state of numpy's random numbers. What the imports printed, each worker prints.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TypeAlias

from holdfast_agent import nursery, shim
from holdfast_agent.spare import ROOM

TAIL_BYTES = 64 * 1024
"""Of what the imports print, as much as every worker repeats."""
SETTLE_S = 5.0

_GRPC = "grpc._cython.cygrpc"
_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None


def main(told: str, ours: set[str]) -> None:
    """Import, and wait. Returns in a worker alone. `ours` are the modules that are there for our sake."""
    parent, forks = map(int, told.split())
    process = _Process(socket.socket(fileno=parent), socket.socket(fileno=forks))
    process.preload(json.loads(process.parent.recv(nursery.REQUEST_BYTES)), ours)
    process.wait()


def may_fork() -> str:
    """Why this process must not fork workers; empty when it may. Looks, and assumes nothing."""
    if not _single_threaded():
        return f"it has {_threads()} threads after the imports"
    if _GRPC in sys.modules:
        return "gRPC was imported, which does not survive a fork"
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        return "CUDA is initialized, which does not survive a fork"
    for fd in _descriptors():
        where = _link_of(fd)
        if where.startswith(("/dev/nvidia", "/dev/dri", "/dev/kfd")):
            return f"it has opened {where}, and a device does not survive a fork"
        if "io_uring" in where:
            return "it has an io_uring, which does not survive a fork"
    if shim.children(os.getpid()):
        return "the imports have started a process"
    unknown = [number.name for number in shim.CAUGHT if signal.getsignal(number) is None]
    if unknown:
        return f"the imports have set a handler of {unknown[0]} that Python does not know"
    return ""


class _Process:
    def __init__(self, parent: socket.socket, forks: socket.socket) -> None:
        self.parent = parent
        self._forks = forks
        for link in (parent, forks):
            link.set_inheritable(False)
        self._fds = set(_descriptors())
        self._name = _comm()
        self._agent: int | None = None
        self._kept: set[int] = set()
        self._signals: dict[int, _Handler] = {}
        self._changes: dict[str, str | None] = {}
        self._printed: list[bytes] = []
        self._why = ""

    def preload(self, plan: dict[str, Any], ours: set[str]) -> None:
        """Import what the plan names; tell the parent how that went."""
        if plan["agent"]:
            self._agent = os.pidfd_open(plan["agent"])
            self._fds.add(self._agent)
        environment = dict(os.environ)
        place = _first_on_path(plan["runs"])
        hidden = _hidden_modules(place, ours)
        if hidden:
            self._fail(f"{hidden} in the program's directory would hide a module that is imported already")
        books = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdout", "stderr")]
        ends = [os.dup(1), os.dup(2)]
        for number, book in enumerate(books, 1):
            os.dup2(book, number)
        if place is not None:
            sys.path.insert(0, place)
        pid = os.getpid()
        try:
            for name in plan["preload"]:
                __import__(name)
        except BaseException as error:  # noqa: BLE001  a SystemExit too
            self._fail(f"import {name}: {type(error).__name__}: {error}")
        if os.getpid() != pid:
            os._exit(0)  # a child of the imports', which is not to come by here
        if place is not None and place in sys.path:
            sys.path.remove(place)
        _flush()
        for number, end in enumerate(ends, 1):
            os.dup2(end, number)
            os.close(end)
        self._printed = [_tail_of(book) for book in books]
        self._kept = ({0, 1, 2} | set(_descriptors())) - (self._fds - {0, 1, 2})
        self._changes = _changes(environment, dict(os.environ))
        self._signals = {number: signal.getsignal(number) for number in shim.CAUGHT}
        self._why = plan["spare"] or may_fork()
        if self._why and not plan["spare"]:
            _end_idle_threads()
            self._why = may_fork()
        self._say({"why": self._why})
        self._why = self.parent.recv(nursery.REQUEST_BYTES).decode().removeprefix("-")  # it may know better

    def wait(self) -> None:
        """Fork workers, or wait to become one; returns in a worker."""
        gc.collect()
        if self._why:
            self._wait_as_spare()
            return
        gc.freeze()  # so that collections, in a shim too, leave the shared pages alone
        try:
            nursery.serve(self._forks, self._fork, may_fork=_single_threaded, ahead=True)
        except _Hatched as hatched:
            forked = hatched
        else:
            os._exit(0)
        gc.unfreeze()
        self._become(forked.start)
        _reseed()
        self._close()

    def _fork(self, request: str, passed: list[int]) -> None:
        """In a process that was just forked: be a shim."""
        _, _, path = request.partition(" ")
        shim.run(path, passed[1], self._agent, hatch=_hatch)

    def _wait_as_spare(self) -> None:
        self._forks.close()
        path, fds, _, _ = socket.recv_fds(self.parent, nursery.REQUEST_BYTES, 2)
        if not path:
            os._exit(0)
        with open(os.path.join(path.decode(), shim.START), "rb") as file:  # noqa: PTH118, PTH123
            start = json.load(file)
        failed = shim.settle_in(start, fds)
        if failed:
            self.parent.send(failed)
            os._exit(127)
        self._become(start)
        self._close()

    def _become(self, start: dict[str, Any]) -> None:
        """Put right what an exec would have."""
        signal.set_wakeup_fd(-1)
        for caught, handler in self._signals.items():
            if signal.getsignal(caught) != handler:
                signal.signal(caught, handler)
        _show_environment(start["env"])
        wanted = dict(start["env"])
        for name, value in self._changes.items():
            if value is None:
                wanted.pop(name, None)
            else:
                wanted[name] = value
        there = dict(os.environ)
        for name in there.keys() - wanted.keys():
            del os.environ[name]
        for name, value in wanted.items():
            if there.get(name) != value:
                os.environ[name] = value
        shim.set_name(self._name)
        for number, printed in enumerate(self._printed, 1):
            if printed:
                os.write(number, printed)

    def _close(self) -> None:
        """Close what is not the program's. Whoever started this worker learns so that it runs."""
        self.parent.detach()
        self._forks.detach()
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            if int(name) not in self._kept:
                with contextlib.suppress(OSError):  # that of the listing itself
                    os.close(int(name))

    def _say(self, what: dict[str, Any]) -> None:
        self.parent.send(json.dumps(what).encode())

    def _fail(self, why: str) -> None:
        self._say({"failed": why[:1000]})
        os._exit(1)


class _Hatched(BaseException):
    """Raised in a worker that was forked: out of the shim's code it comes, and into its own program."""

    def __init__(self, start: dict[str, Any]) -> None:
        self.start = start


def _hatch(start: dict[str, Any], outputs: list[int], failing: int, parent: int) -> NoReturn:
    """In a worker that a shim has just forked: get out of the shim, or say why not."""
    shim.leave(parent)
    failed = shim.settle_in(start, outputs)
    if failed:
        os.write(failing, failed)
        os._exit(127)
    raise _Hatched(start)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def _single_threaded() -> bool:
    return _threads() == 1


def _end_idle_threads() -> None:
    """Let libraries end their pools, as they do before every fork: OpenBLAS makes its own anew when it is next used.

    So a fork is made, of which nothing comes.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python says that there are threads, which is why
        pid = os.fork()
        if pid == 0:
            os._exit(0)
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(SETTLE_S * 1000):  # one of the threads held what the child needs
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(pidfd)


def _reseed() -> None:
    """Give this worker random numbers of its own; `random` and what uses the kernel's see to that themselves."""
    numbers = sys.modules.get("numpy.random")
    if numbers is not None:
        numbers.seed()
    threading = sys.modules.get("threading")
    if threading is not None:
        threading.main_thread()._set_native_id()  # noqa: SLF001  that of the zygote otherwise


def _first_on_path(runs: list[str]) -> str | None:
    """What Python will put in front of sys.path when it runs the program; None: nothing."""
    if sys.flags.safe_path:
        return None
    if runs[0] in ("-c", "-m"):
        return os.getcwd()  # noqa: PTH109
    if os.path.isdir(runs[0]) or runs[0].endswith((".zip", ".pyz")):  # noqa: PTH112
        return runs[0]
    return os.path.dirname(os.path.realpath(runs[0]))  # noqa: PTH120


def _hidden_modules(place: str | None, ours: set[str]) -> str:
    """A file of the program's own that its `import` would not find any more, since a module of that name is here."""
    if place is None:
        return ""
    for name in sorted(ours - set(sys.builtin_module_names)):
        for file in (f"{name}.py", f"{name}/__init__.py"):
            if "." not in name and os.path.exists(os.path.join(place, file)):  # noqa: PTH110, PTH118
                return file
    return ""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def _tail_of(book: int) -> bytes:
    size = os.lseek(book, 0, os.SEEK_END)
    tail = os.pread(book, TAIL_BYTES, max(0, size - TAIL_BYTES))
    os.close(book)
    return tail


def _changes(before: dict[str, str], after: dict[str, str]) -> dict[str, str | None]:
    """What the imports did to the environment; None: removed."""
    names = before.keys() | after.keys()
    return {name: after.get(name) for name in names if before.get(name) != after.get(name)}


def _show_environment(env: dict[str, str]) -> None:
    """Write into the room in the environment that /proc shows what it would show of a worker that was exec'd."""
    with open("/proc/self/environ", "rb", buffering=0) as file:  # noqa: PTH123
        shown = file.read()
    at = shown.find(ROOM.encode() + b"=")
    if at < 0:
        return
    size = (shown + b"\0").index(b"\0", at) - at
    entries = {os.fsencode(f"{name}={value}") for name, value in env.items()} - set(shown.split(b"\0"))
    # First the mark of an attempt, by which its processes are found.
    lines = sorted(entries, key=lambda entry: (not entry.startswith(b"HOLDFAST_HEARTBEAT_FILE="), entry))
    text = b""
    for line in lines:
        if len(text) + len(line) < size:
            text += line + b"\0"
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
        start = int(file.read().rpartition(b")")[2].split()[47])
    ctypes.memmove(start + at, text.ljust(size, b"\0"), size)


def _descriptors() -> list[int]:
    """What is open; not that of the listing itself."""
    return [fd for fd in map(int, os.listdir("/proc/self/fd")) if _link_of(fd)]  # noqa: PTH208


def _link_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
    except FileNotFoundError:
        return ""


def _comm() -> str:
    with open("/proc/self/comm") as file:  # noqa: PTH123
        return file.read().rstrip("\n")
