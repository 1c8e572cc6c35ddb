"""docs/reference/job-spec.md: keys and types from the reader of job files, meanings from job.proto, defaults from the
coordinator, bounds from what it refuses.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import click
from google.protobuf.message import Message
from pydantic import BaseModel, StrictBool, StrictStr

from docs.generate import markdown, protos
from docs.generate.grpc_page import meaning
from docs.generate.sizes import duration, size
from holdfast import spec, spec_rules
from holdfast.cli.job import command as job_group
from holdfast.cli.job_options import FLAGS
from holdfast.v1 import job_pb2
from holdfast_coordinator import codec
from holdfast_coordinator.core import validate


class Key(NamedTuple):
    """What only a person knows of a key. A test holds `good` to be taken, and each of `bad` to be refused."""

    good: str
    """An example, as YAML."""
    bounds: str = ""
    bad: tuple[str, ...] = ()
    meaning: str = ""
    """Where the proto's is about something else."""


_NAME = f"up to {validate.MAX_NAME} letters, digits, `-`, `_`, `.`"
_PLACE = "an absolute path, or a URI"
_NOT_NEGATIVE = "0 or more"
KEYS = {
    "name": Key(
        "digits",
        _NAME,
        ("-a", "a b", "a" * (validate.MAX_NAME + 1)),
        "Shown to people; need not be unique. Default: after the program.",
    ),
    "command": Key(
        "[python, train.py]",
        "",
        ("[]", "python train.py"),
        "The program and its arguments, never passed through a shell. "
        "Without one, the gateway runs the built-in example.",
    ),
    "world_size": Key(
        "4", f"1 to {validate.MAX_WORLD_SIZE:,}", ("0", str(validate.MAX_WORLD_SIZE + 1)), "How many workers."
    ),
    "env": Key("{OMP_NUM_THREADS: 4}", "", ("{a-b: c}",)),
    "working_dir": Key(
        "/home/me/project",
        "an absolute path",
        ("project",),
        "Where workers begin. Default: for `holdfast job submit` where it was started, else the agent's own.",
    ),
    "resources": Key(""),
    "resources.cpus": Key("1.5", _NOT_NEGATIVE, ("-1", ".nan")),
    "resources.memory": Key("2GiB", _NOT_NEGATIVE, ("-1", "2GB")),
    "resources.gpus": Key("1", _NOT_NEGATIVE, ("-1", "0.5")),
    "restart": Key(""),
    "restart.scope": Key("gang", "", ("node",)),
    "restart.backoff": Key("500ms", "", ("5", "-5s")),
    "restart.backoff_cap": Key("30s", "", ("5", "-5s")),
    "restart.jitter": Key("0.1", "0 to 1", ("-0.1", "1.1")),
    "restart.budget": Key("50", _NOT_NEGATIVE, ("-1",)),
    "restart.window": Key("1h", "", ("5", "-5s")),
    "restart.no_progress_limit": Key("3", _NOT_NEGATIVE, ("-1",)),
    "restart.grace": Key("5s", "", ("5", "-5s")),
    "stop_grace": Key("30s", "", ("5", "-5s")),
    "checkpoint_uri": Key(
        "s3://training/checkpoints",
        _PLACE,
        ("checkpoints", "s3://"),
        "A directory that all nodes see, or a URI. Default: a directory below the agent's state directory.",
    ),
    "labels": Key("{team: vision}"),
    "retention": Key(""),
    "retention.keep_last": Key("2", f"1 to {validate.MAX_KEPT:,}", ("0", str(validate.MAX_KEPT + 1))),
    "retention.keep_every": Key("10000", _NOT_NEGATIVE, ("-1",)),
    "retention.best": Key("1", f"0 to {validate.MAX_KEPT:,}", ("-1", str(validate.MAX_KEPT + 1))),
    "retention.metric": Key("loss"),
    "retention.mode": Key("min", "", ("least",)),
    "resume_from": Key(
        "/checkpoints/k7m2p9xq4w",
        f"{_PLACE}; for `holdfast job submit` also a job's id, or `JOB@STEP`",
        ("k7m2p9xq4w",),
    ),
    "datasets": Key(
        "{train: /data/train}",
        "",
        ("{a b: /data}", "{train: data}"),
        "What is consumed, by names that the program calls it: a directory, a prefix, a glob or a file, as an absolute "
        "path or a URI. Its samples are counted when the job is created, and fixed from then on.",
    ),
    "rules": Key("", f"at most {validate.MAX_RULES}"),
    "rules.action": Key("fail", "", ("explode",)),
    "rules.exit_codes": Key('[3, "10-20"]', "one or a list of 1 to 255", ("0", "256", '"20-10"')),
    "rules.signals": Key(
        "SIGSEGV",
        f"one or a list of names or numbers, 1 to {validate.LAST_SIGNAL}",
        ("SIGNONE", str(validate.LAST_SIGNAL + 1)),
    ),
    "rules.kind": Key("out_of_memory", "one or a list", ("lost",)),
    "rules.log": Key('"CUDA error"', f"up to {validate.MAX_PATTERN} characters", ('"("',)),
    "rules.section": Key("setup"),
    "rules.before_first_step": Key("true", "", ("1",)),
    "logs": Key(""),
    "logs.keep": Key(
        "1GiB", "1MiB to 1024TiB", (str(validate.LEAST_LOG_BYTES - 1), str(validate.MOST_LOG_BYTES + 1))
    ),
    "log_metrics": Key(
        '{loss: "loss=([0-9.]+)"}', f"at most {validate.MAX_METRICS}", ('{loss: "loss"}', "{a b: (1)}")
    ),
    "hang": Key(""),
    "hang.action": Key("notify", "", ("kill",)),
    "hang.limits": Key(
        "{step: 10m, setup: 1h}", f"at most {validate.MAX_LIMITS}, each 1s or more", ("{step: 999ms}",)
    ),
    "hang.factor": Key("10", "1 or more", ("0.9",)),
    "hang.floor": Key("10m", "1s or more", ("999ms",)),
    "stragglers": Key(""),
    "stragglers.threshold": Key("3", "above 0", ("0",)),
    "stragglers.strikes": Key("5", f"0 to {validate.MAX_STRIKES:,}", ("-1", str(validate.MAX_STRIKES + 1))),
    "preload": Key("[numpy, torch]", f"at most {validate.MAX_PRELOAD}", ("numpy", '["a-b"]')),
    "spares": Key("2", f"0 to {validate.MAX_SPARES:,}", ("-1", str(validate.MAX_SPARES + 1))),
}
"""By their path in a job file, of which `rules` is a list."""
_OF_PROTO = {"resources.memory": "memory_bytes", "logs.keep": "keep_bytes", "rules.kind": "kinds"}
_WORDS = {"rules.action": spec_rules.ACTIONS, "rules.kind": spec_rules.KINDS}
_FORMS = (
    (spec.Seconds, "duration"),
    (spec.Size, "size"),
    (spec.Number, "number"),
    (spec.Whole, "whole number"),
    (spec.Words, "list of text"),
    (spec.Modules, "list of modules"),
    (StrictBool, "true or false"),
    (StrictStr, "text"),
)


