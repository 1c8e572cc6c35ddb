"""THE loop: inbox -> step -> store.commit -> outbox. The single writer of the state.

It drains its inbox, steps every event in it, commits all their writes in one transaction (group commit), and
only then sends commands, answers requests and serves reads: durable before visible, always. Reads go through
the same inbox, so that nobody ever sees what a crash could take back. An event that needs to know something of a
history begins a round of its own, when all that came before it is in the store.

When the store fails (a full disk), nothing of the batch has happened: its requests are refused, every session is
closed, and the state is read anew from the store, exactly as after a crash. Agents come back with their
inventories and say again what was not acknowledged. Workers notice nothing.

Where several coordinators share a store one leads. An engine that does not, or no longer, serves nobody and ends.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import structlog

from holdfast.log_fields import carry
from holdfast.v1 import agent_pb2, node_pb2
from holdfast_coordinator import codec, traces
from holdfast_coordinator.changes import Changes, Topic
from holdfast_coordinator.clock import Clock
from holdfast_coordinator.codec_values import MOST_STEPS
from holdfast_coordinator.core import checkpoints, liveness, stragglers
from holdfast_coordinator.core.effects import (
    Append,
    CloseSession,
    Command,
    Delete,
    Effects,
    Put,
    Refusal,
    Welcome,
    Write,
)
from holdfast_coordinator.core.events import (
    CheckpointReported,
    CheckpointRequest,
    Event,
    JobSubmitted,
    LeaderElected,
    StepsCompared,
    Ticked,
)
from holdfast_coordinator.core.model import LIVE, TERMINAL, Entry, Gang, Job, Node, Progress, Worker
from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.core.step import deadline, step
from holdfast_coordinator.hearing import Hearing
from holdfast_coordinator.measures import Measures
from holdfast_coordinator.session import Session
from holdfast_coordinator.store.api import DeposedError, Store, StoreError, StoreTooNewError

T = TypeVar("T")

TICK_MS = 1_000
INBOX = 10_000
BATCH = 512
RETRY_S = 1.0
"""Between tries to take over while the store fails."""

log = structlog.get_logger(__name__)


class NotLeadingError(Exception):
    """The engine can't serve now; the message says why."""


