"""Looks at the pages of the workers once a second, and takes evidence of the one that hangs before it is told."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import structlog

from holdfast import heartbeat
from holdfast.v1 import agent_pb2
from holdfast_agent import convert, evidence, hangs
from holdfast_agent.core import Key, Worker
from holdfast_agent.hang_reports import Report
from holdfast_agent.shim import START
from holdfast_agent.workdir import HANG_JSON, StateDir

HANG = "hang"
"""In start.json: the policy, or nothing when no one is to look."""

log = structlog.get_logger(__name__)


class HangWatch:
    """The loop. `workers` are those that can hang; `noticed` hears of hangs, and of their ends."""

    def __init__(
        self,
        state_dir: StateDir,
        workers: Callable[[], Iterable[Worker]],
        noticed: Callable[[Report], None],
    ) -> None:
        self._state_dir = state_dir
        self._workers = workers
        self._noticed = noticed
        self._watch = hangs.Watch(time.monotonic_ns())
        self._policies: dict[Key, hangs.Policy | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                await asyncio.sleep(hangs.LOOK_NS / 1e9)
                try:
                    self._look()
                except Exception:
                    log.exception("the workers could not be looked at")
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def forget(self, key: Key) -> None:
        """The coordinator has that a worker moves again."""
        try:
            self._state_dir.attempt(key).forget_hang()
        except OSError as error:
            # The next agent tells it once more.
            log.warning("the end of a hang could not be noted", worker=key, error=str(error))

    def _look(self) -> None:
        workers = {worker.key: worker for worker in self._workers()}
        before = {key: self._before(key) for key in workers.keys() - self._policies.keys()}
        self._policies = {key: self._policy(key) for key in workers}
        seen = {key: (policy, self._see(key)) for key, policy in self._policies.items() if policy is not None}
        for verdict in hangs.look(self._watch, seen, time.monotonic_ns(), before):
            match verdict:
                case hangs.Hung():
                    task = asyncio.create_task(self._tell(verdict, workers[verdict.key]))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                case hangs.Moved(key, since):
                    log.info("moves again", worker=key, section=verdict.section)
                    self._noticed(Report(key, since, over=True, content=convert.moved_to_proto(verdict)))

    def _before(self, key: Key) -> hangs.Before | None:
        found = self._state_dir.attempt(key).read(HANG_JSON)
        return hangs.Before(**found) if found is not None else None

    def _policy(self, key: Key) -> hangs.Policy | None:
        if key in self._policies:
            return self._policies[key]
        begun: dict[str, Any] = self._state_dir.attempt(key).read(START) or {}
        return convert.hang_policy_from_disk(begun.get(HANG))

    def _see(self, key: Key) -> hangs.Seen:
        page, touched = self._state_dir.attempt(key).look()
        reading = heartbeat.read(page)
        return hangs.Seen(
            reading.section,
            reading.step,
            reading.steps_done,
            reading.moved_ns,
            reading.longest_ns,
            touched,
        )

    async def _tell(self, hung: hangs.Hung, worker: Worker) -> None:
        try:
            found = await evidence.take(
                worker.pid, worker.pid_start, self._state_dir.attempt(worker.key).path
            )
        except OSError as error:  # no process can be forked
            found = evidence.Evidence(f"no evidence could be taken: {error}", stopped=False, where="")
        still = hangs.still(self._watch, hung, self._see(hung.key))
        if still is None:
            return
        log.warning("hangs", worker=hung.key, section=hung.section, silent_s=hung.silent_ns // 10**9)
        try:
            self._state_dir.attempt(hung.key).note_hang(asdict(still))
        except OSError as error:
            # A full disk: should this agent be gone when the worker moves again, its mark stays until it ends.
            log.warning("a hang could not be noted", worker=hung.key, error=str(error))
        self._noticed(Report(hung.key, hung.since_ns, content=convert.hung_to_proto(hung, found)))


def tell(report: Report) -> agent_pb2.AgentMessage:
    """Write what the coordinator is told."""
    return agent_pb2.AgentMessage(worker_hung=report.content)
