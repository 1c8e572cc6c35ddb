"""What the end-to-end tests train: a small state that every step changes, so that a lost or repeated step shows.

Usage: train.py STEPS OUT [EVENT...]. Steps take a few milliseconds, every tenth is a checkpoint, and the final state
goes to OUT/<rank>.npy. An event happens to one rank, in attempt 1:

- die-after-checkpoint:RANK:STEP is SIGKILL right after the shard of that step was prepared, before its ack is here;
- exit:RANK:CODE:FLAG ends the rank as soon as the file FLAG exists.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import holdfast


def advance(state, rank, step):
    state["x"] = state["x"] * 0.9 + step * (rank + 1)
    state["sum"] = state["sum"] + step


def expected(rank, steps):
    """The final state of an undisturbed run."""
    state = {"x": np.zeros(1000), "sum": np.zeros((), np.int64)}
    for step in range(1, steps + 1):
        advance(state, rank, step)
    return state["x"]


def main():
    steps, out, events = int(sys.argv[1]), Path(sys.argv[2]), [e.split(":") for e in sys.argv[3:]]
    run = holdfast.init()
    (out / f"pid-{run.rank}-{run.attempt}").write_text(str(os.getpid()))
    state = run.restore(default={"x": np.zeros(1000), "sum": np.zeros((), np.int64)})
    step = run.resume_step or 0
    while step < steps:
        step += 1
        advance(state, run.rank, step)
        time.sleep(0.005)
        run.step()
        run.checkpoint(state, every=10)
        if run.attempt == 1:
            for event in events:
                happen(event, run.rank, step)
    run.checkpoint(state, wait=True)
    np.save(out / f"{run.rank}.npy", state["x"])


def happen(event, rank, step):
    match event:
        case ["die-after-checkpoint", r, s] if (int(r), int(s)) == (rank, step):
            os.kill(os.getpid(), signal.SIGKILL)
        case ["exit", r, code, flag] if int(r) == rank and Path(flag).exists():
            os._exit(int(code))


if __name__ == "__main__":
    main()
