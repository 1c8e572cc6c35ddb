"""What the tests of stopping train: steps of ten milliseconds until it should stop.

Usage: endless.py OUT [stubborn]. Of every attempt OUT/<rank>-<attempt>.json says which steps it did, when it left, and
why; a stubborn program looks and does not leave. Only every 100,000th step is a checkpoint of its own accord.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

import holdfast


def main():
    out, stubborn = Path(sys.argv[1]), "stubborn" in sys.argv
    run = holdfast.init()
    state = run.restore(default={"sum": np.zeros((), np.int64)})
    first = step = run.resume_step or 0
    while True:
        step += 1
        state["sum"] = state["sum"] + step
        time.sleep(0.01 + 0.002 * run.rank)
        run.step()
        run.checkpoint(state, every=100_000)
        if run.should_stop and not stubborn:
            break
    said = {"first": first, "last": step, "sum": int(state["sum"]), "reason": run.stop_reason}
    (out / f"{run.rank}-{run.attempt}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
