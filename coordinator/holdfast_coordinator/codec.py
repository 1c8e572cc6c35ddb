"""proto <-> core: the only translation.

`ValueError` means that a message says something that no version of the other side would say.
"""

import itertools
import math
from collections.abc import Iterable, Mapping

from holdfast.v1 import agent_pb2, job_pb2, node_pb2, worker_pb2
from holdfast_coordinator import codec_hangs, rule_codec
from holdfast_coordinator.codec_values import LONGEST_MESSAGE, MOST_STEPS, key_from_proto
from holdfast_coordinator.codec_values import bounded as _bounded
from holdfast_coordinator.codec_values import duration as _duration
from holdfast_coordinator.codec_values import timestamp as _timestamp
from holdfast_coordinator.codec_values import to_ms as _to_ms
from holdfast_coordinator.core import effects, events, jobspec, model
from holdfast_coordinator.core.account import Summary, last_committed
from holdfast_coordinator.core.story import Story

LONGEST_REASON = 200
"""Why a node is cordoned: it is told to every program there, and shown in tables."""
MOST_METRICS = 64
"""Of a shard: its commit is written into the store with them."""

_MODES = {
    job_pb2.METRIC_MODE_UNSPECIFIED: jobspec.Mode.MIN,
    job_pb2.METRIC_MODE_MIN: jobspec.Mode.MIN,
    job_pb2.METRIC_MODE_MAX: jobspec.Mode.MAX,
}
_REPORTS = {kind: worker_pb2.Report.Kind.Value(f"KIND_{kind.name}") for kind in model.ReportKind}
_REPORT_KINDS = {number: kind for kind, number in _REPORTS.items()}
_SCOPES = {
    job_pb2.RESTART_SCOPE_UNSPECIFIED: jobspec.Scope.GANG,
    job_pb2.RESTART_SCOPE_GANG: jobspec.Scope.GANG,
    job_pb2.RESTART_SCOPE_RANK: jobspec.Scope.RANK,
}
_JOB_STATES = {state: job_pb2.JobState.Value(f"JOB_STATE_{state.name}") for state in model.JobState}
_WORKER_STATES = {
    state: job_pb2.WorkerState.Value(f"WORKER_STATE_{state.name}") for state in model.WorkerState
}
_NODE_STATES = {state: node_pb2.NodeState.Value(f"NODE_STATE_{state.name}") for state in model.NodeState}
_DESIRED = {state: job_pb2.DesiredState.Value(f"DESIRED_STATE_{state.name}") for state in model.Desired}

Outgoing = effects.Command | agent_pb2.OpenLog | agent_pb2.Pace | agent_pb2.Welcome
"""What goes out on a session: the core's commands, and what the shell says of its own accord."""

_WRITTEN_KEPT = 16
_written: dict[int, tuple[tuple[jobspec.DataSet, ...], list[job_pb2.DataSet]]] = {}
"""The data sets that were written last; by identity, since to compare them takes long as well."""

JOB_STATES = {number: state for state, number in _JOB_STATES.items()}
"""Proto number to core state."""


# Specs


