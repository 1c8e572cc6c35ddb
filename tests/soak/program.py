"""What the soak trains: as the end-to-end tests do, until it is told to finish.

Usage: program.py OUT. It ends at a multiple of fifty steps after the file OUT/finish is there, and leaves its state and
how many steps it took in OUT/<rank>.npz.
"""

import sys
import time
from pathlib import Path

import numpy as np

import holdfast
from tests.e2e.train import advance


def main():
    out = Path(sys.argv[1])
    run = holdfast.init()
    state = run.restore(default={"x": np.zeros(1000), "sum": np.zeros((), np.int64)})
    step = run.resume_step or 0
    while step % 50 or not (out / "finish").exists():
        step += 1
        advance(state, run.rank, step)
        time.sleep(0.005)
        run.step()
        run.checkpoint(state, every=10)
    run.checkpoint(state, wait=True)
    np.savez(out / f"{run.rank}.npz", x=state["x"], steps=step)


if __name__ == "__main__":
    main()
