"""What hangs in the end-to-end tests.

Usage: hanging.py STEPS HOW. Steps take a few milliseconds. HOW is what happens in attempt 1 after step 10, to the last
rank unless it says otherwise:

- lock: it waits for a lock for ever, in `stuck_here`, while a thread goes on touching the heartbeat file;
- flag:FILE: it waits until there is such a file;
- long:SECONDS: every rank is in a section "eval" for so long;
- none: nothing.
"""

import os
import sys
import threading
import time
from pathlib import Path

import holdfast


def stuck_here(lock):
    lock.acquire()


def touch_for_ever():
    while True:
        os.utime(os.environ["HOLDFAST_HEARTBEAT_FILE"])
        time.sleep(0.05)


def happen(run, how):
    kind, _, what = how.partition(":")
    last = run.rank == run.world_size - 1
    match kind:
        case "lock" if last:
            threading.Thread(target=touch_for_ever, name="beats-on", daemon=True).start()
            lock = threading.Lock()
            lock.acquire()
            stuck_here(lock)
        case "flag" if last:
            while not Path(what).exists():
                time.sleep(0.01)
        case "long":
            with run.section("eval"):
                time.sleep(float(what))


def main():
    steps, how = int(sys.argv[1]), sys.argv[2]
    run = holdfast.init()
    print(f"rank {run.rank} begins", flush=True)
    for step in range(1, steps + 1):
        time.sleep(0.005)
        run.step()
        if step == 10 and run.attempt == 1:
            happen(run, how)


if __name__ == "__main__":
    main()