def spec_from_proto(spec: job_pb2.JobSpec) -> jobspec.JobSpec:
    """Read a spec, with the defaults where fields are absent."""
    restart, default = spec.restart, jobspec.RestartPolicy()
    has = restart.HasField
    stop_grace_ms = _to_ms(spec.stop_grace) if spec.HasField("stop_grace") else jobspec.DEFAULT_STOP_GRACE_MS
    return jobspec.JobSpec(
        name=spec.name,
        command=tuple(spec.command),
        world_size=spec.world_size,
        env=dict(spec.env),
        working_dir=spec.working_dir,
        resources=jobspec.Resources(spec.resources.cpus, spec.resources.memory_bytes, spec.resources.gpus),
        restart=jobspec.RestartPolicy(
            scope=_SCOPES.get(restart.scope, jobspec.Scope.GANG),
            backoff_ms=_to_ms(restart.backoff) if has("backoff") else default.backoff_ms,
            backoff_cap_ms=_to_ms(restart.backoff_cap) if has("backoff_cap") else default.backoff_cap_ms,
            jitter=restart.jitter if has("jitter") else default.jitter,
            budget=restart.budget if has("budget") else default.budget,
            window_ms=_to_ms(restart.window),
            no_progress_limit=(
                restart.no_progress_limit if has("no_progress_limit") else default.no_progress_limit
            ),
            grace_ms=_to_ms(restart.grace) if has("grace") else min(default.grace_ms, stop_grace_ms),
        ),
        stop_grace_ms=stop_grace_ms,
        checkpoint_uri=spec.checkpoint_uri,
        labels=dict(spec.labels),
        datasets=tuple(
            jobspec.DataSet(
                each.name,
                each.uri,
                tuple(jobspec.DataShard(s.file, s.samples, s.size_bytes, s.digest) for s in each.shards),
            )
            for each in spec.datasets
        ),
        retention=_retention(spec.retention) if spec.HasField("retention") else None,
        resume_from=spec.resume_from,
        rules=tuple(map(rule_codec.rule_from_proto, spec.rules)),
        log_bytes=spec.logs.keep_bytes if spec.logs.HasField("keep_bytes") else jobspec.DEFAULT_LOG_BYTES,
        log_metrics=dict(spec.log_metrics),
        hang=codec_hangs.hang_policy_from_proto(spec.hang),
        stragglers=codec_hangs.straggler_policy_from_proto(spec.stragglers),
        preload=tuple(spec.preload),
        spares=spec.spares,
    )


def _retention(policy: job_pb2.RetentionPolicy) -> jobspec.RetentionPolicy:
    default = jobspec.RetentionPolicy()
    return jobspec.RetentionPolicy(
        keep_last=policy.keep_last if policy.HasField("keep_last") else default.keep_last,
        keep_every=policy.keep_every,
        best=policy.best,
        metric=policy.metric,
        mode=_MODES.get(policy.mode, jobspec.Mode.MIN),
    )


def spec_to_proto(spec: jobspec.JobSpec, *, datasets: bool = True) -> job_pb2.JobSpec:
    """Write a spec, every default spelt out. Its data sets can be long, and are left away where they are not read."""
    restart = spec.restart
    return job_pb2.JobSpec(
        name=spec.name,
        command=spec.command,
        world_size=spec.world_size,
        env=spec.env,
        working_dir=spec.working_dir,
        resources=job_pb2.Resources(
            cpus=spec.resources.cpus,
            memory_bytes=spec.resources.memory_bytes,
            gpus=spec.resources.gpus,
        ),
        restart=job_pb2.RestartPolicy(
            scope=job_pb2.RestartScope.Value(f"RESTART_SCOPE_{restart.scope.name}"),
            backoff=_duration(restart.backoff_ms),
            backoff_cap=_duration(restart.backoff_cap_ms),
            jitter=restart.jitter,
            budget=restart.budget,
            window=_duration(restart.window_ms) if restart.window_ms else None,
            no_progress_limit=restart.no_progress_limit,
            grace=_duration(restart.grace_ms),
        ),
        stop_grace=_duration(spec.stop_grace_ms),
        checkpoint_uri=spec.checkpoint_uri,
        labels=spec.labels,
        datasets=_datasets(spec.datasets) if datasets else (),
        retention=_retention_to_proto(spec.retention) if spec.retention is not None else None,
        resume_from=spec.resume_from,
        rules=map(rule_codec.rule_to_proto, spec.rules),
        logs=job_pb2.LogPolicy(keep_bytes=spec.log_bytes),
        log_metrics=spec.log_metrics,
        hang=codec_hangs.hang_policy_to_proto(spec.hang),
        stragglers=codec_hangs.straggler_policy_to_proto(spec.stragglers),
        preload=spec.preload,
        spares=spec.spares,
    )


def _retention_to_proto(policy: jobspec.RetentionPolicy) -> job_pb2.RetentionPolicy:
    mode = job_pb2.MetricMode.Value(f"METRIC_MODE_{policy.mode.name}")
    return job_pb2.RetentionPolicy(
        keep_last=policy.keep_last,
        keep_every=policy.keep_every,
        best=policy.best,
        metric=policy.metric,
        mode=mode,
    )


