"""What a job spec may be. The one place that says so; clients show these sentences beside the line they are about."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from holdfast_coordinator.core.jobspec import (
    DataShard,
    ExitKind,
    HangPolicy,
    JobSpec,
    RetentionPolicy,
    Rule,
    StragglerPolicy,
)

MAX_WORLD_SIZE = 100_000
MAX_NAME = 63
MAX_SHARDS = 100_000
MAX_DATASETS_BYTES = 8 * 2**20
"""Names and digests of all shards together: a spec has to go into a message."""
MAX_PRELOAD = 64
MAX_MODULE = 200
MAX_SPARES = 1_000
LEAST_LOG_BYTES, MOST_LOG_BYTES = 2**20, 2**50
MAX_METRICS = 32
MAX_METRIC_NAME = 40
"""As many and as long as a heartbeat page holds."""
MAX_PATTERN = 500
MAX_KEPT = 1_000
"""Checkpoints that a policy may have to look at with every commit."""
LEAST_LIMIT_MS = 1_000
"""For which a worker may not move: its agent looks once a second."""
MAX_LIMITS = 64
MAX_SECTION = 32
"""Bytes of the name of a section: a heartbeat page has no room for more."""
MAX_STRIKES = 1_000

MAX_RULES = 64
LAST_SIGNAL = 64
"""On Linux."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://(.*)", re.DOTALL)
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that is wrong, by its path in the proto, and what to write instead."""

    field: str
    description: str


def violations(spec: JobSpec) -> tuple[Violation, ...]:
    """Everything that is wrong with a spec."""
    return tuple(_violations(spec))


def pin_violations(name: str) -> Iterator[Violation]:
    """What is wrong with the name that a checkpoint is to be kept under; an empty one lets go of it."""
    if name and (not _NAME.fullmatch(name) or len(name) > MAX_NAME):
        yield Violation("name", _no_name(name, "name of a pin"))


def _no_name(name: str, what: str) -> str:
    return (
        f'"{name[:80]}" is no {what}; use up to {MAX_NAME} letters, digits, "-", "_" and ".", '
        "beginning with a letter or digit"
    )


def _violations(spec: JobSpec) -> Iterator[Violation]:
    if not _NAME.fullmatch(spec.name) or len(spec.name) > MAX_NAME:
        yield Violation("name", _no_name(spec.name, "job name"))
    if not spec.command or not spec.command[0]:
        yield Violation("command", "is empty; give the command and its arguments")
    elif any("\0" in word for word in spec.command):
        yield Violation("command", "has a NUL character in it; remove it")
    if not 1 <= spec.world_size <= MAX_WORLD_SIZE:
        yield Violation("world_size", f"{spec.world_size} is not between 1 and {MAX_WORLD_SIZE}")
    for name, value in spec.env.items():
        if not _ENV_NAME.fullmatch(name):
            yield Violation(f"env.{name}", "is no name of an environment variable")
        if "\0" in value:
            yield Violation(f"env.{name}", "has a NUL character in its value; remove it")
    if spec.working_dir and not spec.working_dir.startswith("/"):
        yield Violation("working_dir", f'"{spec.working_dir}" is not an absolute path')
    for field, uri in (("checkpoint_uri", spec.checkpoint_uri), ("resume_from", spec.resume_from)):
        if uri and (wrong := _wrong_with(uri)):
            yield Violation(field, wrong)
    yield from _numbers(spec)
    yield from _rules(spec.rules)
    yield from _datasets(spec)
    yield from _warm_starts(spec)
    if spec.retention is not None:
        yield from _retention(spec.retention)
    if not LEAST_LOG_BYTES <= spec.log_bytes <= MOST_LOG_BYTES:
        yield Violation("logs.keep_bytes", f"{spec.log_bytes} bytes is not between 1 MiB and 1 PiB")
    yield from _log_metrics(spec.log_metrics)
    yield from _hang(spec.hang)
    yield from _stragglers(spec.stragglers)


def _log_metrics(patterns: Mapping[str, str]) -> Iterator[Violation]:
    if len(patterns) > MAX_METRICS:
        yield Violation("log_metrics", f"are {len(patterns)}; give no more than {MAX_METRICS}")
    for name, pattern in sorted(patterns.items()):
        field = f"log_metrics.{name[:80]}"
        if not _NAME.fullmatch(name) or len(name) > MAX_METRIC_NAME:
            yield Violation(field, f"is no name of a metric; use up to {MAX_METRIC_NAME} letters and digits")
        if wrong := _wrong_number_pattern(pattern):
            yield Violation(field, wrong)


def _wrong_number_pattern(pattern: str) -> str:
    """What is wrong with a regular expression that is to find a number; empty when nothing is."""
    wrong = _wrong_pattern(pattern)
    if wrong:
        return wrong
    groups = re.compile(pattern).groups
    if groups != 1:
        return (
            f'"{pattern[:80]}" has {groups} groups; put the number, and nothing else, into one, '
            "e.g. loss=([0-9.]+), and write (?:…) for others"
        )
    return ""


def _wrong_with(uri: str) -> str:
    """What is wrong with a place of checkpoints; empty when nothing is."""
    scheme = _SCHEME.fullmatch(uri)
    if "\0" in uri:
        return "has a NUL character in it; remove it"
    if scheme is None:
        neither = (
            "is neither an absolute path nor a URI; write e.g. /shared/checkpoints or s3://bucket/prefix"
        )
        return "" if uri.startswith("/") else f'"{uri}" {neither}'
    if not scheme[1].strip("/") or (uri.startswith("s3:") and scheme[1].startswith("/")):
        return f'"{uri}" names no place; write e.g. s3://bucket/prefix'
    return ""


def _warm_starts(spec: JobSpec) -> Iterator[Violation]:
    for at, module in enumerate(spec.preload):
        if not _MODULE.fullmatch(module) or len(module) > MAX_MODULE:
            yield Violation(f"preload.{at}", f'"{module[:80]}" is no name of a module; write e.g. numpy')
    if len(spec.preload) > MAX_PRELOAD:
        yield Violation("preload", f"has {len(spec.preload)} modules; at most {MAX_PRELOAD} are preloaded")
    if not 0 <= spec.spares <= MAX_SPARES:
        yield Violation("spares", f"{spec.spares} is not between 0 and {MAX_SPARES}")
    elif spec.spares and not spec.preload:
        yield Violation("spares", f"{spec.spares} have nothing to import; name modules in preload")


def _retention(policy: RetentionPolicy) -> Iterator[Violation]:
    for field, value in (("keep_last", policy.keep_last), ("best", policy.best)):
        least = 1 if field == "keep_last" else 0
        if not least <= value <= MAX_KEPT:
            yield Violation(f"retention.{field}", f"{value} is not between {least} and {MAX_KEPT}")
    if policy.keep_every < 0:
        yield Violation("retention.keep_every", f"{policy.keep_every} steps is negative; give 0 or more")
    if policy.best and not policy.metric:
        yield Violation("retention.metric", "is empty; name the metric that the best have, e.g. loss")
    if policy.metric and not policy.best:
        yield Violation("retention.best", f"is 0; say how many of the best by {policy.metric} to keep")


def _hang(policy: HangPolicy) -> Iterator[Violation]:
    for section, limit in policy.limits_ms.items():
        field = f"hang.limits.{section[:80]}"
        if not 1 <= len(section.encode()) <= MAX_SECTION or not section.isprintable():
            yield Violation(field, f"is no name of a section; use 1 to {MAX_SECTION} printable bytes")
        elif limit < LEAST_LIMIT_MS:
            yield Violation(field, f"{limit} ms is too short to be told; give 1s or more")
    if len(policy.limits_ms) > MAX_LIMITS:
        yield Violation("hang.limits", f"are {len(policy.limits_ms)}; give at most {MAX_LIMITS}")
    if not (policy.factor >= 1 and math.isfinite(policy.factor)):
        yield Violation("hang.factor", f"{policy.factor:g} is not a number of 1 or more")
    if policy.floor_ms < LEAST_LIMIT_MS:
        yield Violation("hang.floor", f"{policy.floor_ms} ms is too short to be told; give 1s or more")


def _stragglers(policy: StragglerPolicy) -> Iterator[Violation]:
    if not (policy.threshold > 0 and math.isfinite(policy.threshold)):
        yield Violation("stragglers.threshold", f"{policy.threshold:g} is not a number above 0")
    if not 0 <= policy.strikes <= MAX_STRIKES:
        yield Violation("stragglers.strikes", f"{policy.strikes} is not between 0 and {MAX_STRIKES}")


def _numbers(spec: JobSpec) -> Iterator[Violation]:
    restart, needs = spec.restart, spec.resources
    at_least_zero: tuple[tuple[str, float, str], ...] = (
        ("resources.cpus", needs.cpus, ""),
        ("resources.memory_bytes", needs.memory_bytes, ""),
        ("resources.gpus", needs.gpus, ""),
        ("restart.budget", restart.budget, ""),
        ("restart.no_progress_limit", restart.no_progress_limit, ""),
        ("restart.backoff", restart.backoff_ms, " ms"),
        ("restart.backoff_cap", restart.backoff_cap_ms, " ms"),
        ("restart.window", restart.window_ms, " ms"),
        ("restart.grace", restart.grace_ms, " ms"),
        ("stop_grace", spec.stop_grace_ms, " ms"),
    )
    for field, value, unit in at_least_zero:
        if not value >= 0:  # also refuses NaN
            yield Violation(field, f"{value:g}{unit} is negative; give 0 or more")
    if not 0 <= restart.jitter <= 1:
        yield Violation("restart.jitter", f"{restart.jitter:g} is not between 0 and 1")


def _rules(rules: tuple[Rule, ...]) -> Iterator[Violation]:
    if len(rules) > MAX_RULES:
        yield Violation("rules", f"are {len(rules)}; write at most {MAX_RULES}")
    for index, rule in enumerate(rules[:MAX_RULES]):
        yield from _rule(f"rules.{index}", rule)


def _rule(field: str, rule: Rule) -> Iterator[Violation]:
    for codes in rule.exit_codes:
        if not 1 <= codes.first <= codes.last <= 255:
            shown = str(codes.first) if codes.first == codes.last else f"{codes.first}-{codes.last}"
            if codes.first > codes.last:
                yield Violation(f"{field}.exit_codes", f"{shown} goes down; write {codes.last}-{codes.first}")
                continue
            yield Violation(f"{field}.exit_codes", f"{shown} is not within 1 to 255; code 0 is success")
    for number in rule.signals:
        if not 1 <= number <= LAST_SIGNAL:
            yield Violation(f"{field}.signals", f"{number} is no signal; write e.g. SIGSEGV, or 11")
    if rule.exit_codes and rule.signals:
        yield Violation(field, "asks for an exit code and for a signal, and no exit has both; make two rules")
    for kind in rule.kinds:
        if kind in (ExitKind.ABANDONED, ExitKind.LOST):
            yield Violation(
                f"{field}.kind", f"{kind} is not the program's doing, and no rule is asked about it"
            )
    if wrong := _wrong_pattern(rule.log):
        yield Violation(f"{field}.log", wrong)


def _wrong_pattern(pattern: str) -> str:
    """What is wrong with a regular expression; empty when nothing is. Whoever runs it bounds how long that may take."""
    if len(pattern) > MAX_PATTERN:
        return f"has {len(pattern)} characters; write a pattern of no more than {MAX_PATTERN}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f'"{pattern[:80]}" is no regular expression: {error}'
    return ""


def _datasets(spec: JobSpec) -> Iterator[Violation]:
    named: set[str] = set()
    for found in spec.datasets:
        field = f"datasets.{found.name[:80]}"
        if not _NAME.fullmatch(found.name) or len(found.name) > MAX_NAME:
            yield Violation(
                field,
                f'is no name of a data set; use up to {MAX_NAME} letters, digits, "-", "_" and ".", '
                "beginning with a letter or digit",
            )
        if found.name in named:
            yield Violation(field, "is there twice; give each data set a name of its own")
        named.add(found.name)
        if not found.uri.startswith("/") and "://" not in found.uri:
            yield Violation(field, f'"{found.uri[:80]}" is neither an absolute path nor a URI')
        if not any(shard.samples for shard in found.shards):
            yield Violation(field, "has no samples; count its shards before the job is created")
        wrong = next((reason for shard in found.shards if (reason := _wrong(shard))), None)
        if wrong:
            yield Violation(field, wrong)
        files = {shard.file for shard in found.shards}
        if len(files) < len(found.shards):
            yield Violation(field, "has a shard twice; name each once")
    shards = [shard for found in spec.datasets for shard in found.shards]
    size = sum(len(shard.file.encode()) + len(shard.digest) for shard in shards)
    if len(shards) > MAX_SHARDS or size > MAX_DATASETS_BYTES:
        yield Violation(
            "datasets",
            f"have {len(shards)} shards, whose names take {size} bytes; more than {MAX_SHARDS} shards or "
            f"{MAX_DATASETS_BYTES} bytes do not go into a job: make larger shards",
        )


def _wrong(shard: DataShard) -> str | None:
    parts = shard.file.split("/")
    if "\0" in shard.file or any(part in ("", ".", "..") for part in parts):
        return f'has a shard "{shard.file[:80]}", which is no path below its own'
    if shard.samples < 0 or shard.size_bytes < 0:
        return f'has a shard "{shard.file[:80]}" of {shard.samples} samples and {shard.size_bytes} bytes'
    return None
