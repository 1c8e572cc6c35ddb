"""The coordinator as a process: the real core and a store, in the engine's order of things.

Mirrors coordinator/holdfast_coordinator/engine.py: inbox -> step -> one transaction for the batch -> only then
commands and answers. It can be killed at any point between those.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from holdfast_coordinator.core import checkpoints, liveness
from holdfast_coordinator.core.effects import (
    CloseSession,
    Command,
    Effects,
    NoteReport,
    Refusal,
    ReleaseWorkers,
    Welcome,
    Write,
)
from holdfast_coordinator.core.events import (
    AgentJoined,
    CheckpointReported,
    Event,
    LeaderElected,
    NodeNoticed,
    Notice,
    PortsOffered,
    ShardPrepared,
    StopAnswered,
    StreamLost,
    Ticked,
    WorkerExited,
    WorkerHung,
    WorkerStarted,
)
from holdfast_coordinator.core.model import Capacity, Hang, Key
from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.core.step import deadline, step
from holdfast_coordinator.store.memory import MemoryStore
from tests.sim.checks import Checks
from tests.sim.link import DOWN, UP, Stream
from tests.sim.worker import MS
from tests.sim.world import World

TICK_MS = 1_000
RETRY_MS = 1_000
SETTINGS = Settings(lost_after_ms=5_000, suspect_after_ms=2_500, gone_after_ms=1_000, forget_after_ms=3_000)


@dataclass
class Bugs:
    """Switches for planted bugs of the engine; see bugs.py."""

    answer_before_commit: bool = False
    release_before_commit: bool = False
    no_fresh_lease: bool = False
    pause_is_silence: bool = False
    note_before_commit: bool = False


@dataclass
class Request:
    """A client's event; `answer` is told when it is durable, or why not."""

    event: Event
    answer: Callable[[Refusal | None], None]
    failed: Callable[[], None]


@dataclass
class _Batch:
    writes: list[Write] = field(default_factory=list)
    sends: list[tuple[str, Command]] = field(default_factory=list)
    requests: list[tuple[Request, Effects]] = field(default_factory=list)


