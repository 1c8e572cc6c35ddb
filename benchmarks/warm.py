"""Warm recoveries beside bare cold ones: SIGKILL of a worker to its next new step, or that of the last of its gang."""

import importlib.util
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

from benchmarks.figures import Table, median, seconds
from benchmarks.recovery import HOLDFAST, KILLS, PATIENCE_S, PROGRAM, WORLD, Supervisor, recoveries

ROUNDS = 3
PEERS = Path(__file__).parent.parent / ".venv-peers" / "bin"
"""What `make peers` installs."""
MODULES = {"plain": "numpy", "gloo": "numpy,torch,torch.distributed"}


def supervisors() -> list[Supervisor]:
    """In pairs: the bare one, which starts cold, and holdfast with what the program imports preloaded."""
    cases = [("numpy rank", "rank", "plain"), ("numpy gang", "gang", "plain")]
    if importlib.util.find_spec("torch"):
        cases.append(("gloo gang", "gang", "gloo"))
    found = []
    for name, scope, mode in cases:
        program = (sys.executable, PROGRAM, mode)
        bare = (sys.executable, "-S", "-m", "benchmarks.bare", scope, str(WORLD), "--", *program)
        run = (HOLDFAST, "run", "-n", str(WORLD), "--restart-scope", scope, "--backoff", "0s")
        warm = (*run, "--preload", MODULES[mode], "--", *program)
        found += [
            Supervisor(f"bare, {name}", scope, bare, f"bare, {name}"),
            Supervisor(f"holdfast cold, {name}", scope, (*run, "--", *program), f"bare, {name}"),
            Supervisor(f"holdfast warm, {name}", scope, warm, f"bare, {name}"),
        ]
    return found


def peers() -> list[Supervisor]:
    """Others, with the gloo gang, as far as they are installed."""
    elastic = ("--standalone", f"--nproc-per-node={WORLD}", "--max-restarts=100", PROGRAM, "gloo")
    ray = str(Path(__file__).with_name("ray_train.py"))
    commands = {
        "torchrun": ("torchrun", *elastic),
        "NVRx ft_launcher": ("ft_launcher", *elastic),
        "DLRover": ("dlrover-run", *elastic),
        "Ray Train": ("python", ray, str(WORLD)),
    }
    return [
        Supervisor(f"{name}, gloo gang", "gang", (str(PEERS / first), *rest), "bare, gloo gang")
        for name, (first, *rest) in commands.items()
        if (PEERS / first).exists()
    ]


def measure() -> list[Table]:
    ours, others = supervisors(), peers()
    kills: dict[str, list[float]] = {s.name: [] for s in (*ours, *others)}
    for round_ in range(ROUNDS):
        for s in (*ours, *others) if round_ == 0 else ours:
            with suppress(TimeoutError) if s in others else nullcontext():
                kills[s.name] += recoveries(s)
    rows = tuple(_row(s, kills) for s in (*ours, *others))
    note = (
        f"{WORLD} workers, as in the table of recoveries; warm ones are forked from a zygote that has imported what "
        "the program does. In the gloo gang each step is an all_reduce of torch.distributed, over a port that is new "
        "for every attempt. SIGKILL of one to the next new step of the last rank that had to restart, median of "
        f"{ROUNDS * KILLS} (range), of others than holdfast once {KILLS}. Bars: warm with numpy at most 0.25 of the "
        "bare cold rank, the warm gloo gang at most 0.1 of the bare cold gang."
    )
    return [Table("Warm recovery", note, ("supervisor", "recovery s", "beside the bare one"), rows)]


def _row(supervisor: Supervisor, kills: dict[str, list[float]]) -> tuple[str, str, str]:
    found = kills[supervisor.name]
    if not found:
        return supervisor.name, f"no step within {PATIENCE_S:g} s", ""
    return supervisor.name, seconds(found), f"{median(found) / median(kills[supervisor.baseline]):.3f}"