def _datasets(datasets: tuple[jobspec.DataSet, ...]) -> list[job_pb2.DataSet]:
    """Written once for all agents of a job: 10,000 shards take 30 ms, and there may be 1,000 agents to tell."""
    held = _written.get(id(datasets))
    if held is not None and held[0] is datasets:
        return held[1]
    written = [_dataset(found) for found in datasets]
    if written:
        if len(_written) == _WRITTEN_KEPT:
            _written.clear()
        _written[id(datasets)] = datasets, written
    return written


def _dataset(found: jobspec.DataSet) -> job_pb2.DataSet:
    shards = [
        job_pb2.DataShard(file=s.file, samples=s.samples, size_bytes=s.size_bytes, digest=s.digest)
        for s in found.shards
    ]
    return job_pb2.DataSet(name=found.name, uri=found.uri, shards=shards)


# What users read


def job_to_proto(
    job: model.Job,
    gangs: Iterable[model.Gang],
    workers: Iterable[model.Worker],
    running: Mapping[int, model.Progress],
    *,
    datasets: bool = True,
) -> job_pb2.Job:
    """Write a job. `running` holds the newest progress by rank; `datasets` is as in `spec_to_proto`."""
    by_index = {gang.index: gang for gang in gangs}
    return job_pb2.Job(
        id=job.id,
        spec=spec_to_proto(job.spec, datasets=datasets),
        desired=_DESIRED[job.desired],
        state=_JOB_STATES[job.state],
        reason=job.reason,
        attempt=max(gang.attempt for gang in by_index.values()),
        restarts=sum(gang.restarts for gang in by_index.values()),
        last_committed_step=last_committed(by_index.values()),
        created_at=_timestamp(job.created_ms),
        started_at=_timestamp(job.started_ms),
        finished_at=_timestamp(job.finished_ms),
        workers=[_worker(worker, by_index[worker.gang], running) for worker in workers],
        degraded=any(gang.commit.degraded for gang in by_index.values() if gang.commit),
    )


def _worker(worker: model.Worker, gang: model.Gang, running: Mapping[int, model.Progress]) -> job_pb2.Worker:
    progress = running.get(worker.rank, worker.progress)
    return job_pb2.Worker(
        rank=worker.rank,
        node=worker.node,
        pid=worker.pid,
        state=_WORKER_STATES[worker.state],
        attempt=worker.attempt,
        step=_step(worker, gang, progress),
        section=progress.section,
        metrics=progress.metrics,
        last_exit=rule_codec.exit_to_proto(worker.exit) if worker.exit else None,
        restarts=gang.restarts,
        resume_step=worker.resume_step,
        started_at=_timestamp(worker.started_ms),
        hang=codec_hangs.hang_to_proto(worker.hang) if worker.hang is not None else None,
        straggler_score=worker.straggler.score,
        strikes=worker.straggler.strikes,
    )


def _step(worker: model.Worker, gang: model.Gang, progress: model.Progress) -> int | None:
    """How far a worker is: what its last heartbeat said, unless it has committed something further since."""
    commit = gang.commit
    if commit is None or commit.attempt != worker.attempt or worker.state not in model.LIVE:
        return progress.step
    return commit.step if progress.step is None else max(commit.step, progress.step)


def node_to_proto(
    node: model.Node, slots_used: int, heard_ms: int, preloads: Iterable[node_pb2.Preload] = ()
) -> node_pb2.Node:
    """Write a node. `preloads` are as its agent said them."""
    return node_pb2.Node(
        name=node.name,
        state=_NODE_STATES[node.state],
        reason=node.reason,
        address=node.address,
        capacity=node_pb2.Capacity(
            slots=node.capacity.slots,
            cpus=node.capacity.cpus,
            memory_bytes=node.capacity.memory_bytes,
            gpus=node.capacity.gpus,
        ),
        slots_used=slots_used,
        labels=node.labels,
        joined_at=_timestamp(node.joined_ms),
        last_heard_at=_timestamp(heard_ms),
        agent_version=node.agent_version,
        cordoned=node.cordon is not None,
        cordon_reason=node.cordon.reason if node.cordon else "",
        draining=node.cordon is not None and node.cordon.draining,
        drained=node.cordon is not None and node.cordon.drained,
        drain_by=_timestamp(node.cordon.drain_by_ms) if node.cordon else None,
        preloads=preloads,
    )


