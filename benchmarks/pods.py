"""A pod that dies, agent and workers at once, to the first new step of the last rank that was in it."""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.figures import Table, seconds
from benchmarks.recovery import PROGRAM, Board
from holdfast.v1 import node_pb2
from tests.e2e.fleet import Fleet, running

NODES = ("node-a", "node-b")
WORLD = 2
ROUNDS = 10
BAR_S = 5.0
PLAIN_ROUNDS = 2
"""Without what is measured here: there the node's lease has to run out."""
NEW_POD_S = 1.0
"""What a new pod takes until its agent starts, where nothing has to be pulled."""


class Pods:
    """Two nodes, each an agent that is in a pod with its workers, and a job that runs on one of them."""

    def __init__(self, folder: Path, scope: str, *, told: bool) -> None:
        self.fleet = Fleet(folder, lost_after="10s")
        self._scope = scope
        self._options = ("--workers-end-with-agent",) if told else ()
        self._board: Board

    async def open(self) -> None:
        fleet = self.fleet
        board = fleet.root / "board"
        board.mkdir()
        self._board = Board(board)
        await fleet.open()
        fleet.start_coordinator()
        for name in NODES:
            self.start(name)
        command = [sys.executable, PROGRAM, "library"]
        env = {"BENCH_DIR": str(board), "OMP_NUM_THREADS": "1"}
        for name in NODES:
            await fleet.node_until(name, ready)
        self._job = await fleet.submit_command(command, WORLD, self._scope, backoff_ms=0, env=env)
        await self._stepping({})

    def start(self, name: str) -> None:
        self.fleet.start_agent(name, WORLD, *self._options)

    async def kill(self, *, replaced: bool) -> float:
        """Kill the pod that has the job; the time until all ranks step again."""
        job = await self.fleet.until(self._job, running)
        (name,) = {worker.node for worker in job.workers}
        pids = {worker.rank: worker.pid for worker in job.workers}
        other = next(each for each in NODES if each != name)
        if replaced:
            await self.fleet.client.cordon_node(other)
        began = time.monotonic()
        self._end(name)
        if replaced:
            await asyncio.sleep(NEW_POD_S)
            self.start(name)
        taken = max(await self._stepping(pids)) - began
        if replaced:
            await self.fleet.client.uncordon_node(other)
        else:
            self.start(name)
        await self.fleet.node_until(name, ready)
        return taken

    def _end(self, name: str) -> list[psutil.Process]:
        """As the kernel ends a process namespace: nobody sees another die and has time to say so."""
        agent = psutil.Process(self.fleet.processes[name].pid)
        processes = [agent, *agent.children(recursive=True)]
        for process in processes:
            process.suspend()
        for process in processes:
            process.kill()
        self.fleet.processes[name].wait()
        return processes[1:]

    async def close(self) -> None:
        """End everything, and wait until it writes no more."""
        for name in NODES:
            psutil.wait_procs(self._end(name))
        await self.fleet.close()

    async def _stepping(self, pids: dict[int, int]) -> list[float]:
        return await asyncio.to_thread(self._board.wait, list(range(WORLD)), pids)


def ready(node: node_pb2.Node) -> bool:
    return node.state == node_pb2.NODE_STATE_READY


async def restarts(scope: str, *, told: bool = True, replaced: bool = False) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        pods = Pods(Path(folder), scope, told=told)
        try:
            await pods.open()
            return [await pods.kill(replaced=replaced) for _ in range(ROUNDS if told else PLAIN_ROUNDS)]
        finally:
            await pods.close()


def measure() -> list[Table]:
    measured = (
        ("a gang, on the other node", asyncio.run(restarts("gang")), True),
        ("ranks by themselves, on the other node", asyncio.run(restarts("rank")), True),
        (
            f"a gang, in a new pod of the same node, begun {NEW_POD_S:g} s later",
            asyncio.run(restarts("gang", replaced=True)),
            False,
        ),
        (
            "a gang, where agents do not say that their workers end with them",
            asyncio.run(restarts("gang", told=False)),
            False,
        ),
    )
    rows = tuple((what, seconds(found), f"{BAR_S:g}" if held else "") for what, found, held in measured)
    note = (
        f"Two nodes, a job of {WORLD} workers on one of them. Its agent, shims and workers are killed at once, as a "
        f"pod is; until the first new step of the last rank, median of {ROUNDS} (range), of "
        f"the last row of {PLAIN_ROUNDS}. In it are two seconds for an "
        "agent that is there after all to come back, and up to one until the coordinator looks. All on one machine."
    )
    return [Table("Pods", note, ("what goes on where", "restart s", "bar s"), rows)]
