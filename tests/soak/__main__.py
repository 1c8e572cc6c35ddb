"""python -m tests.soak [--kills N] [--agents N] [--seed N]"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.e2e.fleet import Fleet
from tests.soak.kills import WORLD, kill_agents, kill_workers


async def soak(kills: int, agents: int, seed: int) -> list[str]:
    lines = []
    for count, part in ((kills, kill_workers), (agents, kill_agents)):
        if count:
            with tempfile.TemporaryDirectory() as folder:
                fleet = Fleet(Path(folder))
                await fleet.open()
                fleet.start_coordinator()
                fleet.start_agent(slots=WORLD)
                try:
                    findings = await part(
                        fleet, count, seed, lambda line: print(line, file=sys.stderr, flush=True)
                    )
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
    given = parser.parse_args()
    for line in asyncio.run(soak(given.kills, given.agents, given.seed)):
        print(line)


if __name__ == "__main__":
    main()
