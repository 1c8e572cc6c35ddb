"""What the commands share: connecting, errors as one sentence, output in the form that was asked for."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Coroutine, Iterable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar, cast

import click

from holdfast import contexts
from holdfast.addresses import DEFAULT_TARGET
from holdfast.cli.exits import EXIT
from holdfast.cli.late import asyncio, job_pb2, wire
from holdfast.config_files import ConfigError
from holdfast.units import parse_duration

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

T = TypeVar("T")

_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor movements
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles and links
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"  # all else, and what turns writing around
)


_SERVER = "holdfast.server"


def find_server(given: str | None = None) -> str:
    """Say which coordinator is meant; errors will say where its address was taken from."""
    try:
        found = contexts.resolve(given)
    except ConfigError as error:
        fail(printable(str(error)), EXIT.USAGE)
    click.get_current_context().meta[_SERVER] = found
    return found.address


def read_server(context: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
    """Read an option that is the address of a coordinator; where it is not given, find out."""
    return given if context.resilient_parsing else find_server(given)


server_option = click.option(
    "--server",
    callback=read_server,
    metavar="ADDRESS",
    help="The coordinator: host:port, or unix:/path.  [default: HOLDFAST_SERVER, that of the context, "
    f"or {DEFAULT_TARGET}]",
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "wide", "json", "yaml", "name"]),
    default="table",
    show_default=True,
    help="json and yaml are the API's own messages.",
)
metrics_option = click.option(
    "--metrics",
    default="",
    metavar="ADDRESS",
    help="Serve /metrics for Prometheus: host:port, or a port of loopback.  [default: not at all]",
)
watch_option = click.option(
    "-w",
    "--watch",
    "again",
    is_flag=True,
    help="Show it again after every change, until the job has ended; with -o json one line each.",
)


def fail(message: str, code: EXIT = EXIT.FAILED) -> NoReturn:
    """End with a sentence on stderr."""
    click.echo(f"Error: {message}", err=True)
    raise click.exceptions.Exit(code)


def asynchronous(command: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
    """Run an async command, and end it with one sentence and the right exit code when a call does not work."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> T:
        try:
            return asyncio.run(command(*args, **kwargs))
        except wire.HoldfastError as error:
            fail(with_source(str(error)), exit_code(error))

    return run


def with_source(sentence: str) -> str:
    """Say where an address was taken from, in an error that is about it."""
    context = click.get_current_context(silent=True)
    server = context.meta.get(_SERVER) if context is not None else None
    if server is None:
        return sentence
    named = f"the coordinator at {server.address}"
    return sentence.replace(f"{named} ", f"{named} ({server.source}) ", 1)


