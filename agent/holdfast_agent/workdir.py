"""The agent's state directory: one directory for each attempt of each rank.

====================================== ======================================================================
``instance_id``                        tells this agent from another one of the same name
``lock``                               held by the agent that uses the directory
``jobs/<job>/datasets.json``           the data sets of the job's spec, for its workers
``jobs/<job>/preload.json``            how its workers start warm (spare.py); mode 0600 as start.json
``jobs/<job>/<rank>-<attempt>/``       an attempt; while it is there, no attempt up to it starts again
``… start.json``                       what to run; mode 0600, for the environment may hold secrets
``… resume``                           the commit to resume from, a serialized CommitRecord
``… shim.json``                        pids and start times of the shim and its worker
``… exit.json``                        how it ended
``… fenced``                           why its agent stopped it of its own accord
``… hang.json``                        how it hung, until the coordinator has that it moves again
``… released``                         the coordinator has the exit
``… heartbeat stdout.log stderr.log``  the worker's
``… stdout.index stderr.index``        what of its logs is freed, and when the rest was written
``… log_metrics``                      a page like the heartbeat's, of what was found in its logs
``… archived``                         its logs are in the checkpoint storage, too
``spool/<job>/``                       checkpoint files that the storage could not be given yet; the workers' own
====================================== ======================================================================

Files appear whole, by rename. They are there to outlive processes, which the page cache does, so that none is fsynced
but the ``instance_id``. When the machine itself goes down no worker is left to find, its boot id changes, and the
coordinator starts what it had wanted anew under a new attempt. What such a crash tore reads as not there.

Whoever holds the lock on ``start.json`` (the agent until it has handed it over, then the shim for as long as it
lives) is responsible for the attempt. That is how an agent that was restarted tells a shim that is alive from one
that is not, without trusting a pid.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast import heartbeat
from holdfast_agent.core import Key
from holdfast_agent.shim import EXIT, EXIT_TO_COME, START

RELEASED, RESUME, HEARTBEAT, DATASETS = "released", "resume", "heartbeat", "datasets.json"
PLAN = "preload.json"
ARCHIVED, LOG_PAGE = "archived", "log_metrics"
HANG_JSON = "hang.json"
FENCED = "fenced"
LOCK_TRIES, LOCK_TRY_S = 25, 0.02
"""A shim that looks whether there is an agent holds the lock for a moment."""


class StateDirError(Exception):
    """The state directory can't be used; the message is one sentence with the remedy."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt's directory."""

    key: Key
    path: Path

    def read(self, name: str) -> dict[str, Any] | None:
        """Read one of its JSON files; None when it is not there whole."""
        try:
            found = json.loads((self.path / name).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def heartbeat(self) -> Path:
        """What HOLDFAST_HEARTBEAT_FILE names."""
        return self.path / HEARTBEAT

    def read_heartbeat(self) -> bytes:
        """Read its page; empty while it has none."""
        return self.look()[0]

    def look(self) -> tuple[bytes, int]:
        """Read its page, and when its file was touched, in nanoseconds since the Unix epoch; (empty, 0) without one.

        It is the worker's own, or where it writes none the one that was made from its logs. The worker may do with its
        file as it likes.
        """
        page, touched = self._look(HEARTBEAT)
        if heartbeat.is_page(page):
            return page, touched
        found = self._look(LOG_PAGE)
        return found if found[0] else (page, touched)

    def _look(self, name: str) -> tuple[bytes, int]:
        try:
            fd = os.open(self.path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b"", 0
        try:
            return os.read(fd, heartbeat.SIZE), os.fstat(fd).st_mtime_ns
        except OSError:
            return b"", 0
        finally:
            os.close(fd)

    def read_resume(self) -> bytes:
        """Read the commit to resume from; empty when there is none."""
        try:
            return (self.path / RESUME).read_bytes()
        except FileNotFoundError:
            return b""

    @property
    def begun(self) -> bool:
        """A shim was about to start its worker, or has."""
        return any((self.path / name).exists() for name in (EXIT_TO_COME, EXIT))

    @property
    def released(self) -> bool:
        """The coordinator has its exit."""
        return (self.path / RELEASED).exists()

    def mark_released(self) -> None:
        """Note that the coordinator has its exit."""
        (self.path / RELEASED).touch()

    def fence(self, why: str) -> None:
        """Note that its agent stops it of its own accord, before it does."""
        (self.path / FENCED).write_text(why)

    @property
    def fenced(self) -> str:
        """Why its agent stopped it of its own accord; empty when it did not."""
        try:
            return (self.path / FENCED).read_text()
        except OSError:
            return ""

    def try_lock(self) -> int | None:
        """Take responsibility for it: a descriptor that holds the lock, or None while a shim does."""
        fd = os.open(self.path / START, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def note_hang(self, content: dict[str, Any]) -> None:
        """Note for the next agent how it hangs. Raises OSError."""
        making = self.path / f".{HANG_JSON}"
        making.write_text(json.dumps(content))
        making.rename(self.path / HANG_JSON)

    def forget_hang(self) -> None:
        """Forget that it hung. Raises OSError."""
        (self.path / HANG_JSON).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the directory: this attempt never began."""
        shutil.rmtree(self.path)


