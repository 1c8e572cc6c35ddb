"""The flags that say what a job is, shared by `job submit` and `run`, and what they mean in a JobSpec."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from holdfast.cli.common import pairs
from holdfast.units import parse_duration, parse_size
from holdfast.v1 import job_pb2
from holdfast.wire import InvalidSpec

_OPTIONS = (
    click.option("--name", help="Shown to people.  [default: the command's name]"),
    click.option("-n", "--world-size", type=int, help="How many workers.  [default: 1]"),
    click.option("--env", multiple=True, metavar="NAME=VALUE", help="Set for the workers; may be repeated."),
    click.option("--working-dir", help="Of the workers.  [default: the current directory]"),
    click.option(
        "--restart-scope",
        type=click.Choice(["gang", "rank"]),
        help="When a rank dies, restart all of them (gang, the default: workers talk to each other) or that one.",
    ),
    click.option("--backoff", help="Before the first restart; doubles each time.  [default: 500ms]"),
    click.option("--backoff-cap", help="Longest wait before a restart.  [default: 30s]"),
    click.option("--restart-budget", type=int, help="Restarts without progress.  [default: 50]"),
    click.option("--stop-grace", help="From SIGTERM to SIGKILL.  [default: 30s]"),
    click.option("--cpus", type=float, help="Of each worker."),
    click.option("--memory", help="Of each worker, for instance 2GiB."),
    click.option("--gpus", type=int, help="Of each worker."),
    click.option("--checkpoint-dir", help="Where checkpoints go: a directory that all nodes see."),
    click.option("--label", multiple=True, metavar="NAME=VALUE", help="May be repeated."),
)

_FLAGS = {
    "name": "--name",
    "command": "COMMAND",
    "world_size": "--world-size",
    "env": "--env",
    "working_dir": "--working-dir",
    "restart.scope": "--restart-scope",
    "restart.backoff": "--backoff",
    "restart.backoff_cap": "--backoff-cap",
    "restart.budget": "--restart-budget",
    "stop_grace": "--stop-grace",
    "resources.cpus": "--cpus",
    "resources.memory_bytes": "--memory",
    "resources.gpus": "--gpus",
    "checkpoint_uri": "--checkpoint-dir",
}


def spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def apply_flags(spec: job_pb2.JobSpec, flags: Mapping[str, Any], command: tuple[str, ...]) -> None:
    """Let the flags that were given win over what the spec says, and fill in the defaults of the command line."""
    if command:
        del spec.command[:]
        spec.command.extend(command)
    if not spec.command:
        raise click.UsageError("give the command after --, for instance: -- python train.py")
    _set(spec, "name", flags["name"])
    _set(spec, "world_size", flags["world_size"])
    _set(spec, "working_dir", flags["working_dir"])
    _set(spec, "checkpoint_uri", flags["checkpoint_dir"])
    spec.env.update(pairs(flags["env"], "--env"))
    spec.labels.update(pairs(flags["label"], "--label"))
    if flags["restart_scope"]:
        spec.restart.scope = job_pb2.RestartScope.Value(f"RESTART_SCOPE_{flags['restart_scope'].upper()}")
    _set(spec.restart, "budget", flags["restart_budget"])
    _set(spec.resources, "cpus", flags["cpus"])
    _set(spec.resources, "gpus", flags["gpus"])
    try:
        if flags["memory"]:
            spec.resources.memory_bytes = parse_size(flags["memory"])
        for flag, field in (("backoff", spec.restart.backoff), ("backoff_cap", spec.restart.backoff_cap)):
            if flags[flag]:
                field.FromTimedelta(parse_duration(flags[flag]))
        if flags["stop_grace"]:
            spec.stop_grace.FromTimedelta(parse_duration(flags["stop_grace"]))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    spec.world_size = spec.world_size if flags["world_size"] is not None else spec.world_size or 1
    spec.working_dir = str(Path(spec.working_dir or ".").absolute())
    if spec.checkpoint_uri:
        spec.checkpoint_uri = str(Path(spec.checkpoint_uri).absolute())
    spec.name = spec.name or default_name(spec.command)


def default_name(command: Any) -> str:
    """Name a job after its program: the script where an interpreter runs one."""
    scripts = [word for word in command if word.endswith(".py")]
    stem = Path(scripts[0] if scripts else command[0]).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:40] or "job"


def explain(error: InvalidSpec) -> str:
    """Put the coordinator's answer beside the flags that it is about."""
    return "\n".join(f"{_flag(v.field)}: {v.description}" for v in error.violations) or str(error)


def _flag(field: str) -> str:
    return _FLAGS.get(field) or _FLAGS.get(field.partition(".")[0], field)


def _set(message: Any, field: str, value: Any) -> None:
    if value is not None:
        setattr(message, field, value)
