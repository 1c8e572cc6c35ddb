"""The agent put together: the pure core, and the shell that carries its actions out."""

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc.aio
import structlog

from holdfast import __version__, heartbeat, wire
from holdfast.v1 import agent_pb2, worker_pb2
from holdfast_agent import asks, convert, core, groups, logs, node
from holdfast_agent.core import Key, Phase
from holdfast_agent.crew import Crew, Order
from holdfast_agent.drainer import Drainer
from holdfast_agent.environment import Place, is_ours, uses_s3_in, worker_environment
from holdfast_agent.hang_reports import Report, Reports, watched
from holdfast_agent.hang_watch import HANG, HangWatch, tell
from holdfast_agent.inotify import Inotify
from holdfast_agent.log_care import LogCare
from holdfast_agent.notices import Notice, Watcher, watch
from holdfast_agent.ports import Ports
from holdfast_agent.session import Session
from holdfast_agent.traces import Traces
from holdfast_agent.workdir import StateDir, StateDirError
from holdfast_agent.worker_link import WorkerLink

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What the operator decides.

    `address` is where other nodes reach this one; empty: the one from which it reaches the coordinator. In the
    foreground, workers end with the agent; otherwise they outlive it.
    """

    coordinator: str
    state_dir: Path
    name: str = field(default_factory=node.default_name)
    slots: int = field(default_factory=lambda: os.cpu_count() or 1)
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    foreground: bool = False
    archive_logs: bool = True
    """Where checkpoints lie, once an attempt has ended."""
    cgroup: str = groups.AUTO
    """As in Groups."""
    limit_memory: bool = False
    stop_after_disconnect_s: float = 0
    """Workers are stopped after so long without a session; 0: never (P4)."""
    orphaned_after_s: float = 0
    """Shims end after so long without an agent on the machine; 0: never."""
    notices: tuple[Watcher, ...] = ()
    """Where it looks whether the machine is about to go away."""


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that runs now, and what its heartbeat page says."""

    key: Key
    pid: int
    reading: heartbeat.Reading


