"""The flags that say what a job is, shared by `job submit` and `run`, and what they mean in a JobSpec."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from holdfast.cli.common import fail, pairs
from holdfast.cli.exits import EXIT
from holdfast.cli.late import job_pb2, wire
from holdfast.names import default_name
from holdfast.units import parse_duration, parse_size, parse_whole

PROGRESS_S = 2.0
"""Between two lines about the counting of a data set."""

_OPTIONS = (
    click.option("--name", help="Shown to people.  [default: the command's name]"),
    click.option("-n", "--world-size", type=int, help="How many workers.  [default: 1]"),
    click.option(
        "--env",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Set for the workers; without a value, as it is here. May be repeated.",
    ),
    click.option("--working-dir", help="Of the workers.  [default: the current directory]"),
    click.option(
        "--restart-scope",
        type=click.Choice(["gang", "rank"]),
        help="When a rank dies, restart all of them (gang, the default: workers talk to each other) or that one.",
    ),
    click.option(
        "--backoff", metavar="DURATION", help="Before the first restart; then doubles.  [default: 500ms]"
    ),
    click.option("--backoff-cap", metavar="DURATION", help="Longest wait before a restart.  [default: 30s]"),
    click.option("--restart-budget", type=int, help="Restarts without progress.  [default: 50]"),
    click.option(
        "--no-progress-limit",
        type=int,
        help="So many exits of one kind in a row without progress end the job; 0: never.  [default: 3]",
    ),
    click.option(
        "--restart-grace",
        metavar="DURATION",
        help="From SIGTERM to SIGKILL for those who go because another rank died.  [default: 5s]",
    ),
    click.option("--stop-grace", metavar="DURATION", help="From the stop to SIGKILL.  [default: 30s]"),
    click.option("--cpus", type=float, help="CPUs for each worker."),
    click.option("--memory", metavar="SIZE", help="Memory for each worker, e.g. 2GiB."),
    click.option("--gpus", type=int, help="GPUs for each worker."),
    click.option(
        "--checkpoint-dir",
        metavar="WHERE",
        help="Where checkpoints go: a directory that all nodes see, or e.g. s3://bucket/prefix.",
    ),
    click.option(
        "--resume-from",
        metavar="JOB[@STEP]|WHERE",
        help="Begin with the checkpoint of another job: its id, its directory, or one step's.",
    ),
    click.option("--keep-last", type=int, help="Keep so many checkpoints.  [default: all]"),
    click.option("--keep-every", type=int, metavar="STEPS", help="Keep those of every so many steps, too."),
    click.option(
        "--data",
        multiple=True,
        metavar="NAME=URI",
        help="A data set: a directory, prefix or glob of shards, which are counted now. May be repeated.",
    ),
    click.option(
        "--preload",
        multiple=True,
        metavar="MODULE,…",
        help="Import these once on each node, and fork the workers from there: restarts take milliseconds.",
    ),
    click.option(
        "--spares",
        type=int,
        help="Processes a node that wait with the imports done, instead of one that forks.",
    ),
    click.option(
        "--log-metric",
        multiple=True,
        metavar="NAME=REGEX",
        help="A metric in what the program prints, e.g. 'loss=loss: ([0-9.]+)'; step is the step. May be repeated.",
    ),
    click.option("--label", multiple=True, metavar="NAME=VALUE", help="May be repeated."),
)

FLAGS = {
    "name": "name",
    "world_size": "world_size",
    "env": "env",
    "labels": "label",
    "datasets": "data",
    "preload": "preload",
    "spares": "spares",
    "log_metrics": "log_metric",
    "working_dir": "working_dir",
    "checkpoint_uri": "checkpoint_dir",
    "resume_from": "resume_from",
    "retention.keep_last": "keep_last",
    "retention.keep_every": "keep_every",
    "stop_grace": "stop_grace",
    "restart.scope": "restart_scope",
    "restart.backoff": "backoff",
    "restart.backoff_cap": "backoff_cap",
    "restart.budget": "restart_budget",
    "restart.no_progress_limit": "no_progress_limit",
    "restart.grace": "restart_grace",
    "resources.cpus": "cpus",
    "resources.memory_bytes": "memory",
    "resources.gpus": "gpus",
}
"""The parameter that sets a field, by the field's path in the proto."""


def spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def apply_flags(spec: job_pb2.JobSpec, flags: Mapping[str, Any], command: tuple[str, ...]) -> None:
    """Let the flags that were given win over what the spec says, and fill in the defaults of the command line.

    Counts the data sets, which takes as long as reading them when they are on this machine.
    """
    if command:
        spec.command[:] = command
    if not spec.command:
        raise click.UsageError("give the command, for instance: -- python train.py")
    spec.env.update(pairs([_with_value(text) for text in flags["env"]], "--env"))
    spec.labels.update(pairs(flags["label"], "--label"))
    spec.log_metrics.update(pairs(flags["log_metric"], "--log-metric"))
    if flags["preload"]:
        spec.preload[:] = [name.strip() for text in flags["preload"] for name in text.split(",")]
    for field in FLAGS.keys() - {"env", "labels", "datasets", "log_metrics", "preload"}:
        if flags[FLAGS[field]] is not None:
            _set(spec, field, flags[FLAGS[field]])
    spec.working_dir = _absolute(spec.working_dir or ".")
    spec.checkpoint_uri = _checkpoint_uri(spec)
    spec.name = spec.name or default_name(spec.command)
    _count_datasets(spec, pairs(flags["data"], "--data"))


def _checkpoint_uri(spec: job_pb2.JobSpec) -> str:
    """Where checkpoints go, as seen from anywhere; empty for the agents to say."""
    from holdfast.storage.api import StorageError
    from holdfast.storage.places import switched

    try:
        place = switched(spec.checkpoint_uri or "checkpoints", {**os.environ, **spec.env})
    except StorageError as error:
        raise click.UsageError(str(error)) from error
    return place if "://" in place else _absolute(spec.checkpoint_uri)


def explain(
    error: wire.InvalidSpec, flags: Mapping[str, Any], where: Callable[[str], str | None] | None = None
) -> str:
    """Put the coordinator's answer beside the flags, or the lines of the job file, that it is about.

    `where` says where in the job file a field stands.
    """
    where_in_file = where or (lambda _: None)

    def place(field: str) -> str:
        whole = field if field in FLAGS else field.partition(".")[0]
        parameter = FLAGS.get(whole)
        if parameter is None:
            return where_in_file(field) or field
        given, flag = flags[parameter] is not None, _flag(parameter)
        if parameter == "preload":
            given = bool(flags[parameter])
        elif isinstance(flags[parameter], tuple) and field != whole:  # --env, --label: was it this name?
            name = field.removeprefix(f"{whole}.")
            given, flag = any(text.partition("=")[0] == name for text in flags[parameter]), f"{flag} {name}"
        return flag if given else where_in_file(field) or flag

    return "\n".join(f"{place(v.field)}: {v.description}" for v in error.violations) or str(error)


def _count_datasets(spec: job_pb2.JobSpec, given: Mapping[str, str]) -> None:
    wanted = {found.name: found.uri for found in spec.datasets} | dict(given)
    if not wanted:
        return
    from holdfast.data.errors import DataError
    from holdfast.datasets import count_dataset

    env = os.environ | dict(spec.env)
    try:
        counted = [count_dataset(name, uri, env, _Progress(name)) for name, uri in wanted.items()]
    except (DataError, OSError, ValueError) as error:
        fail(str(error), EXIT.USAGE)
    del spec.datasets[:]
    spec.datasets.extend(counted)


class _Progress:
    """Says now and then how far the counting of a data set is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        now = time.monotonic()
        if now - self._told >= PROGRESS_S and done < of:
            self._told = now
            click.echo(f"counting {self._name}: {done} of {of} shards", err=True)


def _with_value(text: str) -> str:
    """Let `--env TOKEN` take the value from the environment: on a command line, everybody could read it."""
    if "=" in text:
        return text
    if text not in os.environ:
        raise click.UsageError(f"--env {text}: is not set here; set it, or write {text}=VALUE")
    return f"{text}={os.environ[text]}"


def _flag(parameter: str) -> str:
    return "--" + parameter.replace("_", "-")


def _set(spec: job_pb2.JobSpec, field: str, value: Any) -> None:
    """Set a field by its path, from what the flag says."""
    outer, _, name = field.rpartition(".")
    message: Any = getattr(spec, outer) if outer else spec
    try:
        match field:
            case "restart.scope":
                message.scope = job_pb2.RestartScope.Value(f"RESTART_SCOPE_{value.upper()}")
            case "restart.backoff" | "restart.backoff_cap" | "restart.grace" | "stop_grace":
                getattr(message, name).FromTimedelta(parse_duration(value))
            case "resources.memory_bytes":
                message.memory_bytes = parse_size(value)
            case "world_size" | "restart.budget" | "restart.no_progress_limit" | "resources.gpus" | "spares":
                setattr(message, name, parse_whole(value))
            case _:
                setattr(message, name, value)
    except ValueError as error:
        raise click.UsageError(f"{_flag(FLAGS[field])}: {error}") from error


def _absolute(path: str) -> str:
    """Make a path absolute here, where its user stands; a URI stays as it is, and so does nothing."""
    return str(Path(path).absolute()) if path and "://" not in path else path
