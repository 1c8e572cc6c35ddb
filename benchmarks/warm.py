"""Warm recoveries beside bare cold ones: SIGKILL of a worker to its next new step, or that of the last of its gang."""

import importlib.util
import sys

from benchmarks.figures import Table, median, seconds
from benchmarks.recovery import HOLDFAST, KILLS, PROGRAM, WORLD, Supervisor, recoveries

ROUNDS = 3


def supervisors() -> list[Supervisor]:
    """In pairs: the bare one, which starts cold, and holdfast with what the program imports preloaded."""
    cases = [("numpy rank", "rank", "plain", "numpy"), ("numpy gang", "gang", "plain", "numpy")]
    if importlib.util.find_spec("torch"):
        cases.append(("torch and gloo gang", "gang", "gloo", "numpy,torch,torch.distributed"))
    found = []
    for name, scope, mode, modules in cases:
        program = (sys.executable, PROGRAM, mode)
        bare = (sys.executable, "-S", "-m", "benchmarks.bare", scope, str(WORLD), "--", *program)
        run = (HOLDFAST, "run", "-n", str(WORLD), "--restart-scope", scope, "--backoff", "0s")
        found.append(Supervisor(f"bare, {name}", scope, bare, f"bare, {name}"))
        if mode != "gloo":  # takes half a minute more, and says what the table of recoveries says
            found.append(Supervisor(f"holdfast cold, {name}", scope, (*run, "--", *program), f"bare, {name}"))
        warm = (*run, "--preload", modules, "--", *program)
        found.append(Supervisor(f"holdfast warm, {name}", scope, warm, f"bare, {name}"))
    return found


def measure() -> list[Table]:
    chosen = supervisors()
    kills: dict[str, list[float]] = {s.name: [] for s in chosen}
    for _ in range(ROUNDS):
        for s in chosen:
            kills[s.name] += recoveries(s)
    rows = tuple(
        (s.name, seconds(kills[s.name]), f"{median(kills[s.name]) / median(kills[s.baseline]):.3f}")
        for s in chosen
    )
    torch = "" if importlib.util.find_spec("torch") else " torch is not here."
    note = (
        f"{WORLD} workers, as in the table of recoveries; warm ones are forked from a zygote that has imported what "
        "the program does. In the gloo gang each step is an all_reduce, over a port that is new for every attempt. "
        "SIGKILL of one to the next new step of the last rank that had to restart, median of "
        f"{ROUNDS * KILLS} (range). Bars: warm with numpy at most 0.25 of the bare cold rank, the gloo gang at most "
        f"0.1 of the bare cold gang.{torch}"
    )
    return [Table("Warm recovery", note, ("supervisor", "recovery s", "beside the bare one"), rows)]
