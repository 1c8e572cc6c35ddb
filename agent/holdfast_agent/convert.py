"""proto <-> core: the only translation on the agent's side."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from holdfast import heartbeat
from holdfast.data import shards
from holdfast.v1 import agent_pb2, job_pb2, node_pb2, worker_pb2
from holdfast_agent import asks, core, hangs, verdict, warm
from holdfast_agent.core import Ended, Key
from holdfast_agent.environment import shared_environment
from holdfast_agent.evidence import Evidence
from holdfast_agent.notices import Notice
from holdfast_agent.python_command import python_program
from holdfast_agent.shim import LOG_BYTES

DEFAULT_HANG_FACTOR, DEFAULT_HANG_FLOOR_MS = 10.0, 600_000
"""Where a coordinator says nothing; it says always what it has decided."""
LONGEST_MESSAGE = 1_000
"""Of a report: a sentence. The coordinator keeps no more of it, and this agent may have to hold many."""

LINGER_S = 10.0
"""How long what is preloaded for a job waits for its next worker, beyond the longest backoff."""

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Ask(NamedTuple):
    """A request to stop after a checkpoint."""

    reason: str
    until: float
    """By the event loop's clock, in seconds: SIGTERM comes then."""
    at_step: int | None


def key_from_proto(key: agent_pb2.WorkerKey) -> Key:
    """Read a worker's name. It becomes part of a path: raises ValueError when it can't."""
    return _checked(Key(key.job_id, key.rank, key.attempt))


def stop_asked_from_proto(
    message: agent_pb2.CoordinatorMessage, now: float, listens: Callable[[Key], bool]
) -> asks.StopAsked:
    """Read a request to stop after a checkpoint. Raises ValueError."""
    keys = tuple(map(key_from_proto, message.ask_stop.keys))
    notice = message.ask_stop.notice
    return asks.StopAsked(
        message.epoch,
        keys,
        Ask(
            notice.reason,
            now + notice.within_ms / 1000,
            notice.at_step if notice.HasField("at_step") else None,
        ),
        frozenset(key for key in keys if not listens(key)),
    )


def ask_to_proto(ask: Ask, now: float) -> worker_pb2.WorkerReply:
    """Write a request to stop after a checkpoint for a worker."""
    within_ms = max(0, round((ask.until - now) * 1000))
    notice = worker_pb2.StopNotice(reason=ask.reason, within_ms=within_ms, at_step=ask.at_step)
    return worker_pb2.WorkerReply(stop=notice)


def answer_to_proto(key: Key, answer: worker_pb2.StopAnswer | None) -> agent_pb2.AgentMessage:
    """Write at which step a worker can stop; None: it does not listen for such requests."""
    answered = agent_pb2.StopAnswered(key=key_to_proto(key), answer=answer)
    return agent_pb2.AgentMessage(stop_answered=answered)


def notice_to_proto(notice: Notice, now: float) -> agent_pb2.NodeNotice:
    """Write that the machine is about to go away."""
    within = Duration()
    within.FromMilliseconds(max(0, round((notice.until - now) * 1000)))
    return agent_pb2.NodeNotice(reason=notice.reason, within=within)


def event_from_proto(message: agent_pb2.CoordinatorMessage) -> core.Event | None:
    """Read what the coordinator says to the core; None for what is the shell's business. Raises ValueError."""
    epoch = message.epoch
    match message.WhichOneof("message"):
        case "welcome":
            return core.Welcomed(epoch)
        case "start_workers":
            command = message.start_workers
            return core.StartCommanded(
                epoch,
                tuple(
                    core.Start(_checked(Key(command.job_id, a.rank, a.attempt)), (command, a))
                    for a in command.assignments
                ),
            )
        case "stop_workers":
            stop = message.stop_workers
            if stop.force:
                how = core.Stop.FORCE
            else:
                how = core.Stop.RESTART if stop.restart else core.Stop.GRACE
            return core.StopCommanded(epoch, tuple(map(key_from_proto, stop.keys)), how)
        case "release_workers":
            return core.ReleaseCommanded(epoch, tuple(map(key_from_proto, message.release_workers.keys)))
        case "ack_commit":
            ack = message.ack_commit
            publish = ack.publish if ack.HasField("publish") else None
            return core.CommitAcked(
                epoch, ack.job_id, ack.attempt, ack.step, tuple(ack.ranks), publish, tuple(ack.drop)
            )
        case "refuse_shard":
            refused = message.refuse_shard
            return core.ShardRefused(epoch, key_from_proto(refused.key), refused.step, refused.reason)
        case "note_report":
            noted = message.note_report
            return core.ReportNoted(epoch, key_from_proto(noted.key), noted.kind, noted.step)
        case "forget_job":
            job_id = message.forget_job.job_id
            _checked(Key(job_id, 0, 1))
            return core.JobForgotten(epoch, job_id)
        case _:
            return None


