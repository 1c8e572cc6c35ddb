"""What the agent adds to the traces of jobs: how long its workers take to start, and their checkpoints to commit.

A worker sends no spans: what it would have to import costs more than it costs to start.
"""

import time

from holdfast import tracing
from holdfast.log_fields import note_trace
from holdfast_agent.core import Key
from holdfast_agent.shim import START
from holdfast_agent.workdir import StateDir


class Traces:
    """Remembers when what is under way began."""

    def __init__(self, state_dir: StateDir) -> None:
        self._state_dir = state_dir
        self._parents: dict[Key, str] = {}
        self._starting: dict[Key, int] = {}
        self._prepared: dict[Key, tuple[int, int]] = {}

    def starting(self, key: Key, env: dict[str, str]) -> None:
        """A worker is to be started."""
        note_trace(key.job_id, env)
        if tracing.on():
            self._parents[key] = env.get(tracing.VARIABLE, "")
            self._starting[key] = time.time_ns()

    def found(self, key: Key) -> None:
        """A worker that an earlier agent has started runs on."""
        start = self._state_dir.attempt(key).read(START) or {}
        env = start.get("env", {})
        note_trace(key.job_id, env)
        if tracing.on():
            self._parents[key] = env.get(tracing.VARIABLE, "")

    def started(self, key: Key) -> None:
        """It runs."""
        began = self._starting.pop(key, 0)
        if began:
            self._tell("start worker", key, began)

    def prepared(self, key: Key, step: int) -> None:
        """It has written its file of a checkpoint; of one that it says again, the first time counts."""
        if key in self._parents and self._prepared.get(key, (-1, 0))[0] != step:
            self._prepared[key] = step, time.time_ns()

    def committed(self, key: Key, step: int) -> None:
        """It is told that this checkpoint is committed."""
        at, began = self._prepared.get(key, (-1, 0))
        if at == step:
            del self._prepared[key]
            self._tell("commit of a worker", key, began, step=step)

    def ended(self, key: Key) -> None:
        """It is over."""
        for kept in (self._parents, self._starting, self._prepared):
            kept.pop(key, None)

    def _tell(self, name: str, key: Key, began_ns: int, **more: int) -> None:
        about: dict[str, str | int] = {"job": key.job_id, "rank": key.rank, "attempt": key.attempt, **more}
        tracing.tell(name, self._parents.get(key, ""), began_ns, **about)
