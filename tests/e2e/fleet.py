"""A real fleet for tests: coordinator and agents as processes of their own, killed and started again at will."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from holdfast.cli.events import said
from holdfast.client import TERMINAL, Client
from holdfast.v1 import job_pb2, node_pb2
from holdfast.wire import HoldfastError
from tests.agent.processes import remove_groups

HOLDFAST = str(Path(sys.executable).with_name("holdfast"))
TRAIN = str(Path(__file__).with_name("train.py"))
PATIENCE_S = 100.0


class Fleet:
    """One coordinator and some agents below `root`. Everything it started is gone after `close`."""

    def __init__(self, root: Path, lost_after: str = "100s") -> None:
        self.root = root
        self.out = root / "out"
        self.out.mkdir()
        self.target = f"unix:{root}/c.sock"
        self.client: Client
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lost_after = lost_after
        self._jobs: list[str] = []

    async def open(self) -> None:
        self.client = Client(self.target)

    def start_coordinator(self) -> None:
        state = str(self.root / "coordinator")
        options = ["--listen", self.target, "--state-dir", state, "--lost-after", self._lost_after]
        self._start("coordinator", "coordinator", *options)

    def start_agent(self, name: str = "node-a", slots: int = 4, *more: str) -> None:
        options = ["--coordinator", self.target, "--name", name, "--slots", str(slots), *more]
        self._start(name, "agent", *options, "--state-dir", str(self.root / name))

    def start_gateway(self, listen: str) -> None:
        self._start("gateway", "gateway", "--listen", listen, "--server", self.target)

    def signal(self, name: str, number: int) -> None:
        self.processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        """SIGKILL, and reap."""
        self.processes[name].kill()
        self.processes[name].wait()

    async def submit(
        self, *events: str, world: int = 2, steps: int = 300, scope: str = "gang", **spec: object
    ) -> str:
        """Submit the training program."""
        return await self.submit_command(
            [sys.executable, TRAIN, str(steps), str(self.out), *events], world, scope, **spec
        )

    async def submit_command(
        self,
        command: list[str],
        world: int,
        scope: str = "gang",
        *,
        backoff_ms: int = 50,
        grace_ms: int = 2_000,
        **spec: object,
    ) -> str:
        wanted = job_pb2.JobSpec(
            name="test",
            command=command,
            world_size=world,
            checkpoint_uri=str(self.root / "checkpoints"),
            **spec,
        )
        wanted.restart.scope = job_pb2.RestartScope.Value(f"RESTART_SCOPE_{scope.upper()}")
        wanted.restart.backoff.FromMilliseconds(backoff_ms)
        wanted.stop_grace.FromMilliseconds(grace_ms)
        job = await self.retried(lambda: self.client.create_job(wanted, request_id=f"job-{len(self._jobs)}"))
        self._jobs.append(job.id)
        return job.id

    def job_file(self, world: int, steps: int) -> str:
        """A job file for the training program."""
        command = json.dumps([sys.executable, TRAIN, str(steps), str(self.out)])
        where = self.root / "checkpoints"
        return (
            f"command: {command}\nworld_size: {world}\ncheckpoint_uri: {where}\nrestart: {{backoff: 50ms}}\n"
        )

    async def retried(self, call):
        """Call until the coordinator answers: it may just have been started."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await call()
            except HoldfastError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.05)

    async def until(self, job_id: str, condition) -> job_pb2.Job:
        """Wait until a job is as wanted."""
        job = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.retried(lambda: self.client.get_job(job_id))
                async for job in self.client.watch_job(job_id):
                    if condition(job):
                        return job
        except TimeoutError:
            pass
        raise AssertionError(f"it never came to that: {job}\n{await self.story(job_id)}")

    async def ended(self, job_id: str) -> job_pb2.Job:
        return await self.until(job_id, lambda job: job.state in TERMINAL)

    async def node_until(self, name: str, condition) -> node_pb2.Node:
        """Wait until a node is as wanted."""
        until = time.monotonic() + PATIENCE_S
        while True:
            node = await self.retried(lambda: self.client.get_node(name))
            if condition(node):
                return node
            assert time.monotonic() < until, f"it never came to that: {node}"
            await asyncio.sleep(0.05)

    async def succeeded(self, job_id: str) -> job_pb2.Job:
        job = await self.ended(job_id)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, f"{job.reason}\n{await self.story(job_id)}"
        return job

    async def story(self, job_id: str) -> str:
        """The timeline of a job, for the message of a test that failed."""
        return "\n".join([f"{e.kind}: {said(e)}" async for e in self.client.list_events(job_id)])

    async def events(self, job_id: str, kind: str) -> list[str]:
        return [said(e) async for e in self.client.list_events(job_id) if e.kind == kind]

    async def close(self) -> None:
        """End everything, and whatever a test that failed has left of its jobs."""
        await self.client.close()
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        for process in self.leftovers():
            process.kill()
        remove_groups(self.root)

    def leftovers(self) -> list[psutil.Process]:
        """Processes of this fleet's jobs that still run: shims, workers, and whatever those started."""
        return leftovers(self.root)

    def inside(self, name: str) -> list[str]:
        """What to put before a command, to run it in a place of its own."""
        return []

    def _start(self, name: str, *command: str) -> None:
        log = (self.root / f"{name}.log").open("ab")
        with log:
            self.processes[name] = subprocess.Popen(
                [*self.inside(name), HOLDFAST, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
            )


def leftovers(folder: Path) -> list[psutil.Process]:
    """Processes that carry the mark of a worker whose files are below a folder."""
    mark = f"HOLDFAST_HEARTBEAT_FILE={folder}"
    return [process for process in psutil.process_iter() if mark in _environment(process)]


def _environment(process: psutil.Process) -> str:
    try:
        return Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


def pids(job: job_pb2.Job) -> list[int]:
    return [worker.pid for worker in job.workers]


def running(job: job_pb2.Job) -> bool:
    """Every worker runs."""
    return all(worker.state == job_pb2.WORKER_STATE_RUNNING for worker in job.workers)


def committed(at_least: int):
    """Every worker runs, and this step is committed."""
    return lambda job: (
        running(job) and job.HasField("last_committed_step") and job.last_committed_step >= at_least
    )


def manifest_steps(folder: Path) -> list[int]:
    """The steps of the manifests below a checkpoint directory; what is only being made there may vanish meanwhile."""
    found = [Path(where) / "manifest.json" for where, _, names in os.walk(folder) if "manifest.json" in names]
    return sorted(json.loads(path.read_text())["step"] for path in found)