class RefusedError(Exception):
    """The core refused a request."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(slots=True)
class _Request:
    """An event whose sender waits until it is durable."""

    event: Event
    done: asyncio.Future[str]
    asked: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class _Read(Generic[T]):
    """A question to the durable state."""

    ask: Callable[[State], T]
    done: asyncio.Future[T]
    asked: float = field(default_factory=time.perf_counter)


_Item = Event | _Request | _Read[Any]


@dataclass(slots=True)
class _Batch:
    """What the events of one round brought about."""

    writes: list[Write] = field(default_factory=list)
    sends: list[tuple[str, Command]] = field(default_factory=list)
    requests: list[tuple[_Request, Effects]] = field(default_factory=list)
    reads: list[_Read[Any]] = field(default_factory=list)


class Engine:
    """Owns the state. `run` is the loop; everything else puts something in its inbox, or waits for it."""

    def __init__(
        self, store: Store, settings: Settings, clock: Clock, why_not: Callable[[], str] = lambda: ""
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.measures = Measures()
        self.changes = Changes()
        self._store = store
        self._why_not = why_not
        """Why this coordinator may not lead, which may be so before its store says it; empty: it may."""
        self._thread = ThreadPoolExecutor(1, "store")
        self._inbox: asyncio.Queue[_Item] = asyncio.Queue(INBOX)
        self._asks: _Item | None = None
        """Taken from the inbox: the next round begins with it."""
        self._state = State(settings)
        self._not_leading = "it is starting"
        self._leading = asyncio.Event()
        self._interrupted = asyncio.Event()
        self._sessions: dict[str, Session] = {}
        self._hearing = Hearing()
        self._telemetry: dict[str, dict[int, tuple[int, agent_pb2.Progress]]] = {}
        self._read: dict[
            str, dict[int, tuple[agent_pb2.Progress, Progress]]
        ] = {}  # what came of it, once asked
        self._paces: dict[str, stragglers.Paces] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._next_tick = 0
        self._pace_ms = 0

    # What RPC handlers use

    @property
    def epoch(self) -> int:
        """The epoch of this leader."""
        return self._state.epoch

    @property
    def leading(self) -> bool:
        """Whether it serves."""
        return not (self._not_leading or self._why_not())

    def check_leading(self) -> None:
        """Raise NotLeadingError unless it serves."""
        if why := self._not_leading or self._why_not():
            raise NotLeadingError(why)

    async def wait_leading(self) -> None:
        """Wait until it serves."""
        await self._leading.wait()

    async def wait_interrupted(self) -> None:
        """Wait until its store fails; then it does not serve until it has started over."""
        await self._interrupted.wait()

    def stand_by(self, why: str, ending: str = "leads no longer") -> None:
        """Serve nobody: say why to those who come, and end what there is of sessions and watches."""
        self._not_leading = why
        self._leading.clear()
        self._interrupted.set()
        self._close_sessions(f"the coordinator {ending}")
        self.changes.end(f"it {ending}")
        self._refuse_waiting(why)

    async def submit(self, event: Event) -> str:
        """Have a request done; return when it is durable. Returns the id of the job that a JobSubmitted made or meant.

        Raises RefusedError, NotLeadingError.
        """
        self.check_leading()
        request = _Request(event, asyncio.get_running_loop().create_future())
        await self._inbox.put(request)
        return await request.done

    async def post(self, event: Event) -> None:
        """Report what happened; nobody waits for it. Waits while the inbox is full."""
        await self._inbox.put(event)

    async def read(self, ask: Callable[[State], T]) -> T:
        """Ask the durable state. `ask` must not keep what it is given. Raises NotLeadingError."""
        self.check_leading()
        question: _Read[T] = _Read(ask, asyncio.get_running_loop().create_future())
        await self._inbox.put(question)
        return await question.done

    async def history(self, ask: Callable[[Store], T]) -> T:
        """Ask the store, beside the loop. Raises NotLeadingError, StoreError."""
        self.check_leading()
        return await asyncio.to_thread(ask, self._store)

    def open_session(self, session: Session) -> None:
        """Register a session; commands for it are queued on it."""
        self._sessions[session.id] = session

    def drop_session(self, session: Session) -> None:
        """Forget a session."""
        self._sessions.pop(session.id, None)

    def session_of(self, session_id: str) -> Session | None:
        """The session of this id, while it is open."""
        return self._sessions.get(session_id)

    def heard(self, node: str, reports: Iterable[agent_pb2.WorkerProgress] = ()) -> None:
        """Note a sign of life of a node, and the progress that came with it. Writes nothing.

        Of all that a coordinator does this happens most often, so that a report is only kept here, and read when
        somebody asks.
        """
        self._hearing.note(node, self.clock.now())
        self.measures.heartbeats += 1
        for report in reports:
            key = report.key
            job_id, rank, attempt = key.job_id, key.rank, key.attempt
            job = self._state.jobs.get(job_id)
            if job is None or job.state in TERMINAL:
                continue
            ranks = self._telemetry.setdefault(job_id, {})
            known = ranks.get(rank)
            if known is None or known[0] <= attempt:
                ranks[rank] = attempt, report.progress
                self._wake(job_id)
                self.changes.mark(job_id, Topic.WORKERS)

    def note_preloads(self, node: str, session: str, preloads: agent_pb2.Preloads) -> None:
        """Note what a node says that it has preloaded. Writes nothing."""
        self._hearing.note_preloads(node, session, preloads)
        self.changes.mark(node, Topic.NODES)

    def preloads_of(self, node: Node) -> Iterable[node_pb2.Preload]:
        """What a node has preloaded, as it said last in the session that speaks for it."""
        return self._hearing.preloads_of(node)

    def heard_at(self, node: str) -> int:
        """When a node was last heard from, in milliseconds since the Unix epoch; 0: not by this leader."""
        return self._hearing.times.get(node, 0)

    def running(self, job: Job, workers: Iterable[Worker]) -> dict[int, Progress]:
        """The newest progress of the ranks whose attempt is still the one that reported it."""
        ranks = self._telemetry.get(job.id, {})
        read = self._read.setdefault(job.id, {}) if ranks else {}
        found: dict[int, Progress] = {}
        for worker in workers:
            attempt, progress = ranks.get(worker.rank, (0, None))
            if progress is not None and worker.state in LIVE and worker.attempt == attempt:
                known = read.get(worker.rank)
                if known is None or known[0] is not progress:
                    known = read[worker.rank] = progress, codec.progress_from_proto(progress)
                found[worker.rank] = known[1]
        return found

    @property
    def backlog(self) -> int:
        """How much waits in the inbox."""
        return self._inbox.qsize()

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._sessions)

    def steps_done(self, job_id: str, rank: int, attempt: int) -> int | None:
        """What a rank said last of its steps, in an attempt that is still its newest; None: nothing yet."""
        said, progress = self._telemetry.get(job_id, {}).get(rank, (0, None))
        return min(progress.steps_done, MOST_STEPS) if progress is not None and said == attempt else None

    def reporting(self) -> list[str]:
        """The jobs of which some rank has said how far it is."""
        return list(self._telemetry)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an asyncio.Event that is set whenever something about the job changes, its progress included."""
        changed = asyncio.Event()
        self._watchers.setdefault(job_id, set()).add(changed)
        try:
            yield changed
        finally:
            there = self._watchers[job_id]
            there.discard(changed)
            if not there:
                del self._watchers[job_id]

    # The loop

    async def run(self) -> None:
        """Lead until cancelled. Raises DeposedError when another coordinator leads, StoreTooNewError."""
        try:
            await self._take_over()
            while True:
                items = await self._next_items()
                began = self._note_wait(items)
                try:
                    batch = await self._work(items)
                except StoreError as error:
                    self._interrupt(items, error)
                    await self._take_over()
                else:
                    self._publish(batch)
                    if items:
                        self.measures.batch_s.observe(time.perf_counter() - began)
        finally:
            self._close_sessions("the coordinator is going away")
            self.changes.end("it is going away")
            await asyncio.to_thread(self._thread.shutdown)

    def _note_wait(self, items: Iterable[_Item]) -> float:
        """Count how long those waited that somebody waits for. Returns the time."""
        now = time.perf_counter()
        for item in items:
            if isinstance(item, _Request | _Read):
                self.measures.queue_s.observe(now - item.asked)
        return now

    async def _take_over(self) -> None:
        """Read the state from the store and begin a new epoch; try again for as long as the store fails."""
        while True:
            try:
                state = await self._in_thread(self._store.load, self.settings)
                elected = LeaderElected(self.clock.now(), state.epoch + 1)
                batch = _Batch()
                self._apply(batch, state, elected)
                await self._in_thread(self._store_batch, batch.writes, state.epoch)
                break
            except (DeposedError, StoreTooNewError):
                raise
            except StoreError as error:
                if self._not_leading != str(error):
                    log.error("store failed; trying again until it does not", error=str(error))
                self._not_leading = str(error)
                self._refuse_waiting(str(error))  # whoever had been waiting for room in the inbox
                await asyncio.sleep(RETRY_S)
        self._state = state
        self.measures.begin(state)
        traces.begin(state)
        carry(epoch=state.epoch)
        lease_from = self.clock.now() + liveness.fresh_lease_ms(len(state.nodes))
        self._hearing.begin(state.nodes, lease_from)
        self._next_tick = self.clock.now()
        self._not_leading = ""
        self._leading.set()
        self._interrupted.clear()
        log.info("leading", jobs=len(state.jobs), nodes=len(state.nodes))

    async def _next_items(self) -> list[_Item]:
        """Wait for the inbox, a tick, or the end of a backoff, whatever is first."""
        items: list[_Item] = []
        now = self.clock.now()
        ends = deadline(self._state)
        wake = self._next_tick if ends is None else min(self._next_tick, ends)
        if self._asks is not None:
            items.append(self._asks)
            self._asks = None
        elif self._inbox.empty() and wake > now:
            # Not wait_for: before Python 3.12 it may swallow a cancellation that comes together with an item.
            with suppress(TimeoutError):
                async with asyncio.timeout((wake - now) / 1000):
                    items.append(await self._inbox.get())
        while len(items) < BATCH and not self._inbox.empty():
            item = self._inbox.get_nowait()
            if items and _asks_history(item):
                self._asks = item
                break
            items.append(item)
        now = self.clock.now()
        if now >= wake:
            if now - self._next_tick > TICK_MS:
                self._hearing.forgive(now - self._next_tick)
            self._hearing.forget(self._state.nodes, before=now - self.settings.lost_after_ms)
            self._next_tick = now + TICK_MS
            self._set_pace()
            items.append(Ticked(now, self._hearing.times))
            items += self._compare_steps(now)
        return items

    def _compare_steps(self, now: int) -> list[Event]:
        """End the windows that are over, and say of which jobs somebody stood out."""
        said: list[Event] = []
        self._paces = {job_id: self._paces.get(job_id, stragglers.Paces(now)) for job_id in self._telemetry}
        for job_id, paces in self._paces.items():
            job = self._state.jobs.get(job_id)
            if job is None or now - paces.began_ms < stragglers.WINDOW_MS:
                continue
            workers = self._state.workers_of(job)
            running = self.running(job, workers)
            keys = {rank: self._state.workers[job_id, rank].key for rank in running}
            step_ms = paces.turn_over(now, {keys[rank]: progress for rank, progress in running.items()})
            if stragglers.worth_telling(job, workers, step_ms):
                said.append(StepsCompared(now, job_id, step_ms))
        return said

    async def _work(self, items: list[_Item]) -> _Batch:
        """Step the items and make what they bring about durable. Raises StoreError: then nothing has happened."""
        if items:
            items[0] = await self._informed(items[0])
        batch = _Batch()
        for item in items:
            match item:
                case _Read():
                    batch.reads.append(item)
                case _Request(event):
                    batch.requests.append((item, self._apply(batch, self._state, event)))
                case event:
                    effects = self._apply(batch, self._state, event)
                    if effects.reason:
                        log.info("dropped", what=type(event).__name__, reason=effects.reason)
        if batch.writes:
            await self._in_thread(self._store_batch, batch.writes, self._state.epoch)
        if why := self._why_not():
            raise DeposedError(f"this coordinator leads no longer: {why}")
        return batch

    async def _informed(self, item: _Item) -> _Item:
        """Give an event what it asks of the history, which holds all that came before it."""
        event = _event_of(item)
        if not isinstance(event, CheckpointReported | CheckpointRequest):
            return item
        asked = checkpoints.lookup(self._state, event)
        if asked is None:
            return item
        kept = await self._in_thread(self._store.commit_upto, asked.job_id, asked.gang, asked.upto)
        event = replace(event, kept=kept)
        return _Request(event, item.done) if isinstance(item, _Request) else event

    @staticmethod
    def _apply(batch: _Batch, state: State, event: Event) -> Effects:
        effects = step(state, event)
        batch.writes += effects.writes
        batch.sends += [(send.session, send.command) for send in effects.commands]
        return effects

    def _interrupt(self, items: list[_Item], error: StoreError) -> None:
        """The store failed: nobody has seen anything of this round. Say so to everyone who waits."""
        for item in items:
            if isinstance(item, _Request | _Read):
                _fail(item.done, NotLeadingError(str(error)))
        if isinstance(error, DeposedError):
            self.stand_by(str(error))
            raise error
        log.error("store failed; nothing of this batch is seen; starting over", error=str(error))
        self.stand_by(str(error), "starts over from its store")

    def _refuse_waiting(self, why: str) -> None:
        """Say to those in the inbox that wait for an answer why there is none. What agents said stays."""
        items = [] if self._asks is None else [self._asks]
        self._asks = None
        while not self._inbox.empty():
            items.append(self._inbox.get_nowait())
        for item in items:
            if isinstance(item, _Request | _Read):
                _fail(item.done, NotLeadingError(why))
            else:
                self._inbox.put_nowait(item)

    def _store_batch(self, writes: list[Write], epoch: int) -> None:
        began = time.perf_counter()
        self._store.commit(writes, epoch=epoch)
        self.measures.store_s.observe(time.perf_counter() - began)

    def _publish(self, batch: _Batch) -> None:
        """Everything in the batch is durable: let it be seen."""
        for session_id, command in batch.sends:
            session = self._sessions.get(session_id)
            if session is None:
                continue
            if isinstance(command, Welcome):
                session.send(agent_pb2.Welcome(pace=self._pace()))
            elif isinstance(command, CloseSession):
                session.close(command.reason)
            else:
                session.send(command)
        for request, effects in batch.requests:
            if effects.refusal is not None:
                _fail(request.done, RefusedError(effects.refusal))
            elif not request.done.done():
                request.done.set_result(self._job_id(request.event))
        for job_id in _changed_jobs(batch.writes):
            self._forget_telemetry(job_id)
            self._wake(job_id)
        if batch.writes:
            self.measures.note(batch.writes, self.clock.now())
        self.changes.note(batch.writes)
        traces.tell(self._state, batch.writes)
        for write in batch.writes:
            if isinstance(write, Append) and isinstance(write.item, Entry):
                _log_entry(write.item)
        for question in batch.reads:
            _answer(question, self._state)

    def _pace(self) -> agent_pb2.Pace:
        return codec.pace_to_proto(self._pace_ms, self.settings.lost_after_ms)

    def _set_pace(self) -> None:
        """Slow the heartbeats as the fleet grows; tell it when that makes a difference."""
        wanted = liveness.heartbeat_interval_ms(len(self._sessions))
        wanted = min(wanted, self.settings.suspect_after_ms // 2)
        if abs(wanted - self._pace_ms) * 10 > self._pace_ms:
            self._pace_ms = wanted
            for session in self._sessions.values():
                session.send(self._pace())

    def _job_id(self, event: Event) -> str:
        if isinstance(event, JobSubmitted):
            return self._state.requests.get(event.request_id, event.job_id)
        return ""

    def _forget_telemetry(self, job_id: str) -> None:
        job = self._state.jobs.get(job_id)
        if job is None or job.state in TERMINAL:
            self._telemetry.pop(job_id, None)
            self._read.pop(job_id, None)

    def _wake(self, job_id: str) -> None:
        for changed in self._watchers.get(job_id, ()):
            changed.set()

    def _close_sessions(self, reason: str) -> None:
        for session in self._sessions.values():
            session.close(reason)

    async def _in_thread(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


def _event_of(item: _Item) -> Event | None:
    if isinstance(item, _Read):
        return None
    return item.event if isinstance(item, _Request) else item


def _asks_history(item: _Item) -> bool:
    event = _event_of(item)
    return event is not None and checkpoints.asks_history(event)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _answer(question: _Read[Any], state: State) -> None:
    if question.done.done():
        return
    try:
        question.done.set_result(question.ask(state))
    except Exception as error:  # noqa: BLE001  whoever asked gets it
        question.done.set_exception(error)


def _changed_jobs(writes: Iterable[Write]) -> Iterable[str]:
    changed: dict[str, None] = {}
    for write in writes:
        if isinstance(write, Put | Delete):
            match write.row:
                case Job(id=job_id) | Gang(job_id=job_id) | Worker(job_id=job_id):
                    changed[job_id] = None
    return changed


def _log_entry(entry: Entry) -> None:
    about = {
        "outcome": entry.outcome,
        "job": entry.job_id,
        "node": entry.node,
        "rank": entry.rank,
        "attempt": entry.attempt or None,
    }
    log.info(
        entry.kind,
        why=entry.message,
        **{name: value for name, value in about.items() if value not in ("", None)},
    )