class Coordinator:
    """Every life of it: `start` and `kill` are those of the process, the store lives on."""

    def __init__(self, world: World, store: MemoryStore, checks: Checks, bugs: Bugs) -> None:
        self.leading = False
        self.state = State(SETTINGS)
        self._world = world
        self._store = store
        self._checks = checks
        self._bugs = bugs
        self.die_after: tuple[type, ...] = ()
        """This life ends when it has sent one of these."""
        self.command_lost: Callable[[str, Any], None] = lambda node, message: None
        self._newest_hello: dict[str, int] = {}
        self._pods: set[str] = set()
        self._life = 0
        self._full_until = 0
        self._begin_life()

    def _begin_life(self) -> None:
        self._inbox: list[Event | Request] = []
        self._sessions: dict[str, Stream] = {}
        self._heard: dict[str, int] = {}
        self._in_flight: _Batch | None = None
        self._poked = False
        self._next_tick = 0
        self._alarm = 0
        self._opened = 0
        self._accepted: list[Stream] = []
        self._frozen, self._frozen_at = False, 0
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    # The process

    @property
    def up(self) -> bool:
        return self._life % 2 == 1

    @property
    def backlog(self) -> int:
        return len(self._inbox) + len(self._sessions)

    def start(self) -> None:
        if not self.up:
            self._life += 1
            self.die_after = ()
            self._begin_life()
            self._take_over()

    def kill(self) -> None:
        """SIGKILL. What is being committed is then durable or not; commands on their way arrive or are lost."""
        if not self.up:
            return
        self._world.note("coordinator", "killed")
        if self._in_flight is not None and self._world.chance(0.5):
            self._commit(self._in_flight)
        self._life += 1
        self.leading = False
        self._sessions = {}
        for stream in self._accepted:
            for message in stream.snap():
                self.command_lost(stream.node, message)

    def freeze(self) -> None:
        """SIGSTOP."""
        if self.up and not self._frozen:
            self._world.note("coordinator", "stopped")
            self._frozen, self._frozen_at = True, self._world.now

    def thaw(self) -> None:
        """SIGCONT. The loop goes on before it has heard anything of what came in meanwhile."""
        if not self._frozen:
            return
        self._world.note("coordinator", "continued")
        # It notices a pause by a tick that is late, to a tick or two.
        self._checks.paused(max(0, self._world.now - self._frozen_at - 2 * TICK_MS))
        self._frozen = False
        backlog, self._backlog = self._backlog, []
        if self.leading and self._in_flight is None:
            self._round()
        for call, args in backlog:
            self._call(self._life, call, *args)

    def _at(self, delay_ms: int, call: Callable[..., None], *args: Any) -> None:
        """Have something done by this life of the process."""
        self._world.at(delay_ms, self._call, self._life, call, *args)

    def _call(self, life: int, call: Callable[..., None], *args: Any) -> None:
        if life == self._life:
            if self._frozen:
                self._backlog.append((call, args))
            else:
                call(*args)

    def fill_disk(self, for_ms: int) -> None:
        """Let every commit fail for a while."""
        self._world.note("store", f"is full for {for_ms} ms")
        self._full_until = self._world.now + for_ms

    # What comes in

    def request(self, request: Request) -> bool:
        """Take a client's request. False when it can't be served now."""
        if self.leading:
            self._call(self._life, self._post, request)
        return self.leading

    def accept(self, stream: Stream) -> None:
        """Serve a new stream: its first message is a Hello."""
        self._accepted = [*(stream for stream in self._accepted if not stream.over), stream]
        life = self._life
        stream.listen(UP, lambda message: self._call(life, self._hello, stream, message), lambda: None)

    def _hello(self, stream: Stream, hello: tuple[Any, ...]) -> None:
        number, node, instance_id, boot_id, slots, inventory, ports, notice, in_pod = hello
        # Not modelled: a Hello that is overtaken by that of a later stream. Nothing in it would tell.
        if not self.leading or number < self._newest_hello.get(node, 0):
            stream.close(DOWN)
            return
        self._newest_hello[node] = number
        if in_pod:
            self._pods.add(node)
        self._opened += 1
        session = f"e{self.state.epoch}-s{self._opened}"
        self._sessions[session] = stream
        self._hear(node)
        now = self._world.now
        room = Capacity(slots=slots, cpus=float(slots), gpus=slots)
        joined = AgentJoined(
            now,
            node,
            session,
            instance_id,
            f"at-{node}",
            room,
            inventory,
            boot_id,
            ports,
            notice=_notice(notice, now),
        )
        self._post(joined)
        life = self._life
        stream.listen(
            UP,
            lambda item: self._call(life, self._message, node, session, item),
            lambda: self._call(life, self._over, node, session),
        )

    def _over(self, node: str, session: str) -> None:
        stream = self._sessions.pop(session, None)
        if stream is not None:
            stream.close(DOWN)
            self._lost(node, session)

    def _lost(self, node: str, session: str) -> None:
        now, in_pod = self._world.now, node in self._pods
        self._checks.broken(node, in_pod=in_pod)
        self._post(StreamLost(now, node, session, now - self._heard.get(node, now), in_pod))

    def _message(self, node: str, session: str, item: tuple[int, str, Any]) -> None:
        epoch, kind, what = item
        if epoch != self.state.epoch or session not in self._sessions:
            return
        self._hear(node)
        if kind != "heartbeat":
            self._post(agent_event(self._world.now, node, session, kind, what))

    def late(self, node: str, session: str, kind: str, what: Any) -> None:
        """A message of a session that is over arrives after all."""
        if self.leading and session not in self._sessions and not self._frozen:
            self._post(agent_event(self._world.now, node, session, kind, what))

    def _hear(self, node: str) -> None:
        self._heard[node] = self._world.now
        self._checks.heard(node)

    def _post(self, item: Event | Request) -> None:
        self._inbox.append(item)
        self._poke()

    # The loop

    def _poke(self) -> None:
        if self.leading and self._in_flight is None and not self._poked:
            self._poked = True
            self._at(self._world.between(0, 2), self._round)

    def _wake(self, alarm: int) -> None:
        if alarm == self._alarm:
            self._poke()

    def _take_over(self) -> None:
        if self._world.now < self._full_until:
            self._at(RETRY_MS, self._take_over)
            return
        world = self._world
        state = self._store.load(SETTINGS)
        batch = _Batch()
        self._apply(batch, state, LeaderElected(world.now, state.epoch + 1))
        self._store.commit(batch.writes, epoch=state.epoch)
        self._checks.durable(batch.writes, self._store)
        self._checks.batch_done(state, self._store)
        lease_from = world.now + liveness.fresh_lease_ms(len(state.nodes))
        self._heard = {} if self._bugs.no_fresh_lease else dict.fromkeys(state.nodes, lease_from)
        if self._bugs.no_fresh_lease:
            self._heard = dict.fromkeys(state.nodes, world.now - SETTINGS.lost_after_ms)
        self.state = state
        self.leading = True
        self._next_tick = world.now
        self._checks.elected(state.nodes)
        world.note("coordinator", f"leads epoch {state.epoch}")
        self._poke()

    def _round(self) -> None:
        self._poked = False
        if not self.leading or self._in_flight is not None:
            return
        items = self._take()
        now = self._world.now
        ends = deadline(self.state)
        if now >= (self._next_tick if ends is None else min(ends, self._next_tick)):
            self._forgive_own_pause(now)
            self._next_tick = now + TICK_MS
            items.append(Ticked(now, self._heard))
        batch = _Batch()
        for item in items:
            event = _event_of(item)
            effects = self._apply(batch, self.state, event)
            if isinstance(event, Ticked):
                self._checks.ticked(deadline(self.state))
            if isinstance(item, Request):
                batch.requests.append((item, effects))
        if self._bugs.answer_before_commit:
            self._answer(batch)
        if self._bugs.release_before_commit:
            self._send(batch, ReleaseWorkers)
        if self._bugs.note_before_commit:
            self._send(batch, NoteReport)
        if batch.writes:
            self._in_flight = batch
            self._at(self._world.between(1, 5), self._committed)
        else:
            self._publish(batch)

    def _take(self) -> list[Event | Request]:
        """What is next: an event that asks the history begins a round, when all before it is in the store."""
        asks = [n for n, item in enumerate(self._inbox) if n and checkpoints.asks_history(_event_of(item))]
        end = asks[0] if asks else len(self._inbox)
        items, self._inbox = self._inbox[:end], self._inbox[end:]
        return [self._informed(item) for item in items]

    def _informed(self, item: Event | Request) -> Event | Request:
        event = _event_of(item)
        asked = checkpoints.lookup(self.state, event)
        if asked is None or not isinstance(event, CheckpointReported):
            return item
        return replace(event, kept=self._store.commit_upto(asked.job_id, asked.gang, asked.upto))

    def _forgive_own_pause(self, now: int) -> None:
        """While this process was stopped it could hear nobody: that was no silence of theirs."""
        pause = now - self._next_tick
        if pause > TICK_MS and not self._bugs.pause_is_silence:
            self._heard = {node: at + pause for node, at in self._heard.items()}

    def _apply(self, batch: _Batch, state: State, event: Event) -> Effects:
        effects = step(state, event)
        self._world.note("step", type(event).__name__)
        self._checks.stepped(state, event, effects)
        batch.writes += effects.writes
        batch.sends += [(send.session, send.command) for send in effects.commands]
        return effects

    def _committed(self) -> None:
        if self._in_flight is None:
            return
        batch, self._in_flight = self._in_flight, None
        if self._world.now < self._full_until:
            self._start_over(batch)
            return
        self._commit(batch)
        self._publish(batch)

    def _commit(self, batch: _Batch) -> None:
        self._store.commit(batch.writes, epoch=self.state.epoch)
        self._checks.durable(batch.writes, self._store)

    def _start_over(self, batch: _Batch) -> None:
        """The store failed: nothing of the batch has happened."""
        self._world.note("coordinator", "starts over from its store")
        self.leading = False
        for request, _ in batch.requests:
            request.failed()
        for session, stream in list(self._sessions.items()):
            stream.close(DOWN)
            self._lost(stream.node, session)
        self._sessions = {}
        self._take_over()

    def _publish(self, batch: _Batch) -> None:
        self._checks.batch_done(self.state, self._store)
        life = self._life
        self._send(batch, object)
        if life != self._life:
            return
        self._answer(batch)
        ends = deadline(self.state)
        wake = self._next_tick if ends is None else min(self._next_tick, ends)
        self._alarm += 1
        self._at(max(0, wake - self._world.now), self._wake, self._alarm)
        if self._inbox:
            self._poke()

    def _send(self, batch: _Batch, kind: type) -> None:
        rest: list[tuple[str, Command]] = []
        for session, command in batch.sends:
            if not isinstance(command, kind):
                rest.append((session, command))
                continue
            stream = self._sessions.get(session)
            if stream is None:
                continue
            self._checks.sending(command, self._store)
            self._world.note("send", f"{stream.node} {type(command).__name__}")
            if isinstance(command, CloseSession):
                del self._sessions[session]
                stream.close(DOWN)
                self._lost(stream.node, session)
            else:
                pace = 1_000 if isinstance(command, Welcome) else 0
                stream.send(DOWN, (self.state.epoch, session, command, pace))
            if isinstance(command, self.die_after):
                self.kill()
                return
        batch.sends = rest

    def _answer(self, batch: _Batch) -> None:
        requests, batch.requests = batch.requests, []
        for request, effects in requests:
            self._checks.answering(request.event, effects.refusal, self._store)
            request.answer(effects.refusal)