def leaves() -> Iterator[tuple[str, type[BaseModel] | None]]:
    """Give every key of a job file by its path, with the model of what stands below it."""
    for name, field in spec.SpecPart.model_fields.items():
        part = _part(field.annotation)
        yield name, part
        if part is not None:
            for inner in part.model_fields:
                yield f"{name}.{inner}", None


def _part(annotation: Any) -> type[BaseModel] | None:
    for each in (annotation, *get_args(annotation)):
        inner = get_args(each)[0] if get_origin(each) is list and get_args(each) else each
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return None


def _form(path: str) -> str:
    """The type of a key, in words."""
    if path in _WORDS:
        return ", ".join(f"`{word}`" for word in _WORDS[path])
    top, _, inner = path.partition(".")
    field = spec.SpecPart.model_fields[top]
    part = _part(field.annotation)
    if inner and part is not None:
        field = part.model_fields[inner]
    elif part is not None:
        return f"[below](#{top})"
    if path in ("rules.exit_codes", "rules.signals"):
        return ""
    return _named(field.annotation)


def _named(annotation: Any) -> str:
    for known, name in _FORMS:
        if annotation == known:
            return name
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(annotation))
    if get_origin(annotation) is dict:
        return f"names, each with a {_named(get_args(annotation)[1])}"
    inner = [each for each in get_args(annotation) if each is not type(None)]
    if len(inner) == 1 and get_origin(annotation) in (Union, type(str | None)):
        return _named(inner[0])
    raise TypeError(f"{annotation} has no name in a reference")