def checkpoint_to_proto(commit: model.Commit, job: model.Job, gang: model.Gang) -> job_pb2.Checkpoint:
    """Write a committed checkpoint of a gang."""
    return job_pb2.Checkpoint(
        job_id=commit.job_id,
        step=commit.step,
        attempt=commit.attempt,
        rank=commit.rank,
        committed_at=_timestamp(commit.at_ms),
        size_bytes=sum(shard.size_bytes for shard in commit.shards),
        shard_count=len(commit.shards),
        uri=job.spec.checkpoint_uri,
        degraded=commit.degraded,
        pin=next((pin.name for pin in gang.pins if pin.step == commit.step), ""),
        metrics=commit.metrics,
        world_size=commit.world_size,
    )


def event_to_proto(entry: model.Entry) -> job_pb2.Event:
    """Write a line of the timeline."""
    return job_pb2.Event(
        seq=entry.seq,
        at=_timestamp(entry.at_ms),
        job_id=entry.job_id,
        node=entry.node,
        rank=entry.rank,
        attempt=entry.attempt,
        kind=entry.kind,
        message=entry.message,
        evidence=entry.evidence,
        outcome=entry.outcome,
    )


def story_to_proto(summary: job_pb2.JobSummary, story: Story) -> job_pb2.JobStory:
    """Write the story of a job."""
    return job_pb2.JobStory(
        summary=summary,
        incidents=[
            job_pb2.Incident(
                at=_timestamp(each.at_ms),
                attempt=each.attempt,
                rank=each.rank,
                node=each.node,
                cause=each.cause,
                fell=each.fell,
                decided=each.decided,
                cost=each.cost,
                evidence=each.evidence,
                of_rank=each.of_rank,
            )
            for each in story.incidents
        ],
        left_out=story.left_out,
        notes=[event_to_proto(note) for note in story.notes],
    )


def summary_to_proto(job: model.Job, summary: Summary) -> job_pb2.JobSummary:
    """Write a job in numbers."""
    return job_pb2.JobSummary(
        job_id=job.id,
        name=job.spec.name,
        state=_JOB_STATES[job.state],
        reason=job.reason,
        world_size=job.spec.world_size,
        restarts=summary.restarts,
        steps=summary.steps,
        last_committed_step=summary.last_committed_step,
        steps_redone=summary.steps_redone,
        steps_per_second=summary.steps_per_second,
        elapsed=_duration(summary.elapsed_ms),
        goodput=summary.goodput,
        time_seconds={part: ms / 1000 for part, ms in summary.time_ms.items()},
        total_steps=summary.total_steps,
        metrics=summary.metrics,
        time_left=_duration(summary.left_ms) if summary.left_ms is not None else None,
        degraded_commits=summary.degraded_commits,
        degraded=summary.degraded,
    )


# What agents say


def joined_from_proto(hello: agent_pb2.Hello, *, session: str, at: int, at_ns: int = 0) -> events.AgentJoined:
    """Read the Hello that opens a session. `at_ns` is `at` in nanoseconds."""
    capacity = hello.capacity
    return events.AgentJoined(
        at=at,
        node=hello.node,
        session=session,
        instance_id=hello.instance_id,
        address=hello.address,
        capacity=model.Capacity(capacity.slots, capacity.cpus, capacity.memory_bytes, capacity.gpus),
        inventory=tuple(_found(record) for record in hello.inventory),
        boot_id=hello.boot_id,
        ports=tuple(hello.ports),
        labels=dict(hello.labels),
        agent_version=hello.agent_version,
        clock_offset_ns=rule_codec.clock_offset(hello, at_ns or at * 1_000_000),
        notice=_notice(hello.notice) if hello.HasField("notice") else None,
    )


def _notice(notice: agent_pb2.NodeNotice) -> events.Notice:
    return events.Notice(notice.reason[:LONGEST_REASON], _to_ms(notice.within))


def _found(record: agent_pb2.WorkerRecord) -> events.Found:
    ended = record.HasField("exit")
    return events.Found(
        key=key_from_proto(record.key),
        pid=record.pid,
        pid_start=_bounded(record.pid_start_time),
        exit=rule_codec.exit_from_proto(record.exit) if ended else None,
        progress=progress_from_proto(record.exit.progress) if ended else model.Progress(),
        output=rule_codec.output_from_proto(record.exit) if ended else model.Output(),
    )


