"""An agent as a process of its own, for tests that kill it: argv is coordinator, state directory, and "foreground"."""

import asyncio
import signal
import sys
from pathlib import Path

from holdfast_agent.__main__ import serve
from holdfast_agent.agent import AgentConfig


async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    config = AgentConfig(
        sys.argv[1], Path(sys.argv[2]), name="node-a", slots=4, foreground="foreground" in sys.argv[3:]
    )
    await serve(config, stop=stop)


if __name__ == "__main__":
    asyncio.run(main())