def started_to_proto(worker: core.Worker) -> agent_pb2.AgentMessage:
    """Write that a worker runs."""
    started = agent_pb2.WorkerStarted(
        key=key_to_proto(worker.key), pid=worker.pid, pid_start_time=worker.pid_start
    )
    return agent_pb2.AgentMessage(worker_started=started)


def ended_to_proto(worker: core.Worker) -> agent_pb2.AgentMessage:
    """Write that a worker has ended."""
    assert worker.ended is not None
    ended = agent_pb2.WorkerExited(key=key_to_proto(worker.key), exit=_exit(worker.ended))
    return agent_pb2.AgentMessage(worker_exited=ended)


def prepared_to_proto(key: Key, shard: core.Shard) -> agent_pb2.AgentMessage:
    """Write that a shard is durable."""
    prepared = agent_pb2.ShardPrepared(key=key_to_proto(key), step=shard.step, shard=shard.content)
    return agent_pb2.AgentMessage(shard_prepared=prepared)


def report_from_proto(report: worker_pb2.Report) -> core.Report:
    """Read what a worker reports of a checkpoint. Raises ValueError when no coordinator could make anything of it."""
    if report.kind not in worker_pb2.Report.Kind.values() or not report.kind:
        raise ValueError(f"a report of kind {report.kind} is none that this agent knows")
    report.message = report.message[:LONGEST_MESSAGE]
    return core.Report(report.kind, report.step, report)


def reported_to_proto(key: Key, report: core.Report) -> agent_pb2.AgentMessage:
    """Write what became of a checkpoint."""
    reported = agent_pb2.CheckpointReported(key=key_to_proto(key), report=report.content)
    return agent_pb2.AgentMessage(checkpoint_reported=reported)


def hang_policy_to_disk(policy: job_pb2.HangPolicy) -> dict[str, Any] | None:
    """Write which limits hold for a worker, so that the agent after this one finds them; None: none."""
    if policy.action == job_pb2.HANG_ACTION_OFF:
        return None
    return {
        "limits_ms": {section: limit.ToMilliseconds() for section, limit in policy.limits.items()},
        "factor": policy.factor if policy.HasField("factor") else DEFAULT_HANG_FACTOR,
        "floor_ms": policy.floor.ToMilliseconds() if policy.HasField("floor") else DEFAULT_HANG_FLOOR_MS,
    }


def hang_policy_from_disk(found: dict[str, Any] | None) -> hangs.Policy | None:
    """Read which limits hold for a worker."""
    if found is None:
        return None
    limits = {section: limit * 10**6 for section, limit in found["limits_ms"].items()}
    return hangs.Policy(limits, found["factor"], found["floor_ms"] * 10**6)


def hung_to_proto(hung: hangs.Hung, found: Evidence) -> agent_pb2.WorkerHung:
    """Write that a worker hangs."""
    return agent_pb2.WorkerHung(
        key=key_to_proto(hung.key),
        since_ns=hung.since_ns,
        section=hung.section,
        step=hung.step,
        silent=_from_ns(hung.silent_ns),
        limit=_from_ns(hung.limit_ns),
        learned=hung.learned,
        stopped=found.stopped,
        where=found.where,
        evidence=found.text,
    )


def moved_to_proto(moved: hangs.Moved) -> agent_pb2.WorkerHung:
    """Write that a worker moves again."""
    return agent_pb2.WorkerHung(
        key=key_to_proto(moved.key),
        since_ns=moved.since_ns,
        over=True,
        section=moved.section,
        step=moved.step,
        silent=_from_ns(moved.silent_ns),
    )


def record_to_proto(worker: core.Worker) -> agent_pb2.WorkerRecord:
    """Write a worker for the inventory."""
    return agent_pb2.WorkerRecord(
        key=key_to_proto(worker.key),
        pid=worker.pid,
        pid_start_time=worker.pid_start,
        exit=_exit(worker.ended) if worker.ended is not None else None,
    )


def key_to_proto(key: Key) -> agent_pb2.WorkerKey:
    """Write a worker's name."""
    return agent_pb2.WorkerKey(job_id=key.job_id, rank=key.rank, attempt=key.attempt)


def ended_from_disk(
    found: dict[str, Any],
    how: verdict.Verdict,
    page: heartbeat.Reading,
    *,
    line: str = "",
    tail: str = "",
    ended_ns: int = 0,
    matched: Sequence[int] = (),
) -> Ended:
    """Read what a shim wrote, with what was found out beside it."""
    at = Timestamp()
    at.FromMilliseconds(found["at_ms"])
    status = job_pb2.ExitStatus(
        code=found["code"], signal=found["signal"], message=how.message, at=at, kind=how.kind, line=line
    )
    ended = agent_pb2.Exit(
        status=status,
        never_ran=bool(found.get("failed")),
        tail=tail,
        ended_ns=ended_ns,
        matched_rules=matched,
    )
    return Ended(ended, progress_to_proto(page))