class Agent:
    """An agent in this process. Raises StateDirError when its state directory can't be used; GroupsError."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._state_dir = StateDir(config.state_dir.absolute())
        try:
            self._groups = groups.Groups(
                self._state_dir.instance_id, config.cgroup, limit_memory=config.limit_memory
            )
        except groups.GroupsError:
            self._state_dir.close()
            raise
        self._log_care = LogCare(self._state_dir, self._live_jobs)
        self._crew = Crew(
            self._state_dir,
            foreground=config.foreground,
            report=self._dispatch,
            groups=self._groups,
            boot_id=node.boot_id(),
            logs=self._log_care,
        )
        self._core = core.AgentState()
        self._link = WorkerLink(
            self._state_dir.path,
            welcome=self._welcome_worker,
            prepared=self._shard_prepared,
            reported=self._checkpoint_reported,
            connected=lambda key: self._dispatch(asks.WorkerConnected(key)),
            answered=lambda key, answer: self._dispatch(asks.StopAnswered(key, answer)),
        )
        self._drainer = Drainer(
            self._state_dir.spool, self._live_jobs, partial(self._checkpoint_reported, by_worker=False)
        )
        self._traces = Traces(self._state_dir)
        self._hangs = Reports()
        self._hang_watch = HangWatch(self._state_dir, self._can_hang, self._hang_noticed)
        self._session = Session(
            config.coordinator, hello=self._hello, heard=self._heard, lost=self._lost, beat=self._beat
        )
        self._ports = Ports()
        self._inotify = Inotify()
        self._machine: node.Machine | None = None
        self._address = config.address or node.address_towards(config.coordinator)
        self._working_dir = Path.cwd()
        self._pages: dict[Key, bytes] = {}
        self._preloads: agent_pb2.Preloads | None = None
        self._pushes: grpc.aio.Channel
        self._tasks: set[asyncio.Task[None]] = set()
        self._alone: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        """Set whenever a worker is through with."""

    async def start(self) -> None:
        """Get ready to start workers, and find those that an agent before left. Raises StateDirError."""
        try:
            self._crew.start()
            self._core = core.recover(*self._crew.recover())
            await self._link.start()
        except OSError as error:
            raise StateDirError(f"can't use the state directory {self._state_dir.path}: {error}") from error
        if self._core.workers:
            log.info("workers found", count=len(self._core.workers))
        for key in self._core.workers:
            self._traces.found(key)
        log.info("workers are ended by", group=self._groups.base or "their shims alone")
        self._machine = await asyncio.to_thread(node.look)

    async def run(self) -> None:
        """Work until cancelled; get ready first, unless `start` was called. Raises StateDirError."""
        if self._machine is None:
            await self.start()
        async with wire.open_channel(self._config.coordinator) as self._pushes:
            beside = [
                asyncio.create_task(each.run()) for each in (self._drainer, self._log_care, self._hang_watch)
            ]
            beside += [asyncio.create_task(watch(each, self._noticed)) for each in self._config.notices]
            self._watch_disconnect()
            try:
                await self._session.run()
            finally:
                self._unwatch_disconnect()
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)

    async def stop(self, *, workers: bool) -> None:
        """Let go of everything, after `run` was cancelled. Workers go on, unless `workers` says to end them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._inotify.close()
        await self._crew.stop(workers=workers)
        await self._log_care.stop()
        await self._link.stop()
        self._ports.close()
        self._state_dir.close()

    async def drained(self, notice: Notice) -> None:
        """Have the node drained, and wait until nothing runs here and that is known, or the time is up."""
        self._noticed(notice)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(notice.until):
                while self._core.workers:
                    self._idle.clear()
                    await self._idle.wait()

    def _noticed(self, notice: Notice) -> None:
        log.warning("this node is to be drained", why=notice.reason)
        self._dispatch(asks.NoticeSeen(notice))

    def workers(self) -> list[LiveWorker]:
        """The workers that run now."""
        return [
            LiveWorker(worker.key, worker.pid, heartbeat.read(self._crew.page(worker.key)))
            for worker in self._core.workers.values()
            if worker.phase is Phase.RUNNING
        ]

    def phases(self) -> Mapping[Key, Phase]:
        """Where each worker is in its life."""
        return {key: worker.phase for key, worker in self._core.workers.items()}

    @property
    def session(self) -> Session:
        """The stream to the coordinator."""
        return self._session

    @property
    def config(self) -> AgentConfig:
        """What the operator decided."""
        return self._config

    @property
    def shims(self) -> int:
        """How many shims it watches."""
        return self._crew.watched

    def logs_of(self, key: Key) -> Path:
        """Where the logs of a worker lie."""
        return self._state_dir.attempt(key).path

    # What comes in

    def _heard(self, message: agent_pb2.CoordinatorMessage) -> None:
        if message.HasField("open_log"):
            self._push_log(message.open_log)
            return
        if message.HasField("job_over"):
            self._crew.warm.end(message.job_over.job_id)
            return
        if message.HasField("note_hang"):
            noted = message.note_hang
            if message.epoch >= self._core.epoch:
                key = Key(noted.key.job_id, noted.key.rank, noted.key.attempt)
                if self._hangs.noted(key, noted.since_ns, over=noted.over) and noted.over:
                    self._hang_watch.forget(key)
            return
        try:
            if message.HasField("ask_stop"):
                self._dispatch(convert.stop_asked_from_proto(message, self._now(), self._listens))
                return
            event = convert.event_from_proto(message)
        except ValueError as error:
            log.error("the coordinator said what can't be", error=str(error))
            return
        if isinstance(event, core.Welcomed):
            self._unwatch_disconnect()
        if event is not None:
            self._dispatch(event)
        if isinstance(event, core.Welcomed):
            self._tell_hangs(self._hangs.welcomed(self._core))

    def _listens(self, key: Key) -> bool:
        """Whether a worker can be told to stop: it is connected, or was before this agent came."""
        return self._link.is_connected(key) or heartbeat.read(self._crew.page(key)).listens

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _lost(self) -> None:
        self._dispatch(core.StreamLost())
        self._watch_disconnect()

    def _watch_disconnect(self) -> None:
        """Stop the workers if there is no session for too long, counted from when there was one last."""
        after_s = self._config.stop_after_disconnect_s
        if after_s and self._alone is None:
            self._alone = asyncio.get_running_loop().call_later(after_s, self._dispatch, core.LeftAlone())

    def _unwatch_disconnect(self) -> None:
        if self._alone is not None:
            self._alone.cancel()
            self._alone = None

    def _shard_prepared(self, key: Key, prepare: worker_pb2.Prepare) -> None:
        self._traces.prepared(key, prepare.step)
        self._dispatch(core.ShardPrepared(key, core.Shard(prepare.step, prepare.shard)))

    def _checkpoint_reported(self, key: Key, report: worker_pb2.Report, *, by_worker: bool = True) -> None:
        try:
            self._dispatch(core.CheckpointReported(key, convert.report_from_proto(report), by_worker))
        except ValueError as error:
            log.warning("a worker reports what can't be", worker=key, error=str(error))

    def _can_hang(self) -> list[core.Worker]:
        return [worker for worker in self._core.workers.values() if watched(self._core, worker.key)]

    def _hang_noticed(self, report: Report) -> None:
        self._tell_hangs(self._hangs.notice(self._core, report))

    def _tell_hangs(self, reports: list[Report]) -> None:
        for report in reports:
            self._session.send(tell(report))

    def _live_jobs(self) -> set[str]:
        return {key.job_id for key, worker in self._core.workers.items() if worker.phase is not Phase.ENDED}

    def _welcome_worker(self, key: Key) -> worker_pb2.WorkerWelcome | None:
        worker = self._core.workers.get(key)
        if worker is None or worker.phase is Phase.ENDED:
            return None
        record = self._state_dir.attempt(key).read_resume()
        resume = worker_pb2.CommitRecord.FromString(record) if record else None
        return worker_pb2.WorkerWelcome(resume=resume)

    # What goes out

    def _dispatch(self, event: core.Event) -> None:
        for action in core.handle(self._core, event):
            self._do(action)
        self._crew.warm.note_live(self._live_jobs)

    def _do(self, action: core.Action) -> None:
        match action:
            case core.Spawn(start):
                self._spawn(start)
            case core.Signal(key, how):
                self._crew.signal(key, how)
            case core.Fence(key):
                after_s = self._config.stop_after_disconnect_s
                why = f"its agent had no coordinator for {after_s:g} s"
                log.warning("a worker is stopped", worker=key, why=why)
                self._crew.fence(key, why)
            case core.TellStarted(worker):
                self._traces.started(worker.key)
                self._session.send(convert.started_to_proto(worker))
            case core.TellEnded(worker):
                self._traces.ended(worker.key)
                self._hangs.ended(worker.key)
                self._session.send(convert.ended_to_proto(worker))
            case core.TellPrepared(key, shard):
                self._session.send(convert.prepared_to_proto(key, shard))
            case core.TellReported(key, report):
                self._session.send(convert.reported_to_proto(key, report))
            case core.AnswerCommitted(key, step, publish, drop):
                self._traces.committed(key, step)
                committed = worker_pb2.Committed(step=step, publish=publish, drop=drop)
                self._link.answer(key, worker_pb2.WorkerReply(committed=committed))
            case core.AnswerRefused(key, step, reason):
                refused = worker_pb2.Refused(step=step, reason=reason)
                self._link.answer(key, worker_pb2.WorkerReply(refused=refused))
            case core.AnswerNoted(key, kind, step):
                noted = worker_pb2.Noted(kind=cast("worker_pb2.Report.Kind.ValueType", kind), step=step)
                self._link.answer(key, worker_pb2.WorkerReply(noted=noted))
            case core.MarkReleased(key):
                self._pages.pop(key, None)
                self._mark_released(key)
                self._idle.set()
            case asks.AskWorker(key, ask):
                self._link.answer(key, convert.ask_to_proto(ask, self._now()))
            case asks.TellAnswer(key, answer):
                self._session.send(convert.answer_to_proto(key, answer))
            case asks.TellNotice(notice):
                told = convert.notice_to_proto(notice, self._now())
                self._session.send(agent_pb2.AgentMessage(node_notice=told))
            case core.RemoveJob(job_id):
                self._crew.warm.end(job_id)
                self._in_background(asyncio.to_thread(self._state_dir.remove_job, job_id))
            case core.Disconnect(reason):
                self._session.drop(reason)

    def _spawn(self, start: core.Start) -> None:
        command, assignment = start.how
        if command.master_port and self._ports.release(command.master_port):
            offered = agent_pb2.PortsOffered(ports=self._ports.offered())
            self._session.send(agent_pb2.AgentMessage(ports_offered=offered))
        self._crew.spawn(self._order(start.key, command, assignment))

    def _order(self, key: Key, command: agent_pb2.StartWorkers, assignment: agent_pb2.Assignment) -> Order:
        spec = command.spec
        datasets = self._state_dir.datasets(key.job_id) if spec.datasets else None
        resume = convert.resume_record(command, key.rank)
        place = Place(
            job_id=key.job_id,
            rank=key.rank,
            world_size=spec.world_size,
            local_rank=assignment.local_rank,
            local_world_size=assignment.local_world_size,
            group_rank=assignment.group_rank,
            attempt=key.attempt,
            restart_count=assignment.restart_count,
            scope=convert.scope_name(spec),
            resume_step=resume.step if resume is not None else None,
            gpus=assignment.gpus,
            master_addr=command.master_addr,
            master_port=command.master_port,
        )
        env = worker_environment(
            place,
            inherited={name: value for name, value in os.environ.items() if not is_ours(name)},
            asked=spec.env,
            checkpoint_uri=spec.checkpoint_uri,
            node_checkpoints=str(self._state_dir.path / "checkpoints"),
            socket=str(self._link.path),
            heartbeat_file=str(self._state_dir.attempt(key).heartbeat),
            spool_dir=str(self._state_dir.spool),
            resume_from=spec.resume_from,
            datasets_file=str(datasets or ""),
        )
        self._traces.starting(key, env)
        begin = {
            "argv": list(spec.command),
            "env": env,
            "cwd": str(self._working_dir / spec.working_dir),
            "grace_ms": spec.stop_grace.ToMilliseconds(),
            **convert.logs_to_disk(spec, assignment),
            HANG: convert.hang_policy_to_disk(spec.hang),
            "restart_grace_ms": convert.restart_grace_ms(spec),
            "boot_id": node.boot_id(),
            "log_rules": convert.log_patterns(spec),
            "cgroup": self._groups.place(key, spec.resources.memory_bytes),
            "agent_lock": str(self._state_dir.lock_path),
            "orphaned_after_s": self._config.orphaned_after_s,
        }
        if self._config.archive_logs and (spec.checkpoint_uri or uses_s3_in(env)):
            begin["archive"] = env["HOLDFAST_CHECKPOINT_URI"]
        to_write = datasets is not None and not datasets.exists()
        return Order(
            key,
            begin,
            resume.SerializeToString() if resume is not None else b"",
            convert.datasets_to_disk(spec) if to_write else b"",
            convert.warmth(spec, begin) if spec.preload else None,
        )

    def _mark_released(self, key: Key) -> None:
        try:
            self._state_dir.attempt(key).mark_released()
        except OSError as error:
            # A full disk: the next agent reports the exit once more, and it is released again.
            log.warning("a release could not be noted", worker=key, error=str(error))

    def _push_log(self, asked: agent_pb2.OpenLog) -> None:
        try:
            convert.key_from_proto(agent_pb2.WorkerKey(job_id=asked.job_id, rank=asked.rank, attempt=1))
        except ValueError as error:
            log.error("the coordinator asked for a log that can't be", error=str(error))
            return
        job = self._state_dir.job(asked.job_id)
        self._in_background(logs.push(self._pushes, asked, job, self._inotify))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hello(self) -> agent_pb2.Hello:
        config, machine = self._config, self._machine
        assert machine is not None
        hello = agent_pb2.Hello(
            node=config.name,
            instance_id=self._state_dir.instance_id,
            boot_id=machine.boot_id,
            address=self._address,
            labels=config.labels,
            agent_version=__version__,
            inventory=[convert.record_to_proto(worker) for worker in core.inventory(self._core)],
            ports=self._ports.offered(),
            monotonic_ns=time.monotonic_ns(),
            workers_end_with_agent=config.foreground,
        )
        if self._core.asked.notice is not None:
            hello.notice.CopyFrom(convert.notice_to_proto(self._core.asked.notice, self._now()))
        hello.capacity.slots = config.slots
        hello.capacity.cpus = machine.cpus
        hello.capacity.memory_bytes = machine.memory_bytes
        hello.capacity.gpus = machine.gpus
        self._pages.clear()  # a new session may be a new leader, who knows no progress yet
        self._preloads = None
        return hello

    def _beat(self) -> agent_pb2.Heartbeat:
        """All workers in one message; of them only those whose page has changed."""
        beat = agent_pb2.Heartbeat()
        for worker in self._core.workers.values():
            if worker.phase is not Phase.RUNNING:
                continue
            page = self._crew.page(worker.key)
            if page != self._pages.get(worker.key):
                self._pages[worker.key] = page
                progress = convert.progress_to_proto(heartbeat.read(page))
                beat.workers.add(key=convert.key_to_proto(worker.key), progress=progress)
        preloads = convert.preloads_to_proto(self._crew.warm.preloads())
        if preloads != (self._preloads or agent_pb2.Preloads()):
            self._preloads = preloads
            beat.preloads.CopyFrom(preloads)
        return beat
