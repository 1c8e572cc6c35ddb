"""What a job spec may be. The one place that says so; clients show these sentences beside the line they are about."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast_coordinator.core.model import JobSpec

MAX_WORLD_SIZE = 100_000
MAX_NAME = 63

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that is wrong, by its path in the proto, and what to write instead."""

    field: str
    description: str


def violations(spec: JobSpec) -> tuple[Violation, ...]:
    """Everything that is wrong with a spec."""
    return tuple(_violations(spec))


def _violations(spec: JobSpec) -> Iterator[Violation]:
    if not _NAME.fullmatch(spec.name) or len(spec.name) > MAX_NAME:
        yield Violation(
            "name",
            f'"{spec.name[:80]}" is no job name; use up to {MAX_NAME} letters, digits, "-", "_" and ".", '
            "beginning with a letter or digit",
        )
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
    if spec.checkpoint_uri and not spec.checkpoint_uri.startswith("/"):
        yield Violation("checkpoint_uri", f'"{spec.checkpoint_uri}" is not an absolute path of a directory')
    yield from _numbers(spec)


def _numbers(spec: JobSpec) -> Iterator[Violation]:
    restart, needs = spec.restart, spec.resources
    at_least_zero: tuple[tuple[str, float, str], ...] = (
        ("resources.cpus", needs.cpus, ""),
        ("resources.memory_bytes", needs.memory_bytes, ""),
        ("resources.gpus", needs.gpus, ""),
        ("restart.budget", restart.budget, ""),
        ("restart.backoff", restart.backoff_ms, " ms"),
        ("restart.backoff_cap", restart.backoff_cap_ms, " ms"),
        ("restart.window", restart.window_ms, " ms"),
        ("stop_grace", spec.stop_grace_ms, " ms"),
    )
    for field, value, unit in at_least_zero:
        if not value >= 0:  # also refuses NaN
            yield Violation(field, f"{value:g}{unit} is negative; give 0 or more")
    if not 0 <= restart.jitter <= 1:
        yield Violation("restart.jitter", f"{restart.jitter:g} is not between 0 and 1")