def progress_to_proto(page: heartbeat.Reading) -> agent_pb2.Progress:
    """Write what a heartbeat page says."""
    return agent_pb2.Progress(
        step=page.step,
        steps_done=page.steps_done,
        stepping=_duration(page.stepping_seconds),
        section=page.section,
        metrics=page.metrics,
        setup=_duration(page.setup_seconds),
        checkpoint=_duration(page.checkpoint_seconds),
        other=_duration(page.other_seconds),
        aside=_duration(page.aside_seconds),
        total_steps=page.total_steps,
        waiting=_duration(page.waiting_seconds),
    )


def resume_record(command: agent_pb2.StartWorkers, rank: int) -> worker_pb2.CommitRecord | None:
    """Find what a rank resumes from: the gang's record, or its own."""
    for record in command.resume:
        if not record.HasField("rank") or record.rank == rank:
            return record
    return None


def datasets_to_disk(spec: job_pb2.JobSpec) -> bytes:
    """Write the data sets of a job for its workers."""
    return shards.encode_declared(
        [
            shards.Declared(
                each.name,
                shards.DataIndex(
                    each.uri,
                    tuple(shards.ShardInfo(s.file, s.samples, s.size_bytes, s.digest) for s in each.shards),
                ),
            )
            for each in spec.datasets
        ]
    )


def warmth(spec: job_pb2.JobSpec, start: dict[str, Any]) -> warm.Warmth:
    """Read how the workers of a job start warm; `start` is the content of the start.json of any of them."""
    linger_s = spec.restart.backoff_cap.ToMilliseconds() / 1000 + LINGER_S
    program = python_program(start["argv"])
    if isinstance(program, str):
        return warm.Warmth({"preload": list(spec.preload)}, spec.spares, linger_s, program)
    plan = {
        "argv": start["argv"],
        "env": shared_environment(start["env"]),
        "cwd": start["cwd"],
        "probe": [*program.interpreter, "-c", ""],
        "runs": list(program.runs),
        "preload": list(spec.preload),
    }
    return warm.Warmth(plan, spec.spares, linger_s)


def preloads_to_proto(preloads: Iterable[warm.Preload]) -> agent_pb2.Preloads:
    """Write what is preloaded. Memory in whole mebibytes, so that it does not change with every heartbeat."""
    return agent_pb2.Preloads(
        preloads=[
            node_pb2.Preload(
                job_id=p.job_id,
                modules=p.modules,
                pids=p.pids,
                memory_bytes=p.memory_bytes >> 20 << 20,
                started=p.started,
                forks=p.forks,
                reason=p.reason,
            )
            for p in preloads
        ]
    )


def logs_to_disk(spec: job_pb2.JobSpec, assignment: agent_pb2.Assignment) -> dict[str, Any]:
    """What start.json says of logs: each worker that starts here has an equal share of what its job may keep."""
    most = spec.logs.keep_bytes if spec.logs.HasField("keep_bytes") else LOG_BYTES
    return {
        "job_log_bytes": most,
        "log_bytes": most // max(1, assignment.local_world_size),
        "log_metrics": dict(spec.log_metrics),
    }


def log_patterns(spec: job_pb2.JobSpec) -> list[tuple[int, str]]:
    """What the rules of a job look for in its output, by their numbers from 0."""
    return [(number, rule.log) for number, rule in enumerate(spec.rules) if rule.log]


def restart_grace_ms(spec: job_pb2.JobSpec) -> int:
    """For those who have to go because another rank died. A coordinator says it always; else it is as for all."""
    grace = spec.restart.grace if spec.restart.HasField("grace") else spec.stop_grace
    return grace.ToMilliseconds()


def scope_name(spec: job_pb2.JobSpec) -> str:
    """The restart scope as workers are told it."""
    return "rank" if spec.restart.scope == job_pb2.RESTART_SCOPE_RANK else "gang"


def _duration(seconds: float) -> Duration:
    made = Duration()
    made.FromMicroseconds(int(seconds * 1e6))
    return made


def _from_ns(ns: int) -> Duration:
    made = Duration()
    made.FromNanoseconds(ns)
    return made


def _exit(ended: Ended) -> agent_pb2.Exit:
    found = agent_pb2.Exit()
    found.CopyFrom(ended.exit)
    if ended.progress is not None:
        found.progress.CopyFrom(ended.progress)
    return found


def _checked(key: Key) -> Key:
    if not _JOB_ID.fullmatch(key.job_id) or key.rank < 0 or key.attempt < 1:
        raise ValueError(f"{key} names no worker")
    return key