def event_from_proto(
    message: agent_pb2.AgentMessage, *, node: str, session: str, at: int
) -> events.AgentEvent:
    """Read what an agent says after its Hello; the engine takes heartbeats as they are."""
    match message.WhichOneof("message"):
        case "worker_started":
            started = message.worker_started
            key = key_from_proto(started.key)
            return events.WorkerStarted(at, node, session, key, started.pid, _bounded(started.pid_start_time))
        case "worker_exited":
            ended = message.worker_exited.exit
            return events.WorkerExited(
                at,
                node,
                session,
                key_from_proto(message.worker_exited.key),
                rule_codec.exit_from_proto(ended),
                progress_from_proto(ended.progress),
                rule_codec.output_from_proto(ended),
            )
        case "shard_prepared":
            prepared = message.shard_prepared
            shard = shard_from_proto(prepared.shard)
            key = key_from_proto(prepared.key)
            return events.ShardPrepared(at, node, session, key, prepared.step, shard)
        case "ports_offered":
            return events.PortsOffered(at, node, session, tuple(message.ports_offered.ports))
        case "node_notice":
            return events.NodeNoticed(at, node, session, _notice(message.node_notice))
        case "stop_answered":
            key, answer = key_from_proto(message.stop_answered.key), message.stop_answered.answer
            listens = message.stop_answered.HasField("answer")
            step = min(max(0, answer.step), MOST_STEPS) if listens else None
            return events.StopAnswered(at, node, session, key, step, answer.leaves)
        case "checkpoint_reported":
            return _reported(message.checkpoint_reported, node=node, session=session, at=at)
        case "worker_hung":
            return codec_hangs.hung_from_proto(message.worker_hung, node=node, session=session, at=at)
        case other:
            raise ValueError(f"an agent does not say {other} here")


def _reported(
    said: agent_pb2.CheckpointReported, *, node: str, session: str, at: int
) -> events.CheckpointReported:
    report = said.report
    kind = _REPORT_KINDS.get(report.kind)
    if kind is None:
        raise ValueError(f"a report of kind {report.kind} is none that this coordinator knows")
    message = report.message[:LONGEST_MESSAGE]
    return events.CheckpointReported(at, node, session, key_from_proto(said.key), kind, report.step, message)


def progress_from_proto(progress: agent_pb2.Progress) -> model.Progress:
    """Read a worker's progress."""
    return model.Progress(
        step=min(progress.step, MOST_STEPS) if progress.HasField("step") else None,
        steps_done=min(max(0, progress.steps_done), MOST_STEPS),
        stepping_ms=_to_ms(progress.stepping),
        section=progress.section,
        metrics=dict(progress.metrics),
        setup_ms=_to_ms(progress.setup),
        checkpoint_ms=_to_ms(progress.checkpoint),
        other_ms=_to_ms(progress.other),
        aside_ms=_to_ms(progress.aside),
        total_steps=min(max(0, progress.total_steps), MOST_STEPS),
        waiting_ms=_to_ms(progress.waiting),
    )


def shard_from_proto(shard: worker_pb2.Shard) -> model.Shard:
    """Read a shard. Metrics that are no numbers are left out: no JSON column holds them."""
    numbers = {name: value for name, value in sorted(shard.metrics.items()) if math.isfinite(value)}
    return model.Shard(
        rank=shard.rank,
        file=shard.file,
        size_bytes=shard.size_bytes,
        digest=shard.digest,
        cursor=shard.cursor,
        metrics=dict(itertools.islice(numbers.items(), MOST_METRICS)),
        local_only=shard.local_only,
    )


# What agents are told


