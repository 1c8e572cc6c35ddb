"""python -m tests.soak [--kills N] [--agents N] [--seed N] [--preload MODULE,…]"""

import argparse
import asyncio
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.e2e.fleet import Fleet
from tests.soak.kills import WORLD, kill_agents, kill_workers


async def soak(kills: int, agents: int, seed: int, preload: list[str]) -> list[str]:
    lines = []
    for count, part in ((kills, kill_workers), (agents, kill_agents)):
        if count:
            with tempfile.TemporaryDirectory() as folder:
                fleet = Fleet(Path(folder))
                await fleet.open()
                fleet.start_coordinator()
                fleet.start_agent(slots=WORLD)
                try:
                    tell = partial(print, file=sys.stderr, flush=True)
                    findings = await part(fleet, count, seed, tell, preload)
                finally:
                    await fleet.close()
                lines += findings.lines()
    return lines


def main() -> None:
    """Soak, and print what was measured."""
    parser = argparse.ArgumentParser(
        prog="make soak", description="Kill workers and agents, again and again."
    )
    parser.add_argument("--kills", type=int, default=1_000, help="of workers")
    parser.add_argument("--agents", type=int, default=200, help="kills of the agent")
    parser.add_argument("--seed", type=int, default=0, help="whom, and when")
    parser.add_argument("--preload", default="", help="what workers have imported when they are forked")
    given = parser.parse_args()
    preload = [name for name in given.preload.split(",") if name]
    for line in asyncio.run(soak(given.kills, given.agents, given.seed, preload)):
        print(line)


if __name__ == "__main__":
    main()
