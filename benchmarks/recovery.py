"""Launch to the first step of the last of four workers, and SIGKILL of one to its next new step."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.figures import Table, median, seconds
from benchmarks.program import REPORT

WORLD = 4
ROUNDS = 5
"""Everybody is measured once a round, so that a machine that is slow for a while is slow for all."""
LAUNCHES, KILLS = 2, 8
"""In each round."""
PATIENCE_S = 60.0

PROGRAM = str(Path(__file__).with_name("program.py"))
HOLDFAST = str(Path(sys.executable).with_name("holdfast"))


@dataclass(frozen=True, slots=True)
class Supervisor:
    """How to run the program under one supervisor."""

    name: str
    scope: str
    command: tuple[str, ...]
    baseline: str


def supervisors() -> list[Supervisor]:
    plain = (sys.executable, PROGRAM, "plain")
    library = (sys.executable, PROGRAM, "library")
    found = []
    for scope in ("rank", "gang"):
        bare = f"bare {scope}"
        bare_command = (sys.executable, "-S", "-m", "benchmarks.bare", scope, str(WORLD), "--")
        run = (HOLDFAST, "run", "-n", str(WORLD), "--restart-scope", scope, "--backoff", "0s", "--")
        found += [
            Supervisor(bare, scope, (*bare_command, *plain), bare),
            Supervisor(f"holdfast {scope}", scope, (*run, *plain), bare),
            Supervisor(f"holdfast {scope}, with the library", scope, (*run, *library), bare),
        ]
    if importlib.util.find_spec("torch"):
        torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}")
        command = (sys.executable, *torchrun, "--max-restarts=100", PROGRAM, "plain")
        found.append(Supervisor("torchrun gang", "gang", command, "bare gang"))
    return found


@contextmanager
def running(supervisor: Supervisor) -> Iterator[tuple["Board", float]]:
    """Run the program under a supervisor; give its board and when it was launched."""
    with tempfile.TemporaryDirectory() as folder:
        board = Board(Path(folder))
        env = {**os.environ, "BENCH_DIR": folder, "OMP_NUM_THREADS": "1"}
        # What is installed was compiled then. This checkout is when it is first imported, unless that is forbidden.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        began = time.monotonic()
        quiet = subprocess.DEVNULL
        # holdfast keeps its state under its working directory
        env["PYTHONPATH"] = str(Path(__file__).parent.parent)
        process = subprocess.Popen(supervisor.command, env=env, cwd=folder, stdout=quiet, stderr=quiet)
        try:
            yield board, began
        finally:
            (Path(folder) / "stop").touch()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            end_leftovers(folder)


def end_leftovers(folder: str) -> None:
    """Not every supervisor ends all that it has started; nobody else is to be measured beside it."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("BENCH_DIR") == folder:
                process.kill()


class Board:
    """The reports of all ranks."""

    def __init__(self, folder: Path) -> None:
        self._files = []
        for rank in range(WORLD):
            path = folder / str(rank)
            path.write_bytes(bytes(REPORT.size))
            self._files.append(path.open("rb", buffering=0))

    def read(self, rank: int) -> tuple[int, int, float, float]:
        """pid, step, and the times of this process's first and last step."""
        file = self._files[rank]
        pid, step, first, last = REPORT.unpack(os.pread(file.fileno(), REPORT.size, 0))
        return pid, step, first / 1e9, last / 1e9

    def wait(self, ranks: list[int], pids: dict[int, int]) -> list[float]:
        """Wait until each rank steps in another process than `pids` says; return the times of its first step."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            reports = [self.read(rank) for rank in ranks]
            if all(pid and pid != pids.get(rank) for rank, (pid, *_) in zip(ranks, reports, strict=True)):
                return [first for _, _, first, _ in reports]
            time.sleep(0.001)
        raise TimeoutError(f"no step within {PATIENCE_S:g} s")


def launch(supervisor: Supervisor) -> float:
    with running(supervisor) as (board, began):
        return max(board.wait(list(range(WORLD)), {})) - began


def recoveries(supervisor: Supervisor) -> list[float]:
    """Kill a worker again and again; the time until the last of those that had to restart has a new step."""
    found = []
    with running(supervisor) as (board, _):
        board.wait(list(range(WORLD)), {})
        for kill in range(KILLS):
            time.sleep(0.3)
            victim = kill % WORLD
            ranks = [victim] if supervisor.scope == "rank" else list(range(WORLD))
            pids = {rank: board.read(rank)[0] for rank in ranks}
            began = time.monotonic()
            os.kill(pids[victim], signal.SIGKILL)
            found.append(max(board.wait(ranks, pids)) - began)
    return found


def measure() -> list[Table]:
    chosen = supervisors()
    launches: dict[str, list[float]] = {s.name: [] for s in chosen}
    kills: dict[str, list[float]] = {s.name: [] for s in chosen}
    for _ in range(ROUNDS):
        for s in chosen:
            launches[s.name] += [launch(s) for _ in range(LAUNCHES)]
            kills[s.name] += recoveries(s)
    torchrun = launches.get("torchrun gang")
    rows = []
    for s in chosen:
        beside_bare = median(kills[s.name]) / median(kills[s.baseline])
        beside_torchrun = (
            f"{median(launches[s.name]) / median(torchrun):.2f}" if torchrun else "torch is not here"
        )
        rows.append(
            (s.name, seconds(launches[s.name]), beside_torchrun, seconds(kills[s.name]), f"{beside_bare:.2f}")
        )
    head = ("supervisor", "launch s", "beside torchrun", "recovery s", "beside the bare one")
    note = (
        f"{WORLD} workers, numpy loop, one step a millisecond, backoff zero. Launch: to the first step of the last "
        f"worker, median of {ROUNDS * LAUNCHES} (range). Recovery: SIGKILL of one to the next new step of the last "
        f"rank that had to restart, median of {ROUNDS * KILLS} (range). All are measured in turn, {ROUNDS} times. "
        "Bars: launch at most 0.5 of torchrun's, recovery at most 1.5 of the bare supervisor's."
    )
    return [Table("Launch and recovery", note, head, tuple(rows))]