def exit_code(error: wire.HoldfastError) -> EXIT:
    """The exit code of an error."""
    match error:
        case wire.Unreachable():
            return EXIT.UNREACHABLE
        case wire.NotFound():
            return EXIT.NOT_FOUND
        case wire.DeadlineExceeded():
            return EXIT.TIMEOUT
        case wire.InvalidSpec():
            return EXIT.USAGE
        case _:
            return EXIT.FAILED


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `wide` ones are shown with -o wide alone."""

    head: str
    cell: Callable[[Any], str]
    wide: bool = False


def show(
    items: Sequence[Message], form: str, *, key: str, columns: Sequence[Column], name: Callable[[Any], str]
) -> None:
    """Print a list: as a table, as one message {key: [...]}, or as names."""
    if form == "name":
        for item in items:
            click.echo(name(item))
    elif form in ("json", "yaml"):
        show_data({key: [to_dict(item) for item in items]}, form)
    else:
        wanted = [column for column in columns if form == "wide" or not column.wide]
        show_table([column.head for column in wanted], [[c.cell(item) for c in wanted] for item in items])


def show_data(data: dict[str, Any], form: str, *, compact: bool = False) -> None:
    """Print as JSON, on one line if `compact`, or YAML."""
    if form == "json":
        import json

        click.echo(json.dumps(data, indent=None if compact else 2, ensure_ascii=False))
    else:
        import yaml

        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns."""
    lines = [list(head), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    click.echo(
        "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
    )


class Showings:
    """Of something that is shown again and again: each in place of the one before on a terminal, else after it."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._first = True

    def begin(self) -> None:
        """Make way for the next one."""
        if self._form in ("table", "wide") and sys.stdout.isatty():
            click.echo("\x1b[H\x1b[2J", nl=False)
        elif not self._first and self._form in ("table", "wide"):
            click.echo()
        elif not self._first and self._form == "yaml":
            click.echo("---")
        self._first = False


def to_dict(message: Message) -> dict[str, Any]:
    """The proto message's JSON form, its fields in the order of their numbers and its maps in that of their keys."""
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(message, always_print_fields_with_no_presence=True)
    return _in_order(found, message.DESCRIPTOR)


def _in_order(data: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    """What protobuf makes begins with the fields that are set, and has maps in no order at all."""
    found = {}
    for field in sorted(descriptor.fields, key=lambda each: each.number):
        if field.json_name in data:
            value, inner = data[field.json_name], field.message_type
            if inner is not None and inner.GetOptions().map_entry:
                value = dict(sorted(value.items()))
            elif isinstance(value, dict):
                value = _in_order(value, inner)
            elif inner is not None and isinstance(value, list):
                value = [_in_order(each, inner) for each in value]
            found[field.json_name] = value
    return found


def printable(text: str) -> str:
    """Take control characters out of a line; what a worker wrote must not steer a terminal."""
    return _CONTROL.sub("", text)


def enum_word(name: str) -> str:
    """JOB_STATE_RUNNING -> running, RESTART_SCOPE_GANG -> gang."""
    return re.sub("^[A-Z]+_(STATE|SCOPE)_", "", name).lower()


def age(stamp: Timestamp) -> str:
    """How long ago, in the largest unit that fits."""
    import time

    if not stamp.seconds:
        return "-"
    return short_seconds(max(0, time.time() - stamp.seconds))


def short_seconds(seconds: float) -> str:
    """12s, 5m, 3h, 2d."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:.0f}s"


def time_shares(summary: job_pb2.JobSummary) -> str:
    """Where the time of a job went, the largest share first: "kept 91.5%, setup 6.0%"."""
    return _shares(dict(summary.time_seconds))


def lost_shares(summary: job_pb2.JobSummary) -> str:
    """What is missing in the goodput to 100%: of a rank's time, which ends when it has finished."""
    needed = {name: s for name, s in summary.time_seconds.items() if name != "finished"}
    return _shares(needed, without="kept")


def _shares(seconds: dict[str, float], without: str = "") -> str:
    whole = sum(seconds.values())
    shares = sorted(seconds.items(), key=lambda part: -part[1])
    return ", ".join(
        f"{name} {s / whole:.1%}" for name, s in shares if name != without and s * 200 >= whole > 0
    )


def metrics(of: Any) -> str:
    """What the program reported, or a dash."""
    return " ".join(f"{name}={value:g}" for name, value in sorted(of.metrics.items())) or "-"


def short_size(size: int) -> str:
    """12 B, 3.4 KiB, 5.6 GiB."""
    if size < 1024:
        return f"{size} B"
    exponent = min(4, (size.bit_length() - 1) // 10)
    return f"{size / 1024**exponent:.1f} {' KMGT'[exponent]}iB"


def state_dir(name: str) -> str:
    """The default place of a daemon's state."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")  # noqa: PTH111, PTH118
    return os.path.join(base, "holdfast", name)  # noqa: PTH118


class _Lossy:
    """Where a log goes. What can't be written is dropped: a full disk must not end whoever tells of it."""

    def __init__(self, into: TextIO) -> None:
        self._into = into

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._into.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._into.flush()


def set_up_logs(into: TextIO = sys.stderr, *, tell: Callable[[str], None] = lambda _: None) -> None:
    """Have the daemons log: for people on a terminal, JSON otherwise. `tell` hears of errors, once of each cause."""
    import structlog

    from holdfast import log_fields

    told: set[str] = set()

    def tell_errors(_logger: object, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        cause = str(event.get("error", ""))
        if level == "error" and cause not in told:
            told.add(cause)
            tell(f"{event['event']}: {cause}" if cause else str(event["event"]))
        return event

    written: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    if into.isatty():
        written = [structlog.dev.ConsoleRenderer(colors=coloured(into))]
    structlog.configure(
        processors=[
            tell_errors,
            log_fields.spell_worker,
            log_fields.add_trace,
            log_fields.add_carried,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *written,
        ],
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Lossy(into))),
    )


def set_up_tracing(service: str) -> None:
    """Send traces where the environment says so."""
    from holdfast import tracing

    tracing.start(service, lambda why: click.echo(why, err=True))


def trace_from_environment(spec: job_pb2.JobSpec) -> None:
    """Have a job be of the trace that whoever runs this command is in, unless its spec names one."""
    from holdfast.tracing import VARIABLE

    around = os.environ.get(VARIABLE, "")
    if around and VARIABLE not in spec.env:
        spec.env[VARIABLE] = around


def read_duration(context: click.Context, parameter: click.Parameter, text: str | None) -> timedelta | None:
    """Read an option that is a duration."""
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Read K=V options."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f'{option} "{text}" is not of the form NAME=VALUE')
        found[name] = value
    return found


def coloured(out: TextIO) -> bool:
    """Whether to write in colour: on a terminal, and when NO_COLOR does not say no."""
    return out.isatty() and not os.environ.get("NO_COLOR")