def command_to_proto(command: Outgoing, *, epoch: int) -> agent_pb2.CoordinatorMessage:
    """Write what goes out on a session."""
    message = agent_pb2.CoordinatorMessage(epoch=epoch)
    match command:
        case agent_pb2.OpenLog():
            message.open_log.CopyFrom(command)
        case agent_pb2.Pace():
            message.pace.CopyFrom(command)
        case agent_pb2.Welcome():
            message.welcome.CopyFrom(command)
        case effects.StartWorkers():
            message.start_workers.CopyFrom(_start(command))
            message.start_workers.spec.datasets.extend(_datasets(command.spec.datasets))
        case effects.StopWorkers(keys, force, reason, restart):
            message.stop_workers.keys.extend(map(key_to_proto, keys))
            message.stop_workers.force = force
            message.stop_workers.reason = reason
            message.stop_workers.restart = restart
        case effects.AskStop(keys, reason, within_ms, step):
            message.ask_stop.keys.extend(map(key_to_proto, keys))
            notice = worker_pb2.StopNotice(reason=reason, within_ms=within_ms, at_step=step)
            message.ask_stop.notice.CopyFrom(notice)
        case effects.ReleaseWorkers(keys):
            message.release_workers.keys.extend(map(key_to_proto, keys))
        case effects.AckCommit():
            ack = message.ack_commit
            ack.job_id, ack.attempt, ack.step = command.job_id, command.attempt, command.step
            ack.ranks.extend(command.ranks)
            ack.drop.extend(command.drop)
            if command.publish is not None:
                _write_record(ack.publish, command.publish)
        case effects.RefuseShard(key, step, reason):
            message.refuse_shard.CopyFrom(
                agent_pb2.RefuseShard(key=key_to_proto(key), step=step, reason=reason)
            )
        case effects.NoteReport(key, kind, step):
            message.note_report.CopyFrom(
                agent_pb2.NoteReport(key=key_to_proto(key), kind=_REPORTS[kind], step=step)
            )
        case effects.NoteHang(key, since_ns, over):
            message.note_hang.CopyFrom(
                agent_pb2.NoteHang(key=key_to_proto(key), since_ns=since_ns, over=over)
            )
        case effects.ForgetJob(job_id):
            message.forget_job.job_id = job_id
        case effects.JobOver(job_id):
            message.job_over.job_id = job_id
        case effects.Welcome() | effects.CloseSession():
            raise ValueError(f"{command} is the session's own business")
    return message


def pace_to_proto(heartbeat_interval_ms: int, lost_after_ms: int) -> agent_pb2.Pace:
    """Write how often an agent is to be heard."""
    return agent_pb2.Pace(
        heartbeat_interval=_duration(heartbeat_interval_ms), lost_after=_duration(lost_after_ms)
    )


def key_to_proto(key: model.Key) -> agent_pb2.WorkerKey:
    """Write a worker's name."""
    return agent_pb2.WorkerKey(job_id=key.job_id, rank=key.rank, attempt=key.attempt)


def _start(command: effects.StartWorkers) -> agent_pb2.StartWorkers:
    return agent_pb2.StartWorkers(
        job_id=command.job_id,
        spec=spec_to_proto(command.spec, datasets=False),
        assignments=[
            agent_pb2.Assignment(
                rank=a.rank,
                attempt=a.attempt,
                local_rank=a.local_rank,
                local_world_size=a.local_world_size,
                group_rank=a.group_rank,
                gpus=a.gpus,
                restart_count=a.restart_count,
            )
            for a in command.assignments
        ],
        master_addr=command.master_addr,
        master_port=command.master_port,
        resume=[record_to_proto(commit) for commit in command.resume],
    )


def record_to_proto(commit: model.Commit) -> worker_pb2.CommitRecord:
    """Write a commit as whoever publishes its manifest gets it."""
    record = worker_pb2.CommitRecord()
    _write_record(record, commit)
    return record


def _write_record(record: worker_pb2.CommitRecord, commit: model.Commit) -> None:
    # In place, and no field that is as it is anyway: a rank waits for this, and a gang has 1,000s of shards.
    record.job_id, record.step, record.attempt = commit.job_id, commit.step, commit.attempt
    record.world_size, record.committed_at_ms = commit.world_size, commit.at_ms
    if commit.rank is not None:
        record.rank = commit.rank
    add = record.shards.add
    for shard in commit.shards:
        proto = add()
        proto.rank = shard.rank
        proto.file = shard.file
        proto.size_bytes = shard.size_bytes
        proto.digest = shard.digest
        proto.cursor = shard.cursor
        if shard.metrics:
            proto.metrics.update(shard.metrics)
        if shard.local_only:
            proto.local_only = True
