"""The program that every supervisor in `recovery.py` runs: imports numpy, then steps once a millisecond.

It goes on after the last step that its predecessor reported, so that its first report is a new step. Reports go
into a small mapped file of its rank under BENCH_DIR: pid, step, CLOCK_MONOTONIC nanoseconds of its first
step, and of its last.

`plain` uses no library at all. `library` is the same with holdfast.init() and run.step(). In `gloo` each step is an
all_reduce of torch.distributed.
"""

import mmap
import os
import struct
import sys
import time

import numpy as np

REPORT = struct.Struct("<qqqq")


def main() -> None:
    rank = int(os.environ["RANK"])
    with open(os.path.join(os.environ["BENCH_DIR"], str(rank)), "r+b") as file:
        page = mmap.mmap(file.fileno(), REPORT.size)
    step = REPORT.unpack_from(page)[1]
    run = None
    if sys.argv[1] == "library":
        import holdfast

        run = holdfast.init()
    reduce = ready_to_reduce() if sys.argv[1] == "gloo" else None
    weights = np.zeros((64, 64))
    first = 0
    while not os.path.exists(os.path.join(os.environ["BENCH_DIR"], "stop")):
        weights += weights @ weights
        step += 1
        if run is not None:
            run.step(step)
        if reduce is not None:
            reduce()
        now = time.monotonic_ns()
        first = first or now
        page[:] = REPORT.pack(os.getpid(), step, first, now)  # pack_into writes zeros first
        time.sleep(0.001)


def ready_to_reduce():
    """Join the gang, unless whoever started this has, and give what makes a step with it."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    gradients = torch.ones(1000)
    return lambda: dist.all_reduce(gradients)


if __name__ == "__main__":
    main()
