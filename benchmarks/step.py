"""What one `run.step()` costs, called once a millisecond, beside less and beside more."""

import mmap
import os
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import Table, median

CALLS = 2_000
ROUNDS = 5


def timed(call: Callable[[int], object]) -> float:
    """Microseconds a call, with a millisecond of sleep between calls, as a training loop would be."""
    total = 0
    for n in range(CALLS):
        time.sleep(0.001)
        began = time.perf_counter_ns()
        call(n)
        total += time.perf_counter_ns() - began
    return total / CALLS / 1000


def mapped_write(folder: Path) -> Callable[[int], object]:
    """The least: a struct with step and time into a mapped page."""
    path = folder / "page"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        page = mmap.mmap(file.fileno(), 4096)
    layout = struct.Struct("<qq")
    return lambda n: layout.pack_into(page, 0, n, time.monotonic_ns())


def renamed_file(folder: Path) -> Callable[[int], object]:
    """A HEARTBEAT file, written anew and renamed."""
    path, temporary = folder / "HEARTBEAT", folder / "HEARTBEAT.tmp"

    def call(n: int) -> None:
        with temporary.open("w") as file:
            file.write(f"{n} {time.time()}\n")
        temporary.rename(path)

    return call


def library_step(folder: Path) -> Callable[[int], object]:
    """`run.step()`, with a heartbeat page as under an agent."""
    os.environ["HOLDFAST_HEARTBEAT_FILE"] = str(folder / "heartbeat")
    import holdfast

    run = holdfast.init()
    return lambda _: run.step()


def library_step_with_loss(folder: Path) -> Callable[[int], object]:
    """`run.step(loss=...)`."""
    import holdfast

    run = holdfast.init()
    return lambda n: run.step(loss=float(n))


def measure() -> list[Table]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls = {
            "struct into a mapped page": mapped_write(folder),
            "`run.step()`": library_step(folder),
            "`run.step(loss=…)`": library_step_with_loss(folder),
            "HEARTBEAT file, written and renamed": renamed_file(folder),
        }
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for what, call in calls.items():
                found[what].append(timed(call))
    least = median(found["struct into a mapped page"])
    rows = tuple(
        (what, f"{median(values):.2f}", f"{median(values) / least:.2f}") for what, values in found.items()
    )
    note = f"Once a millisecond, {CALLS} calls, median of {ROUNDS} rounds. Bar: `run.step()` at most 2."
    return [Table("Report of a step", note, ("what", "µs a call", "beside the least"), rows)]
