"""Where `holdfast run` keeps a run: `.holdfast/runs/<name>/` in the current directory."""

import fcntl
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from holdfast.cli.common import fail

ROOT = Path(".holdfast")


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's directory, locked for as long as this process lives."""

    path: Path
    lock: int

    @property
    def name(self) -> str:
        """Its name."""
        return self.path.name

    def open_log(self) -> TextIO:
        """Open what coordinator and agent log into. Nothing is held back, so that closing it can't fail."""
        try:
            file = (self.path / "holdfast.log").open("ab", buffering=0)
        except OSError as error:
            fail(f"can't write to {self.path}: {error.strerror}")
        return io.TextIOWrapper(file, encoding="utf-8", write_through=True)

    def finish(self) -> None:
        """Note that its job has ended, so that there is nothing to resume."""
        (self.path / "ended").touch()


def create(name: str) -> RunDir:
    """Make the directory of a new run; a name that is taken gets a number."""
    # What no job name can be, the coordinator refuses; until then it must be no path.
    name = re.sub(r"[^A-Za-z0-9._-]+|^\.+", "-", name)[:63]
    runs = ROOT / "runs"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        (ROOT / ".gitignore").write_text("*\n")
        number = 1
        while True:
            path = runs / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(mode=0o700)
                break
            except FileExistsError:
                number += 1
    except OSError as error:
        fail(f"can't make a directory for this run below {ROOT.absolute()}: {error.strerror}")
    return _locked(path.absolute())


def resume(name: str) -> RunDir:
    """Find the run of this name, or the newest that has not ended."""
    runs = ROOT / "runs"
    if name:
        path = runs / name
        if not path.is_dir():
            fail(f"there is no run {name} in {runs.absolute()}")
    else:
        unfinished = [path for path in runs.glob("*") if path.is_dir() and not (path / "ended").exists()]
        if not unfinished:
            fail(f"there is no unfinished run in {runs.absolute()}")
        path = max(unfinished, key=lambda path: path.stat().st_mtime)
    if (path / "ended").exists():
        fail(f"run {path.name} has ended; there is nothing to resume")
    return _locked(path.absolute())


def _locked(path: Path) -> RunDir:
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"run {path.name} is running already, in another process")
    return RunDir(path, lock)
