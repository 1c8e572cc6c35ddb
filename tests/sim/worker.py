"""A worker with its shim: restores, steps, stages, prepares, waits for the ack, and exits.

Its state is a number that follows from the rank and the steps alone, so that a run with faults ends with the numbers of
an undisturbed one, or something was resumed wrongly.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from holdfast_agent import core, hangs
from holdfast_agent.core import Key
from holdfast_coordinator.core.effects import Assignment
from holdfast_coordinator.core.model import Commit, Exit, JobSpec, Progress, ReportKind, Scope, Shard
from tests.sim.checks import Checks
from tests.sim.disk import Checkpoints, Place
from tests.sim.world import Violation, World

KILL, TERM = 9, 15
MS = 1_000_000
"""In nanoseconds."""
PATIENCE_MS = 2_000
"""How long a worker awaits the answer to a checkpoint when the next one is due."""


@dataclass(frozen=True)
class Order:
    """What is to be run."""

    key: Key
    spec: JobSpec
    assignment: Assignment
    resume: Commit | None

    @property
    def place(self) -> Place:
        by_rank = self.spec.restart.scope is Scope.RANK
        return self.key.job_id, self.key.rank if by_rank else 0


def advance(value: int, rank: int, step: int) -> int:
    """One step of training."""
    return (value * 31 + 7 * rank + step) % 1_000_003


def trained(rank: int, steps: int) -> int:
    """What an undisturbed run ends with."""
    value = rank
    for step in range(1, steps + 1):
        value = advance(value, rank, step)
    return value


class Process:
    """One attempt of one rank as a process tree: the shim and the worker below it."""

    def __init__(
        self, order: Order, host: Any, world: World, checkpoints: Checkpoints, checks: Checks
    ) -> None:
        self.key = order.key
        self.order = order
        self.gone = False
        self.step = 0
        self._host = host
        self._world = world
        self._checkpoints = checkpoints
        self._checks = checks
        self._first = 0
        self._first_ms = 0
        self._value = order.key.rank
        self._link = host.life
        self._unanswered: dict[int, Shard] = {}
        self._reports: dict[tuple[ReportKind, int], core.Report] = {}
        self._spool = host.disk.spool.setdefault((order.key.job_id, order.key.rank), [])
        self._published_ms = 0
        """When it is through with what it was told to publish and to drop so far: it does one at a time."""
        self._staging = False
        self._waiting_since = 0
        self._stopping = False
        self._moved_ms = world.now
        self._section = "setup"
        self._stalled: list[Any] | None = None
        """While it stands still: what it goes on with."""
        self._excused_ms = 0
        """Of the time since it moved: its whole machine stood still."""
        env = order.spec.env
        self._total, self._every, self._pace = int(env["STEPS"]), int(env["EVERY"]), int(env["PACE"])
        self._lockstep = order.spec.restart.scope is Scope.GANG

    # Its life

    def begin(self) -> None:
        """Restore, publishing the manifest of the commit if its publisher died before that.

        What does not verify is reported; whoever did so trains no more, and is stopped.
        """
        commit, place = self.order.resume, self.order.place
        if commit is not None:
            if (place, commit.step) not in self._checkpoints.manifests:
                self._publish(commit)
            file = commit.shards[0 if commit.rank is not None else self.key.rank].file
            if (place, commit.step, file) in self._checkpoints.rotten:
                self._report(ReportKind.CORRUPT, commit.step)
                return
            if (place, commit.step, file) not in self._checkpoints.files:
                # Started late by an agent that was away; whoever superseded it has dropped what it resumes from.
                if not self._checks.superseded(place, self.key.attempt):
                    raise Violation(f"P1: {self.key} resumes from step {commit.step}, whose files are gone")
                self._world.at(1, self.end, 1)
                return
            self._value = self._checkpoints.files[place, commit.step, file]
            self.step = self._first = commit.step
        self._checks.pace[self.key] = self.step
        self._moved_ms = self._world.now
        self._next_step()

    def end(self, code: int, signal: int = 0) -> None:
        """The worker ends, the shim writes down how."""
        if self.gone:
            return
        message = f"killed by signal {signal}" if signal else f"exit code {code}"
        how = Exit(code, signal, message, self._world.now)
        self._world.note(self._host.name, f"{self.key} ends: {message}")
        if code or signal:
            self._checks.died(self.key)
        self._checks.ended(self.key, how)
        self.vanish()
        self._host.gone(self, how)

    def lose_shim(self) -> None:
        """The shim is killed, and the worker with it; nobody writes down how."""
        if not self.gone:
            self._world.note(self._host.name, f"{self.key} loses its shim")
            self._checks.died(self.key)
            self.vanish()
            self._host.gone(self, None)

    def vanish(self) -> None:
        """The machine goes down under it."""
        self.gone = True
        self._checks.died(self.key)
        self._checks.pace.pop(self.key, None)

    def stall(self) -> None:
        """It hangs in a lock, or is stopped (SIGSTOP), or its whole machine is: it does nothing any more."""
        if not self.gone and self._stalled is None:
            self._world.note(self._host.name, f"{self.key} stands still")
            self._stalled = []

    def go_on(self, excused_ms: int = 0) -> None:
        """What held it is over; for so long its machine stood still."""
        self._excused_ms += excused_ms
        if not self.gone and self._stalled is not None:
            self._world.note(self._host.name, f"{self.key} goes on")
            calls, self._stalled = self._stalled, None
            for call in calls:
                self._world.at(0, *call)

    def quiet_ms(self) -> int:
        """How long it has not moved, though it could have."""
        return self._world.now - self._moved_ms - self._excused_ms

    @property
    def stalled(self) -> bool:
        return self._stalled is not None

    def stop(self, *, force: bool) -> None:
        """SIGTERM and, when the grace is over, SIGKILL; or SIGKILL at once."""
        if force:
            self._world.at(1, self.end, -1, KILL)
        elif not self._stopping:
            self._stopping = True
            grace = self.order.spec.stop_grace_ms
            heeds = self._world.chance(0.8) and not self.stalled
            self._world.at(
                self._world.between(1, grace) if heeds else grace, self.end, -1, TERM if heeds else KILL
            )

    # Training

    def _next_step(self) -> None:
        self._world.at(self._pace, self._step)

    def _may_checkpoint(self) -> bool:
        """The last checkpoint is answered, or was awaited for long enough: the next one takes its place."""
        if self._staging:
            return False
        if not self._unanswered:
            self._waiting_since = 0
            return True
        self._waiting_since = self._waiting_since or self._world.now
        return self._world.now - self._waiting_since >= PATIENCE_MS

    def _enter(self, section: str) -> None:
        if section != self._section:
            self._section, self._moved_ms, self._excused_ms = section, self._world.now, 0

    def _step(self) -> None:
        if self.gone:
            return
        if self._stalled is not None:
            self._stalled.append((self._step,))
            return
        if self.step == self._total:
            self._enter("checkpoint")
            self._drain()
            if not (self._staging or self._total in self._unanswered or self._reports or self._spool):
                self.end(0)
            else:
                self._next_step()
            return
        due = (self.step + 1) % self._every == 0 or self.step + 1 == self._total
        waits = due and not self._may_checkpoint()
        if self._section != "setup":
            self._enter("checkpoint" if waits else "step")
        if waits or (self._lockstep and self._checks.slowest(self.key) < self.step):
            self._next_step()
            return
        self._drain()
        self.step += 1
        self._section, self._moved_ms, self._excused_ms = "step", self._world.now, 0
        self._first_ms = self._first_ms or self._world.now
        self._checks.pace[self.key] = self.step
        self._value = advance(self._value, self.key.rank, self.step)
        if due:
            self._staging, self._waiting_since = True, 0
            self._world.at(self._world.between(1, 30), self._staged, self.step, self._value)
        self._next_step()

    def _staged(self, step: int, value: int) -> None:
        if self.gone:
            return
        if self._stalled is not None:
            self._stalled.append((self._staged, step, value))
            return
        if self._world.chance(0.02):  # no room; it is tried again
            self._report(ReportKind.SAVE_FAILED, step)
            self._world.at(self._world.between(1, 30), self._staged, step, value)
            return
        name = f"rank-{self.key.rank:05}.attempt-{self.key.attempt}.safetensors"
        away, metrics = self._checkpoints.away, {"loss": float(value % 97)}
        shard = Shard(self.key.rank, name, 100, f"{value:016x}", str(step), metrics, away)
        if away:
            self._spool.append((step, self.key.attempt))
        self._checkpoints.stage(self.order.place, step, shard, value)
        self._unanswered[step] = shard
        self._staging = False
        self._say(step)

    def _say(self, step: int) -> None:
        if not self.gone and self._host.up and self._link == self._host.life and step in self._unanswered:
            event = core.ShardPrepared(self.key, core.Shard(step, self._unanswered[step]))
            self._host.call(1, self._host.dispatch, event)  # a socket keeps the order

    def connect(self, life: int) -> None:
        """Connect to the agent of this life, and say again what is not answered, in order."""
        if life == self._host.life:
            self._link = life
            for step in sorted(self._unanswered):
                self._say(step)
            for report in self._reports.values():
                self._say_report(report)

    def answered(self, step: int, publish: Commit | None, drop: Iterable[int], *, refused: bool) -> None:
        """The agent's answer to a Prepare."""
        if self.gone:
            return
        if refused:
            self._unanswered.pop(step, None)
            if (step, self.key.attempt) in self._spool:
                self._spool.remove((step, self.key.attempt))
            return
        if publish is None:
            self._done(step)
            return
        slow = self._world.chance(0.05)  # a file system may stall for longer than a lease
        self._behind(15_000 if slow else 20, self._checkpoints.write_manifest, self.order.place, publish)
        self._behind(20, self._checkpoints.write_latest, self.order.place, publish)
        self._behind(0, self._done, step)
        for old in drop:
            self._behind(20, self._drop, old)

    def _behind(self, most_ms: int, what: Any, *args: Any) -> None:
        """Do something behind the training, after what was to be done before."""
        self._published_ms = max(self._published_ms, self._world.now) + self._world.between(0, most_ms)
        self._world.at(self._published_ms - self._world.now, self._unless_gone, what, *args)

    def _unless_gone(self, what: Any, *args: Any) -> None:
        if not self.gone:
            what(*args)

    def _drop(self, step: int) -> None:
        self._checkpoints.drop(self.order.place, step, self.key.attempt)
        self._report(ReportKind.DROPPED, step)

    def _drain(self) -> None:
        """Give the storage what it could not be given before, by this attempt or one before it on this node.

        A file leaves the spool when that is noted, or a death in between would leave its checkpoint degraded for ever.
        """
        if self._checkpoints.away:
            return
        for step, attempt in list(self._spool):
            kept = self._checkpoints.kept(self.order.place, step)
            if attempt != self.key.attempt and (kept is None or kept.attempt != attempt):
                self._spool.remove((step, attempt))  # of what was never committed, or is not kept
            elif (ReportKind.DRAINED, step) not in self._reports:
                self._report(ReportKind.DRAINED, step)

    def _report(self, kind: ReportKind, step: int) -> None:
        report = self._reports[kind, step] = core.Report(kind, step, "as the simulation has it")
        self._say_report(report)

    def _say_report(self, report: core.Report) -> None:
        if not self.gone and self._host.up and self._link == self._host.life:
            self._host.call(1, self._host.dispatch, core.CheckpointReported(self.key, report))

    def noted(self, kind: ReportKind, step: int) -> None:
        """The agent's answer to a Report."""
        if self.gone or self._reports.pop((kind, step), None) is None:
            return
        if kind is ReportKind.DRAINED:
            self._spool[:] = [each for each in self._spool if each[0] != step]
        if kind is ReportKind.CORRUPT:
            assert self.order.resume is not None
            self._checkpoints.set_aside(self.order.place, self.order.resume)

    def _publish(self, commit: Commit) -> None:
        self._checkpoints.write_manifest(self.order.place, commit)
        self._checkpoints.write_latest(self.order.place, commit)

    def _done(self, step: int) -> None:
        if not self._checks.was_durable(self.order.place, step, self.key.attempt):
            raise Violation(f"P3: {self.key} was told that step {step} is committed, and it is not")
        self._unanswered = {at: shard for at, shard in self._unanswered.items() if at > step}

    def seen(self) -> hangs.Seen:
        """What its heartbeat page says to whoever looks for hangs."""
        return hangs.Seen(self._section, self.step, self.step - self._first, self._moved_ms * MS)

    def progress(self) -> Progress:
        """What its heartbeat page says."""
        if self.step == self._first:
            return Progress()
        stepping = self._world.now - self._first_ms
        return Progress(self.step, self.step - self._first, stepping, "step")
