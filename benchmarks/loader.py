"""Batches a second out of shuffled shards, beside a plain loop over memory maps and beside torch's DataLoader."""

import importlib.util
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import Table, median
from holdfast.data.make import make_shard_dataset
from holdfast.worker import windows
from holdfast.worker.identity import identify

SHARDS = 8
ROUNDS = 5
SECONDS = 0.5
"""Of one round of one loader, at least."""
WARM_UP = 0.2
"""Before each: so that nothing counts that was made ahead while another loader was measured."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is loaded."""

    rows: int
    width: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.batch} samples of {self.width} bytes"


LOADS = (Load(200_000, 3_072, 64), Load(200_000, 3_072, 512), Load(8_000, 150_528, 32))


def write(load: Load, folder: Path) -> list[Path]:
    rows = load.rows // SHARDS
    for number in range(SHARDS):
        shard = np.random.default_rng(number).integers(0, 255, (rows, load.width), np.uint8)
        np.save(folder / f"{number}.npy", shard)
    return sorted(folder.glob("*.npy"))


def orders(load: Load) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shard and row of every sample, epoch by epoch: the order that holdfast has."""
    counts = np.full(SHARDS, load.rows // SHARDS)
    for epoch in itertools.count():
        yield windows.Epoch(windows.whole(counts), windows.WINDOW, 0, epoch).take(0, load.rows)


def plain(load: Load, paths: list[Path]) -> Iterator[np.ndarray]:
    """What one would write: gather a batch shard by shard."""
    maps = [np.load(path, mmap_mode="r") for path in paths]
    for shards, rows in orders(load):
        for start in range(0, load.rows, load.batch):
            here, row = shards[start : start + load.batch], rows[start : start + load.batch]
            batch = np.empty((len(here), load.width), np.uint8)
            for shard in np.unique(here):
                mine = here == shard
                batch[mine] = maps[shard][row[mine]]
            yield batch


def holdfast(load: Load, paths: list[Path]) -> Iterator[np.ndarray]:
    env = {"HOLDFAST_CACHE_DIR": str(paths[0].parent / "cache")}
    identity = identify({"HOLDFAST_CHECKPOINT_URI": str(paths[0].parent / "checkpoints")}, "loader.py")
    source = [str(path) for path in paths]
    return iter(
        make_shard_dataset(
            source, identity, env, load.batch, seed=0, epochs=None, partition=False, window=None
        )
    )


class Samples:
    """The shards as torch's DataLoader takes them: sample by sample."""

    def __init__(self, load: Load, paths: list[Path]) -> None:
        self.load = load
        self.maps = [np.load(path, mmap_mode="r") for path in paths]

    def __len__(self) -> int:
        return self.load.rows

    def __getitem__(self, place: tuple[int, int]) -> np.ndarray:
        shard, row = place
        return np.array(self.maps[shard][row])

    def batches(self) -> Iterator[list[tuple[int, int]]]:
        for shards, rows in orders(self.load):
            places = list(zip(shards.tolist(), rows.tolist(), strict=True))
            for start in range(0, len(places), self.load.batch):
                yield places[start : start + self.load.batch]


def dataloader(workers: int) -> Callable[[Load, list[Path]], Iterator[object]]:
    def make(load: Load, paths: list[Path]) -> Iterator[object]:
        from torch.utils.data import DataLoader

        samples = Samples(load, paths)
        return iter(DataLoader(samples, batch_sampler=samples.batches(), num_workers=workers))

    return make


def rate(batches: Iterator[object]) -> float:
    """Batches a second, once it is under way."""
    began = time.perf_counter()
    while time.perf_counter() - began < WARM_UP:
        next(batches)
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < SECONDS:
        for _ in range(8):
            next(batches)
        count += 8
    return count / took


def measure_load(load: Load, folder: Path) -> list[tuple[str, ...]]:
    paths = write(load, folder)
    loaders: dict[str, Callable[[Load, list[Path]], Iterator[object]]] = {
        "numpy memory maps": plain,
        "holdfast": holdfast,
    }
    if importlib.util.find_spec("torch") is not None:
        loaders["torch DataLoader, in the process"] = dataloader(0)
        loaders["torch DataLoader, 2 workers"] = dataloader(2)
    running = {name: make(load, paths) for name, make in loaders.items()}
    found: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(ROUNDS):
        for name, batches in running.items():
            found[name].append(rate(batches))
    running.clear()
    ratios = {
        name: [value / base for value, base in zip(values, found["numpy memory maps"], strict=True)]
        for name, values in found.items()
    }
    return [
        (
            load.name,
            name,
            f"{median(values):,.0f}",
            f"{median(ratios[name]):.2f} ({min(ratios[name]):.2f} to {max(ratios[name]):.2f})",
        )
        for name, values in found.items()
    ]


def measure() -> list[Table]:
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    rows: list[tuple[str, ...]] = []
    for load in LOADS:
        with tempfile.TemporaryDirectory(dir=where) as name:
            rows += measure_load(load, Path(name))
    if importlib.util.find_spec("torch") is None:
        rows.append(("", "torch DataLoader", "needs torch (`make torch`)", ""))
    note = (
        f"{SHARDS} npy shards in memory, shuffled together, the same order for all; the loop does nothing with its "
        f"batches. Median of {ROUNDS} rounds, the ratio with its range. Bar: at least 0.8 beside the memory maps."
    )
    return [
        Table("Data loader", note, ("a batch", "loader", "batches/s", "beside the memory maps"), tuple(rows))
    ]
