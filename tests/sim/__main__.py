"""python -m tests.sim --seeds N | --seed n [--trace]"""

import argparse
import sys
import time
from collections import Counter

from tests.sim.run import run


def main() -> int:
    """Run many seeds, or replay one."""
    parser = argparse.ArgumentParser(prog="make sim", description="Simulate a cluster with faults.")
    parser.add_argument("--seeds", type=int, default=200, help="how many, from 0")
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--trace", action="store_true", help="say everything that happens")
    given = parser.parse_args()
    seeds = range(given.seeds) if given.seed is None else range(given.seed, given.seed + 1)
    began = time.monotonic()
    totals: Counter[str] = Counter()
    for done, seed in enumerate(seeds, 1):
        result = run(seed, trace=given.trace or given.seed is not None)
        if given.trace:
            print(*result.trace, sep="\n")
        if result.failure:
            if given.seed is not None and not given.trace:
                print(*result.trace[-40:], sep="\n")
            print(f"seed {seed}: {result.failure}\nreplay with make sim SEED={seed}")
            return 1
        totals += Counter(result.counts) + Counter({"events": result.happened})
        if sys.stderr.isatty():
            print(f"\r{done}/{len(seeds)} seeds", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    said = ", ".join(f"{count} {what}" for what, count in sorted(totals.items()))
    line = f"{len(seeds)} seeds kept every promise: {said}"
    print(line if given.trace else f"{line}; {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
