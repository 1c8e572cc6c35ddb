"""What the end-to-end tests of data sets train: it counts, in its state, how often each sample was taken.

Usage: consume.py DATA OUT SAMPLES EPOCHS [EVENT]. The samples of DATA are their own numbers, in the first column. Every
fifth step is a checkpoint, and the counts, an array [epochs, samples], go to OUT/<rank>.npy. The event happens in
attempt 1, to rank 1 after step 17, before its checkpoint:

- die is SIGKILL;
- replace:FILE changes one bit of a shard, and then is SIGKILL;
- truncate:FILE cuts a shard off after a page, and goes on.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

import holdfast


def main():
    source, out, samples, epochs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    run = holdfast.init()
    data = run.dataset(source, batch_size=12, seed=3, epochs=epochs, window=50)
    state = run.restore(default={"taken": np.zeros((epochs, samples), np.int64)})
    for batch in data:
        step = run.step()
        epoch = (step - 1) // (len(data) // epochs)
        np.add.at(state["taken"][epoch], batch[:, 0], 1)
        if run.attempt == 1 and run.rank == 1 and step == 17:
            happen(*sys.argv[5:])
        run.checkpoint(state, every=5)
    run.checkpoint(state, wait=True)
    np.save(out / f"{run.rank}.npy", state["taken"])


def happen(event):
    what, _, file = event.partition(":")
    if what == "truncate":
        os.truncate(file, 4096)
        return
    if what == "replace":
        content = bytearray(Path(file).read_bytes())
        content[-1] ^= 1
        Path(file).write_bytes(content)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
