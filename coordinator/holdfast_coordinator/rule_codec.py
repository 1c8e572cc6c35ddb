"""proto <-> core, of rules and exits."""

from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.v1 import agent_pb2, job_pb2
from holdfast_coordinator.core import model

LONGEST_LINE = 1_000
LONGEST_TAIL = 8_192
"""Characters; an agent sends no more than so many bytes."""
MOST_MATCHED = 64
LATEST_NS = 2**62
"""No machine has been up for 146 years."""

_KINDS = {kind: job_pb2.ExitKind.Value(f"EXIT_KIND_{kind.name}") for kind in model.ExitKind}
_KIND_OF = {number: kind for kind, number in _KINDS.items()}
_ACTIONS = {action: job_pb2.RuleAction.Value(f"RULE_ACTION_{action.name}") for action in model.Action}
_ACTION_OF = {number: action for action, number in _ACTIONS.items()}


def rule_from_proto(rule: job_pb2.Rule) -> model.Rule:
    """Read a rule. One without an action is one that says retry."""
    return model.Rule(
        action=_ACTION_OF.get(rule.action, model.Action.RETRY),
        exit_codes=tuple(model.CodeRange(codes.first, codes.last) for codes in rule.exit_codes),
        signals=tuple(rule.signals),
        kinds=tuple(_KIND_OF[kind] for kind in rule.kinds if kind in _KIND_OF),
        log=rule.log,
        section=rule.section,
        before_first_step=rule.before_first_step if rule.HasField("before_first_step") else None,
    )


def rule_to_proto(rule: model.Rule) -> job_pb2.Rule:
    """Write a rule."""
    return job_pb2.Rule(
        exit_codes=[job_pb2.CodeRange(first=codes.first, last=codes.last) for codes in rule.exit_codes],
        signals=rule.signals,
        kinds=[_KINDS[kind] for kind in rule.kinds],
        log=rule.log,
        section=rule.section,
        before_first_step=rule.before_first_step,
        action=_ACTIONS[rule.action],
    )


def exit_from_proto(ended: agent_pb2.Exit) -> model.Exit:
    """Read how a worker ended. Its `ended_ns` is by the clock of its machine still."""
    status = ended.status
    if ended.never_ran:
        default = model.ExitKind.NEVER_RAN
    else:
        default = model.ExitKind.SIGNALLED if status.signal else model.ExitKind.EXITED
    return model.Exit(
        code=status.code,
        signal=status.signal,
        message=status.message,
        at_ms=status.at.ToMilliseconds(),
        never_ran=ended.never_ran,
        kind=_KIND_OF.get(status.kind, default),
        line=status.line[:LONGEST_LINE],
        ended_ns=ended.ended_ns if 0 < ended.ended_ns < LATEST_NS else 0,
    )


def output_from_proto(ended: agent_pb2.Exit) -> model.Output:
    """Read what a worker's output says."""
    return model.Output(ended.tail[-LONGEST_TAIL:], tuple(ended.matched_rules[:MOST_MATCHED]))


def exit_to_proto(ended: model.Exit) -> job_pb2.ExitStatus:
    """Write how a worker ended."""
    at = Timestamp()
    at.FromNanoseconds(ended.ended_ns or ended.at_ms * 1_000_000)
    return job_pb2.ExitStatus(
        code=ended.code,
        signal=ended.signal,
        message=ended.message,
        at=at,
        kind=_KINDS[ended.kind],
        line=ended.line,
    )


def clock_offset(hello: agent_pb2.Hello, now_ns: int) -> int:
    """From the clock of an agent's machine to ours. It is late by what the Hello took to arrive."""
    return now_ns - hello.monotonic_ns if 0 < hello.monotonic_ns < LATEST_NS else 0