def _event_of(item: Event | Request) -> Event:
    return item.event if isinstance(item, Request) else item


def agent_event(at: int, node: str, session: str, kind: str, what: Any) -> Event:
    """What codec.py makes of an agent's message."""
    match kind:
        case "started":
            return WorkerStarted(at, node, session, Key(*what.key), what.pid, what.pid_start)
        case "exited":
            return WorkerExited(at, node, session, Key(*what.key), what.ended.exit, what.ended.progress)
        case "prepared":
            key, shard = what
            return ShardPrepared(at, node, session, Key(*key), shard.step, shard.content)
        case "reported":
            key, report = what
            return CheckpointReported(at, node, session, Key(*key), report.kind, report.step, report.content)
        case "hung":
            return WorkerHung(at, node, session, Key(*what.key), _hang(at, what.content), what.over)
        case "ports":
            return PortsOffered(at, node, session, what)
        case "answered":
            key, answer = what
            step, leaves = (None, False) if answer is None else answer
            return StopAnswered(at, node, session, Key(*key), step, leaves)
        case "notice":
            return NodeNoticed(at, node, session, Notice("spot notice", max(0, what - at)))
    raise AssertionError(kind)


def _hang(at: int, verdict: Any) -> Hang:
    """What convert.py and codec_hangs.py make of a verdict."""
    silent = verdict.silent_ns // MS
    limit, learned = getattr(verdict, "limit_ns", 0) // MS, getattr(verdict, "learned", False)
    return Hang(verdict.since_ns, at - silent, verdict.section, verdict.step, silent, limit, learned)


def _notice(until: int | None, now: int) -> Notice | None:
    return None if until is None else Notice("spot notice", max(0, until - now))
