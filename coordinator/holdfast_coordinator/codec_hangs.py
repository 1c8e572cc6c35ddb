"""proto <-> core: hangs and stragglers."""

from holdfast.v1 import agent_pb2, job_pb2
from holdfast_coordinator.codec_values import (
    LONGEST_MESSAGE,
    MOST_STEPS,
    bounded,
    duration,
    key_from_proto,
    timestamp,
    to_ms,
)
from holdfast_coordinator.core import events, model

LONGEST_SECTION = 32
"""Characters, as in a heartbeat page."""
LONGEST_EVIDENCE = 16 * 1024

_ACTIONS = {action: job_pb2.HangAction.Value(f"HANG_ACTION_{action.name}") for action in model.HangAction}
_HANG_ACTIONS = {number: action for action, number in _ACTIONS.items()}


def hang_policy_from_proto(policy: job_pb2.HangPolicy) -> model.HangPolicy:
    """Read a policy, with the defaults where fields are absent."""
    default = model.HangPolicy()
    return model.HangPolicy(
        action=_HANG_ACTIONS.get(policy.action, default.action),
        limits_ms={section: to_ms(limit) for section, limit in sorted(policy.limits.items())},
        factor=policy.factor if policy.HasField("factor") else default.factor,
        floor_ms=to_ms(policy.floor) if policy.HasField("floor") else default.floor_ms,
    )


def straggler_policy_from_proto(policy: job_pb2.StragglerPolicy) -> model.StragglerPolicy:
    """Read a policy, with the defaults where fields are absent."""
    default = model.StragglerPolicy()
    return model.StragglerPolicy(
        threshold=policy.threshold if policy.HasField("threshold") else default.threshold,
        strikes=policy.strikes,
    )


def hang_policy_to_proto(policy: model.HangPolicy) -> job_pb2.HangPolicy:
    """Write a policy, every default spelt out."""
    return job_pb2.HangPolicy(
        action=_ACTIONS[policy.action],
        limits={section: duration(limit) for section, limit in policy.limits_ms.items()},
        factor=policy.factor,
        floor=duration(policy.floor_ms),
    )


def straggler_policy_to_proto(policy: model.StragglerPolicy) -> job_pb2.StragglerPolicy:
    """Write a policy, every default spelt out."""
    return job_pb2.StragglerPolicy(threshold=policy.threshold, strikes=policy.strikes)


def hang_to_proto(hang: model.Hang) -> job_pb2.Hang:
    """Write how a worker hangs."""
    return job_pb2.Hang(
        section=hang.section,
        since=timestamp(hang.since_ms),
        limit=duration(hang.limit_ms),
        learned=hang.learned,
        stopped=hang.stopped,
        where=hang.where,
    )


def hung_from_proto(said: agent_pb2.WorkerHung, *, node: str, session: str, at: int) -> events.WorkerHung:
    """Read that a worker hangs, or moves again."""
    silent = max(0, to_ms(said.silent))
    hang = model.Hang(
        since_ns=bounded(said.since_ns),
        since_ms=max(1, at - silent),
        section=said.section[:LONGEST_SECTION],
        step=min(said.step, MOST_STEPS) if said.HasField("step") else None,
        silent_ms=silent,
        limit_ms=to_ms(said.limit),
        learned=said.learned,
        stopped=said.stopped,
        where=said.where[:LONGEST_MESSAGE],
    )
    evidence = said.evidence.encode()[-LONGEST_EVIDENCE:].decode(errors="ignore")
    return events.WorkerHung(at, node, session, key_from_proto(said.key), hang, said.over, evidence)
