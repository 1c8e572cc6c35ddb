"""The heart: `step(state, event) -> Effects`.

A handler an event changes rows; then the jobs it touched are reconciled (stop, renew), whatever waits is placed,
and the states of the jobs are observed anew. The state is advanced in place, and `Effects.writes` is exactly
the difference.
"""

from dataclasses import replace

from holdfast_coordinator.core import (
    account,
    again,
    blame,
    checkpoints,
    drain,
    exits,
    forgetting,
    hangs,
    liveness,
    recovery,
    restart,
    stopping,
    stragglers,
)
from holdfast_coordinator.core.effects import (
    CloseSession,
    Effects,
    ForgetJob,
    Problem,
    ReleaseWorkers,
    StopWorkers,
    Welcome,
)
from holdfast_coordinator.core.events import (
    AgentEvent,
    AgentJoined,
    BackupRestored,
    CheckpointDeleteRequested,
    CheckpointPinRequested,
    CheckpointReported,
    Event,
    Found,
    JobDeleteRequested,
    JobRestartRequested,
    JobStopRequested,
    JobSubmitted,
    LeaderElected,
    NodeCordonRequested,
    NodeDrainRequested,
    NodeForgetRequested,
    NodeNoticed,
    NodeUncordonRequested,
    PortsOffered,
    ShardPrepared,
    StepsCompared,
    StopAnswered,
    StreamLost,
    Ticked,
    WorkerExited,
    WorkerHung,
    WorkerStarted,
)
from holdfast_coordinator.core.exclusion import lift
from holdfast_coordinator.core.fence import stop_live, supersede
from holdfast_coordinator.core.jobspec import ExitKind, Scope
from holdfast_coordinator.core.model import (
    LIVE,
    TERMINAL,
    Desired,
    Exit,
    Gang,
    Job,
    JobState,
    Key,
    Node,
    NodeState,
    Output,
    Progress,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.reconcile import observe, place_waiting, settle, start_command
from holdfast_coordinator.core.state import State
from holdfast_coordinator.core.turn import Turn


def step(state: State, event: Event) -> Effects:
    """Advance the state by one event, and say what to write and whom to tell."""
    turn = Turn(state, event.at)
    _handle(turn, event)
    for job_id, gangs in list(turn.touched.items()):
        settle(turn, job_id, list(gangs))
    if turn.room_changed or isinstance(event, Ticked):
        place_waiting(turn)
    for job_id in list(turn.touched):
        observe(turn, job_id)
    drain.note_drained(turn)
    return turn.effects()


def deadline(state: State) -> int | None:
    """When a Ticked has something to do: the next backoff ends, or the time of a gang that is to stop."""
    ends = [
        gang.not_before_ms
        for job_id in state.waiting
        if state.jobs[job_id].ending is None
        for gang in state.gangs_of(state.jobs[job_id])
        if gang.not_before_ms and state.gang_tallies[job_id, gang.index][WorkerState.WAITING]
    ]
    stops = stopping.next_due(state)
    return min(ends if stops is None else [*ends, stops], default=None)


def _handle(turn: Turn, event: Event) -> None:
    """Run the handler of an event."""
    match event:
        case Ticked():
            _ticked(turn, event)
        case LeaderElected():
            _leader_elected(turn, event)
        case BackupRestored():
            recovery.restored(turn, event)
        case JobSubmitted():
            _job_submitted(turn, event)
        case JobStopRequested():
            _job_stop_requested(turn, event)
        case JobRestartRequested():
            again.requested(turn, event)
        case JobDeleteRequested():
            _job_delete_requested(turn, event)
        case CheckpointDeleteRequested():
            checkpoints.delete_requested(turn, event)
        case CheckpointPinRequested():
            checkpoints.pin_requested(turn, event)
        case StepsCompared():
            stragglers.steps_compared(turn, event)
        case NodeCordonRequested() | NodeUncordonRequested() | NodeDrainRequested():
            drain.requested(turn, event)
        case NodeForgetRequested():
            forgetting.requested(turn, event)
        case AgentJoined():
            _agent_joined(turn, event)
        case _:
            _from_agent(turn, event)


def _from_agent(turn: Turn, event: AgentEvent) -> None:
    node = turn.state.nodes.get(event.node)
    if node is None or node.session != event.session:
        turn.drop(f"session {event.session} does not speak for node {event.node}")
        return
    match event:
        case StreamLost():
            _stream_lost(turn, node, event)
        case PortsOffered():
            turn.put(replace(node, ports=_not_taken(turn, node.name, event.ports)))
        case WorkerStarted():
            _worker_started(turn, event)
        case WorkerExited():
            _worker_exited(turn, event.node, event.key, event.exit, event.progress, event.output)
        case ShardPrepared():
            checkpoints.shard_prepared(turn, event)
        case CheckpointReported():
            checkpoints.checkpoint_reported(turn, event)
        case WorkerHung():
            hangs.worker_hung(turn, event)
        case NodeNoticed():
            drain.noticed(turn, node, event.notice)
        case StopAnswered():
            stopping.answered(turn, event)


# Jobs


def _job_submitted(turn: Turn, event: JobSubmitted) -> None:
    known = turn.state.requests.get(event.request_id) if event.request_id else None
    if known is not None:
        if turn.state.jobs[known].spec != event.spec:
            turn.refuse(
                Problem.ALREADY_EXISTS,
                f"request id {event.request_id} was used for another job, {known}",
                "use a new request id for every job",
            )
        return
    spec = event.spec
    job = Job(
        id=event.job_id,
        request_id=event.request_id,
        spec=spec,
        desired=Desired.RUNNING,
        state=JobState.PENDING,
        reason="created",
        created_ms=event.at,
    )
    turn.put(job)
    by_rank = spec.restart.scope is Scope.RANK
    for index in range(spec.world_size if by_rank else 1):
        turn.put(Gang(job.id, index))
    for rank in range(spec.world_size):
        turn.put(Worker(job.id, rank, gang=rank if by_rank else 0, state=WorkerState.WAITING))
    turn.tell("JobCreated", f"{spec.name}: {spec.world_size} workers", job_id=job.id)


def _job_stop_requested(turn: Turn, event: JobStopRequested) -> None:
    job = turn.find_job(event.job_id)
    if job is None or job.state in TERMINAL:
        return
    reason = "stopped by its user" + (", by force" if event.force else "")
    if job.desired is Desired.STOPPED and job.force >= event.force:
        return
    ending = job.ending or JobState.STOPPED
    turn.put(
        replace(
            job,
            desired=Desired.STOPPED,
            ending=ending,
            force=job.force or event.force,
            reason=reason if ending is JobState.STOPPED else job.reason,
        )
    )
    turn.tell("JobStopRequested", reason, job_id=job.id)
    gangs = turn.state.gangs_of(job)
    if not event.force:
        # The others have nothing to save, and are stopped by `settle`.
        stopping.ask(turn, gangs, "job stop", reason, event.at + job.spec.stop_grace_ms)
        return
    for gang in gangs:
        if gang.stopping is not None:
            turn.put(replace(gang, stopping=None))
    stop_live(turn, turn.state.workers_of(job), force=True, reason=reason, again=True)


def _job_delete_requested(turn: Turn, event: JobDeleteRequested) -> None:
    job = turn.find_job(event.job_id)
    if job is None:
        return
    if job.state not in TERMINAL:
        turn.refuse(
            Problem.FAILED_PRECONDITION,
            f"job {job.id} is {job.state}",
            "stop it first, and wait until it has ended",
        )
        return
    for worker in turn.state.workers_of(job):
        turn.delete(worker)
    for gang in turn.state.gangs_of(job):
        turn.delete(gang)
    turn.drop_history(job.id)
    turn.delete(job)
    turn.tell("JobDeleted", f"{job.spec.name} was {job.state}", job_id=job.id)
    for name in sorted(turn.state.nodes):
        turn.send(name, ForgetJob(job.id))


# Nodes


def _leader_elected(turn: Turn, event: LeaderElected) -> None:
    """Take over: nobody is connected, nobody is presumed dead, no worker is touched."""
    turn.set_epoch(event.epoch)
    for node in list(turn.state.nodes.values()):
        if node.state is NodeState.LOST:
            # A clock set back must not keep it for ever.
            turn.put(replace(node, session="", lost_ms=min(node.lost_ms, event.at)))
        else:
            waits = "a new leader waits for its agent"
            turn.put(replace(node, session="", state=NodeState.SUSPECT, reason=waits, gone_after_ms=0))
    for job_id in list(turn.state.waiting):
        job = turn.state.jobs[job_id]
        for gang in turn.state.gangs_of(job):
            # A clock set back must not turn a backoff into an eternity.
            latest = event.at + job.spec.restart.backoff_cap_ms
            if gang.not_before_ms > latest:
                turn.put(replace(gang, not_before_ms=latest))
    stopping.take_over(turn)
    turn.tell("LeaderElected", f"epoch {event.epoch}")


def _ticked(turn: Turn, event: Ticked) -> None:
    stopping.due(turn)
    for node in list(turn.state.nodes.values()):
        if node.state is NodeState.LOST:
            forgetting.when_due(turn, node)
            continue
        silent = event.at - event.heard.get(node.name, event.at)
        verdict, reason = liveness.judge(
            silent,
            connected=bool(node.session),
            settings=turn.state.settings,
            gone_after_ms=node.gone_after_ms,
        )
        if verdict is NodeState.LOST:
            _lose_node(turn, node, reason)
        elif verdict is not node.state:
            turn.put(replace(node, state=verdict, reason=reason))
            turn.tell(f"Node{verdict.capitalize()}", reason, node=node.name)


def _stream_lost(turn: Turn, node: Node, event: StreamLost) -> None:
    gone_after = liveness.gone_after(event.silent_ms, turn.state.settings) if event.ends_workers else 0
    reason = "its stream broke"
    turn.put(replace(node, session="", state=NodeState.SUSPECT, reason=reason, gone_after_ms=gone_after))
    soon = f"it is lost unless it is back within {turn.state.settings.gone_after_ms / 1000:g} s"
    follows = f"its workers end with its agent: {soon}" if gone_after else "nothing is killed"
    turn.tell("NodeSuspect", f"{reason}; {follows}", node=node.name)


def _lose_node(turn: Turn, node: Node, reason: str) -> None:
    """Give up a node: from here on nothing that its workers say is accepted."""
    turn.send(node.name, CloseSession(f"node {node.name} was lost: {reason}"))
    lost = replace(
        node, session="", state=NodeState.LOST, reason=reason, strays=(), ports=(), gone_after_ms=0
    )
    turn.put(replace(lost, lost_ms=turn.at))
    turn.tell("NodeLost", reason, node=node.name)
    for worker in turn.state.live_on(node.name):
        _lose_worker(turn, worker, f"node {node.name} was lost: {reason}")


def _agent_joined(turn: Turn, event: AgentJoined) -> None:
    old = turn.state.nodes.get(event.node)
    if old is not None and old.session and old.instance_id != event.instance_id:
        taken = f"another agent is connected as node {event.node}; start this one with another --name"
        turn.send_session(event.session, CloseSession(taken))
        turn.drop(taken)
        return
    if old is not None and old.session != event.session:
        turn.send(event.node, CloseSession("a newer session speaks for this node"))
    expected = {worker.key: worker for worker in turn.state.live_on(event.node)}
    strays = tuple(f.key for f in event.inventory if f.exit is None and f.key not in expected)
    turn.put(
        Node(
            name=event.node,
            instance_id=event.instance_id,
            state=NodeState.READY,
            reason="connected",
            address=event.address,
            capacity=event.capacity,
            joined_ms=event.at,
            session=event.session,
            boot_id=event.boot_id,
            labels=event.labels,
            agent_version=event.agent_version,
            ports=_not_taken(turn, event.node, event.ports),
            strays=strays,
            clock_offset_ns=event.clock_offset_ns,
            cordon=drain.carried_over(turn, old, event.notice),
        )
    )
    if old is not None and (old.state is NodeState.LOST or old.boot_id != event.boot_id):
        lift(turn, event.node, "back")
    turn.send(event.node, Welcome())
    turn.tell("AgentJoined", _joined_message(event, expected), node=event.node)
    if strays:
        turn.send(event.node, StopWorkers(strays, force=True, reason="their attempts are superseded"))
    knows = old is not None and (old.instance_id, old.boot_id) == (event.instance_id, event.boot_id)
    _reattach(turn, event, expected, knows=knows)
    found = {f.key: f for f in event.inventory}
    for key, item in found.items():
        if key not in expected and item.exit is not None:
            _worker_exited(turn, event.node, key, item.exit, item.progress, item.output)
    if event.notice is not None:
        drain.noticed(turn, turn.state.nodes[event.node], event.notice)


def _not_taken(turn: Turn, node: str, ports: tuple[int, ...]) -> tuple[int, ...]:
    """Leave out ports that a start under way is about to take: the offer may have crossed with it."""
    live = turn.state.live_on(node)
    taken = {turn.state.gangs[worker.job_id, worker.gang].master_port for worker in live}
    return tuple(port for port in ports if port not in taken)


def _joined_message(event: AgentJoined, expected: dict[Key, Worker]) -> str:
    running = [f.key for f in event.inventory if f.exit is None]
    reattached = sum(key in expected for key in running)
    message = f"{event.capacity.slots} slots"
    if reattached:
        message += f"; {reattached} workers reattached"
    if len(running) > reattached:
        message += f"; {len(running) - reattached} superseded workers to stop"
    return message


def _reattach(turn: Turn, event: AgentJoined, expected: dict[Key, Worker], *, knows: bool) -> None:
    """Settle the difference between what should run on the node and what its agent found.

    A start that never arrived is said again, where the agent `knows` what was applied: not after a reboot, nor to one
    with another state directory, for it may have been applied before (P6).
    """
    found: dict[Key, Found] = {f.key: f for f in event.inventory}
    never_arrived: dict[str, list[Worker]] = {}
    stop_again: list[Key] = []
    for key, worker in expected.items():
        item = found.get(key)
        if item is not None and item.exit is not None:
            _worker_exited(turn, event.node, key, item.exit, item.progress, item.output)
        elif item is not None:
            if worker.state is WorkerState.STOPPING:
                stop_again.append(key)
            else:
                running = WorkerState.RUNNING
                turn.put(replace(worker, state=running, pid=item.pid, pid_start=item.pid_start))
                _note_start(turn, worker.job_id, event.at)
        elif worker.state is WorkerState.STARTING and knows:
            never_arrived.setdefault(worker.job_id, []).append(worker)
        else:
            _lose_worker(turn, worker, f"it was gone when the agent of node {event.node} came back")
    for job_id, workers in never_arrived.items():
        # Those whose gang was superseded by a loss found above are stopped, not started, by `settle`.
        turn.send(event.node, start_command(turn, turn.state.jobs[job_id], workers))
    stopping.ask_again(turn, event.node, stop_again)
    _stop_again(turn, event.node, [key for key in stop_again if not _is_asked(turn, key)])


def _stop_again(turn: Turn, node: str, keys: list[Key]) -> None:
    """Say what was said before: the job is being stopped, perhaps by force, their node is drained, or they restart."""
    by_way: dict[tuple[bool, bool], list[Key]] = {}
    for key in keys:
        job, worker = turn.state.jobs[key.job_id], turn.state.workers[key.job_id, key.rank]
        gang = turn.state.gangs[key.job_id, worker.gang]
        by_way.setdefault((job.force, job.ending is None and gang.stopping is None), []).append(key)
    for (force, restarts), told in sorted(by_way.items()):
        turn.send(node, StopWorkers(tuple(told), force, "it was told to stop before", restarts))


def _is_asked(turn: Turn, key: Key) -> bool:
    """Tell whether a worker was asked to stop after a checkpoint, and not been signalled since."""
    gang = turn.state.gangs[key.job_id, turn.state.workers[key.job_id, key.rank].gang]
    return stopping.is_asked(gang) and gang.attempt == key.attempt


# Workers


def _worker_started(turn: Turn, event: WorkerStarted) -> None:
    worker = turn.state.workers.get((event.key.job_id, event.key.rank))
    if worker is None or worker.key != event.key or worker.state not in LIVE:
        turn.drop(f"{event.key} is superseded")
        return
    if worker.node != event.node:
        turn.drop(f"{event.key} is not expected on node {event.node}")
        return
    if worker.pid == event.pid and worker.state is WorkerState.RUNNING:
        return  # known from the inventory that opened the session
    state = WorkerState.RUNNING if worker.state is WorkerState.STARTING else worker.state
    turn.put(replace(worker, state=state, pid=event.pid, pid_start=event.pid_start))
    _note_start(turn, worker.job_id, event.at)
    turn.tell_worker("WorkerStarted", f"pid {event.pid}", worker)


def _note_start(turn: Turn, job_id: str, at: int) -> None:
    job = turn.state.jobs[job_id]
    if not job.started_ms:
        turn.put(replace(job, started_ms=at))


def _worker_exited(turn: Turn, node: str, key: Key, ended: Exit, progress: Progress, output: Output) -> None:
    turn.send(node, ReleaseWorkers((key,)))
    there = turn.state.nodes[node]
    if key in there.strays:
        turn.put(replace(there, strays=tuple(k for k in there.strays if k != key)))
    worker = turn.state.workers.get((key.job_id, key.rank))
    if worker is None or worker.key != key or worker.node != node or worker.state not in LIVE:
        turn.drop(f"{key} is not expected on node {node}")
        return
    ended = exits.align(ended, there.clock_offset_ns, worker.started_ms, turn.at)
    hung_ms = max(0, ended.at_ms - worker.hang.since_ms) if worker.hang is not None else 0
    ended = replace(ended, hung_ms=hung_ms, message=f"{ended.message}{hangs.because(worker)}")
    before, ignored = worker.state, ""
    worker = replace(worker, exit=ended, progress=progress)
    job, gang = turn.state.jobs[key.job_id], turn.state.gangs[key.job_id, worker.gang]
    finished = job.ending is None and stopping.came_to_its_end(gang, worker, ended, progress)
    if before is WorkerState.STOPPING and not finished:
        state = WorkerState.STOPPED
    elif ended.code == 0 and not ended.signal and ended.kind is not ExitKind.ABANDONED:
        state = WorkerState.SUCCEEDED
    else:
        ignored = exits.ignored_by(turn, worker, output)
        state = WorkerState.SUCCEEDED if ignored else WorkerState.FAILED
    worker = replace(worker, state=state, hang=None)
    turn.put(worker)
    _note_start(turn, key.job_id, worker.started_ms)
    said = blame.describe(worker)
    tally = turn.state.gang_tallies[worker.job_id, worker.gang]
    turn.tell_worker("WorkerExited", said, worker, evidence=exits.evidence(tally, worker, output))
    if ignored:
        turn.tell_worker("ExitIgnored", f"{said}; {ignored} takes that as finished", worker)
    if state is WorkerState.FAILED:
        exits.decide(turn, worker, output, blame.cause(worker))
    elif state is WorkerState.STOPPED and (ended.code or ended.signal):
        stopping.went_wrong(turn, worker)


def _lose_worker(turn: Turn, worker: Worker, cause: str) -> None:
    lost = Exit(code=-1, signal=0, message=cause, at_ms=turn.at, kind=ExitKind.LOST)
    commit = turn.state.gangs[worker.job_id, worker.gang].commit
    progress = account.reached(worker, commit)
    gone = replace(worker, state=WorkerState.LOST, exit=lost, progress=progress, hang=None)
    turn.put(gone)
    turn.tell_worker("WorkerLost", cause, worker)
    job = turn.state.jobs[worker.job_id]
    gang = turn.state.gangs[worker.job_id, worker.gang]
    if job.ending is None and worker.attempt == gang.attempt:
        best = gang.commit.step if gang.commit else -1
        supersede(turn, gang, restart.after_loss(gang, best), f"rank {worker.rank}: {cause}")
    elif job.ending is not None:
        stopping.went_wrong(turn, gone)