def _in_proto(path: str) -> protos.Field:
    """The field that a key becomes."""
    *above, last = path.split(".")
    message = protos.messages()["JobSpec"]
    for name in above:
        message = protos.messages()[_named_in(message, name).of]
    return _named_in(message, _OF_PROTO.get(path, last))


def _named_in(message: protos.Message, name: str) -> protos.Field:
    return next(field for field in message.fields if field.name == name)


def _defaults() -> job_pb2.JobSpec:
    """A spec with every default spelt out, as the coordinator has them."""
    part = spec.SpecPart.model_validate({"retention": {}})
    return codec.spec_to_proto(codec.spec_from_proto(part.to_proto()))


def _default(path: str, defaults: Message) -> str:
    top, _, inner = path.partition(".")
    if top == "rules":
        return "has to be given" if path == "rules.action" else ""
    at = getattr(defaults, top) if inner else defaults
    field = _in_proto(path)
    value = getattr(at, field.name)
    if field.form.startswith(("map", "repeated")):
        return ""
    if field.of in protos.enums():
        word = protos.enums()[field.of].values[value].name
        return markdown.code(_form(path).split("`")[1::2][value - 1]) if word else ""
    if field.form == "Duration":
        return duration(value.ToMilliseconds()) if at.HasField(field.name) else ""
    if _form(path) == "size":
        return size(value)
    if isinstance(value, str):
        return value
    return "" if isinstance(value, Message) else f"{value:g}"


def _flag(path: str, options: Mapping[str, click.Option]) -> str:
    field = _in_proto(path)
    above = path.rpartition(".")[0]
    parameter = FLAGS.get(f"{above}.{field.name}" if above else field.name)
    return markdown.code(options[parameter].opts[-1]) if parameter else ""


def table(paths: list[str]) -> str:
    """Write keys as a table."""
    submit = job_group.commands["submit"]
    options = {param.name or "": param for param in submit.params if isinstance(param, click.Option)}
    defaults = _defaults()
    rows = []
    for path in paths:
        key = KEYS[path]
        field = _in_proto(path)
        what = "; ".join(text for text in (_form(path), key.bounds) if text)
        said = key.meaning or meaning(field.name, field.of, field.comment)
        rows.append(
            [
                markdown.code(path.rpartition(".")[2]),
                what,
                _default(path, defaults),
                _flag(path, options),
                markdown.code(key.good),
                said,
            ]
        )
    return markdown.table(["key", "value", "default", "flag", "example", ""], rows)


def example() -> str:
    """Write a job file that has every key."""
    lines = []
    for path, part in leaves():
        above, _, name = path.rpartition(".")
        value = f" {KEYS[path].good}" if part is None else ""
        if path == "rules.action":
            before = "  - "
        else:
            before = {"": "", "rules": "    "}.get(above, "  ")
        if path != "rules.signals":  # no exit has both a code and a signal
            lines.append(f"{before}{name}:{value}")
    return "\n".join(["```yaml", *lines, "```"])


def sections() -> str:
    """Write a section for each key that has others below it."""
    written = []
    for top, part in leaves():
        if part is None:
            continue
        message = protos.messages()[_in_proto(top).of]
        below = [path for path, _ in leaves() if path.startswith(f"{top}.")]
        written += [f"### {top}", message.comment, table(below)]
    return "\n\n".join(written)


def rewritten(page: str) -> str:
    """Return the page with the keys as the code has them."""
    return markdown.replaced(
        page,
        example=example(),
        keys=table([path for path, _ in leaves() if "." not in path]),
        parts=sections(),
    )
