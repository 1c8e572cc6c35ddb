"""Saving and restoring 1 GiB of state in 200 arrays, beside the same bytes raw and beside what else there is.

Every round measures everything in turn, on a disk and on tmpfs, so that a machine that is slow for a while is slow
for all. Restores read what was just written: from the page cache, as a restart on the same node does.
"""

import gc
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Table, median, seconds
from holdfast.worker.identity import identify
from holdfast.worker.run import Run

ARRAYS = 200
BYTES = 1 << 30
ROUNDS = 4
PIECE = 4 << 20
PLACES = {"disk": tempfile.gettempdir(), "tmpfs": "/dev/shm"}
Found = dict[str, list[float]]


def make_state() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return {f"layer.{n:03}": random.standard_normal(BYTES // ARRAYS // 8) for n in range(ARRAYS)}


@contextmanager
def timed(found: Found, what: str) -> Iterator[None]:
    gc.collect()
    began = time.perf_counter()
    yield
    found.setdefault(what, []).append(time.perf_counter() - began)


class Raw:
    """The same bytes with nothing around them: write, fsync; read into fresh memory."""

    name = "raw bytes"

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self._path = folder / "raw"
        self._data = np.concatenate([array.view(np.uint8) for array in state.values()])

    def save(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        data = self._data.data
        for at in range(0, len(data), PIECE):
            os.write(fd, data[at : at + PIECE])
        os.fsync(fd)
        os.close(fd)

    def load(self) -> object:
        buffer = np.empty(len(self._data), np.uint8)
        with self._path.open("rb", buffering=0) as file:
            file.readinto(buffer.data)
        return buffer

    def clear(self) -> None:
        self._path.unlink()


class Holdfast:
    """A world of one: written, checksummed, synced, renamed, committed; restored with every byte verified."""

    name = "holdfast"

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self._folder = folder
        self._state = state
        self._training = self._open("asynchronous")
        self._run = self._open("waiting")

    def save(self) -> None:
        self._run.step()
        self._run.checkpoint(self._state, wait=True)

    def begin(self) -> None:
        """What the training loop is stopped for. Always the same run, as in training, whose buffer is warm."""
        self._training.step()
        self._training.checkpoint(self._state)

    def finish(self) -> None:
        self._training.checkpoint(self._state, wait=True)

    def load(self) -> object:
        self._run.close()
        self._run = self._open("waiting")
        return self._run.restore()

    def clear(self) -> None:
        for path in self._folder.glob("*/bench/step-*"):
            shutil.rmtree(path)

    def _open(self, name: str) -> Run:
        return Run(identify({"HOLDFAST_CHECKPOINT_URI": str(self._folder / name)}, "bench.py"))


class TorchSave:
    """torch.save, then fsync; torch.load."""

    name = "torch.save + fsync"

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        import torch

        self._torch = torch
        self._path = folder / "state.pt"
        self._state = {name: torch.from_numpy(array) for name, array in state.items()}

    def save(self) -> None:
        with self._path.open("wb") as file:
            self._torch.save(self._state, file)
            file.flush()
            os.fsync(file.fileno())

    def load(self) -> object:
        return self._torch.load(self._path)

    def clear(self) -> None:
        self._path.unlink()


class Dcp:
    """torch.distributed.checkpoint in one process, its files synced."""

    name = "torch.distributed.checkpoint"

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        import torch
        from torch.distributed import checkpoint

        self._dcp = checkpoint
        self._folder = folder / "dcp"
        self._state = {name: torch.from_numpy(array) for name, array in state.items()}
        self._into = {name: torch.empty_like(tensor) for name, tensor in self._state.items()}
        self._writer = checkpoint.FileSystemWriter(self._folder, overwrite=True)
        self._future: Any = None

    def save(self) -> None:
        self._dcp.save(self._state, storage_writer=self._writer, no_dist=True)

    def begin(self) -> None:
        self._future = self._dcp.async_save(self._state, storage_writer=self._writer, no_dist=True)

    def finish(self) -> None:
        self._future.result()

    def load(self) -> object:
        self._dcp.load(self._into, storage_reader=self._dcp.FileSystemReader(self._folder), no_dist=True)
        return None

    def clear(self) -> None:
        shutil.rmtree(self._folder)


class Orbax:
    """Orbax's standard checkpointer, of numpy arrays."""

    name = "Orbax"

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        from orbax import checkpoint

        self._folder = folder / "orbax"
        self._state = state
        self._checkpointer = checkpoint.StandardCheckpointer()

    def save(self) -> None:
        self.begin()
        self.finish()

    def begin(self) -> None:
        self._checkpointer.save(self._folder, self._state, force=True)

    def finish(self) -> None:
        self._checkpointer.wait_until_finished()

    def load(self) -> object:
        return self._checkpointer.restore(self._folder)

    def clear(self) -> None:
        shutil.rmtree(self._folder)


NEEDS = {Raw: "numpy", Holdfast: "numpy", TorchSave: "torch", Dcp: "torch", Orbax: "orbax"}


def run_place(place: str, state: dict[str, Any]) -> tuple[dict[str, Found], list[str]]:
    """Times by what was measured, then by who; and who is missing."""
    saves: Found = {}
    stops: Found = {}
    loads: Found = {}
    there = [kind for kind, needs in NEEDS.items() if importlib.util.find_spec(needs)]
    with tempfile.TemporaryDirectory(dir=place) as name:
        makers = [kind(Path(name), state) for kind in there]
        target = {name: np.zeros_like(array) for name, array in state.items()}
        for number in range(ROUNDS + 1):  # the first touches all memory, and does not count
            for each in makers:
                with timed(saves, each.name):
                    each.save()
                with timed(loads, each.name):
                    kept = each.load()
                del kept
                each.clear()
                if hasattr(each, "begin"):
                    with timed(stops, each.name):
                        each.begin()
                    each.finish()
                    each.clear()
            with timed(stops, "memcpy into touched memory"):
                for key, array in state.items():
                    np.copyto(target[key], array)
            if number == 0:
                for found in (saves, stops, loads):
                    found.clear()
    missing = [kind.name for kind in NEEDS if kind not in there]
    return {"save": saves, "stop": stops, "load": loads}, missing


def beside(found: Found, least: str) -> Iterator[tuple[str, str, str]]:
    """Rows: who, seconds, and the median of the ratios that each round gives."""
    for who, values in found.items():
        ratios = [value / base for value, base in zip(values, found[least], strict=True)]
        yield who, seconds(values), f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def steps_meanwhile(state: dict[str, Any]) -> tuple[str, str, str]:
    """How much slower a step is while a checkpoint is written behind it."""
    work = np.random.default_rng(1).standard_normal((700, 700))
    with tempfile.TemporaryDirectory() as name:
        saver = Holdfast(Path(name), state)
        saver.save()

        def step() -> float:
            began = time.perf_counter()
            for _ in range(4):
                work @ work
            return time.perf_counter() - began

        alone, meanwhile = [], []
        for _ in range(ROUNDS):
            alone += [step() for _ in range(20)]
            saver.begin()
            meanwhile += [step() for _ in range(20)]
            saver.finish()
            saver.clear()
    ratio = median(meanwhile) / median(alone)
    return f"{median(alone) * 1000:.1f}", f"{median(meanwhile) * 1000:.1f}", f"{ratio:.2f}"


def measure() -> list[Table]:
    state = make_state()
    tables = []
    titles: dict[str, tuple[str, str, Callable[[str], str]]] = {
        "save": ("Durable save", "raw bytes", lambda _: "Bar: holdfast at most 1.15 of the raw bytes."),
        "load": (
            "Restore",
            "raw bytes",
            lambda _: "holdfast's is verified. Bar: at most 1.25 of the raw bytes.",
        ),
        "stop": (
            "What training is stopped for by an asynchronous save",
            "memcpy into touched memory",
            lambda _: "Bar: holdfast at most 1.5.",
        ),
    }
    for place, folder in PLACES.items():
        found, missing = run_place(folder, state)
        for what, (title, least, note) in titles.items():
            said = f"1 GiB in {ARRAYS} arrays, median of {ROUNDS} rounds (range). {note(what)}"
            if missing:
                said += f" Not installed here: {', '.join(missing)}."
            head = ("who", "seconds", f"beside {least}")
            tables.append(Table(f"{title}, {place}", said, head, tuple(beside(found[what], least))))
    head = ("alone, ms", "while a checkpoint is written, ms", "ratio")
    note = "A step of matrix products on all cores, 20 in a row after each `run.checkpoint()`."
    tables.append(Table("Steps while a checkpoint is written, disk", note, head, (steps_meanwhile(state),)))
    return tables