class StateDir:
    """The directory, held by this process until `close`. Raises StateDirError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._jobs = path / "jobs"
        self.spool = path / "spool"
        try:
            for directory in (path, self._jobs, self.spool):  # of its parents, `mode` is the umask's
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateDirError(f"can't use the state directory {path}: {error.strerror}") from error
        if not self._take_lock():
            os.close(self._lock)
            raise StateDirError(
                f"another agent uses the state directory {path}; give this one another --state-dir"
            )
        try:
            self.instance_id = self._read_instance_id()
        except OSError as error:
            os.close(self._lock)
            raise StateDirError(f"can't use the state directory {path}: {error.strerror}") from error

    def _take_lock(self) -> bool:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_TRY_S)
            else:
                return True
        return False

    @property
    def lock_path(self) -> Path:
        """The file that the agent which uses the directory holds locked."""
        return self.path / "lock"

    def close(self) -> None:
        """Let go of it."""
        os.close(self._lock)

    def attempt(self, key: Key) -> Attempt:
        """The directory of a worker, whether or not it is there."""
        return Attempt(key, self._jobs / key.job_id / f"{key.rank}-{key.attempt}")

    def create(self, key: Key, start: dict[str, Any], resume: bytes) -> tuple[Attempt, int]:
        """Make the directory of a new attempt; return it with the descriptor that holds its lock.

        The directory appears whole, and already locked, so that there is no moment at which it belongs to nobody.
        """
        attempt = self.attempt(key)
        job = attempt.path.parent
        job.mkdir(mode=0o700, exist_ok=True)
        making = job / f".{attempt.path.name}"
        if making.exists():
            shutil.rmtree(making)
        making.mkdir(mode=0o700)
        fd = os.open(making / START, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, json.dumps(start).encode())
            if resume:
                (making / RESUME).write_bytes(resume)
            making.rename(attempt.path)
        except OSError:
            os.close(fd)
            shutil.rmtree(making, ignore_errors=True)
            raise
        return attempt, fd

    def attempts(self) -> Iterator[Attempt]:
        """Every attempt on disk; a job may be removed meanwhile."""
        for job in sorted(self._jobs.iterdir()):
            paths: list[Path] = []
            with contextlib.suppress(FileNotFoundError):
                paths = sorted(job.iterdir())
            for path in paths:
                rank, _, number = path.name.partition("-")
                if rank.isdecimal() and number.isdecimal():
                    yield Attempt(Key(job.name, int(rank), int(number)), path)

    def datasets(self, job_id: str) -> Path:
        """What HOLDFAST_DATASETS names, whether or not it is there."""
        return self._jobs / job_id / DATASETS

    def write_datasets(self, job_id: str, content: bytes) -> None:
        """Write what all workers of a job read. A spec never changes, and so it is written once."""
        path = self.datasets(job_id)
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            making = path.with_name(f".{DATASETS}")
            making.write_bytes(content)
            making.rename(path)

    def write_plan(self, job_id: str, plan: dict[str, Any]) -> Path:
        """Write how to preload a job. Raises OSError."""
        path = self._jobs / job_id / PLAN
        path.parent.mkdir(mode=0o700, exist_ok=True)
        making = path.with_name(f".{PLAN}-{uuid.uuid4().hex}")
        fd = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                json.dump(plan, file)
            making.rename(path)
        except OSError:
            making.unlink()
            raise
        return path

    def job(self, job_id: str) -> Path:
        """The directory of a job."""
        return self._jobs / job_id

    def remove_job(self, job_id: str) -> None:
        """Remove everything of a job, but for checkpoint files that are nowhere else."""
        shutil.rmtree(self.job(job_id), ignore_errors=True)
        spool = self.spool / job_id
        if not any(files for _, _, files in os.walk(spool)):
            shutil.rmtree(spool, ignore_errors=True)

    def _read_instance_id(self) -> str:
        path = self.path / "instance_id"
        with contextlib.suppress(FileNotFoundError):
            if found := path.read_text().strip():
                return found
        made = uuid.uuid4().hex
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            file.write(made)
            file.flush()
            os.fsync(file.fileno())  # the coordinator remembers this node by it, also after a power cut
        temporary.rename(path)
        return made
