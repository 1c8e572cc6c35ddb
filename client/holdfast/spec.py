"""Job files: YAML to JobSpec, with errors that name file, line, field and remedy.

Shape and types are checked here. What values are possible is the coordinator's to say (it says so for every client in
every language); `SpecFile.where` tells the line that its answer is about.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

import yaml
from google.protobuf.duration_pb2 import Duration
from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictStr, ValidationError, WithJsonSchema

from holdfast.spec_rules import RulePart
from holdfast.units import parse_duration, parse_size, parse_whole, shown
from holdfast.v1 import job_pb2

Path_ = tuple[str | int, ...]

_TEXTS = ("env", "labels", "command")
"""Below these a number is text: VERSION: 1.10 stays 1.10."""
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_TEXT_TAG = "tag:yaml.org,2002:str"
_MAX_BYTES = 2**20
_MAX_DEPTH = 8


class SpecError(Exception):
    """A job file that can't be; one sentence a line. `problems` are its fields that are wrong, and how."""

    def __init__(self, message: str, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shown(value)} is not a number; write e.g. 1.5")
    return float(value)


def _words(value: object) -> object:
    if isinstance(value, str):
        raise ValueError('is a single string; write it as a list, e.g. ["python", "train.py"]')
    if not isinstance(value, list):
        raise ValueError('is no list; write e.g. ["python", "train.py"]')
    return value


def _modules(value: object) -> object:
    if not isinstance(value, list):
        raise ValueError("is no list; write e.g. [numpy, torch]")
    return value


def _action(value: object) -> object:
    """YAML takes the word off, without quotes, for a false."""
    return "off" if value is False else value


_DURATION_SCHEMA = {
    "anyOf": [{"type": "string", "pattern": r"^(0|[0-9]+(\.[0-9]+)?(ms|s|m|h|d))$"}, {"const": 0}]
}
_SIZE_SCHEMA = {
    "anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)$"}]
}
_HANG_ACTIONS = {"enum": ["notify", "restart", "off", False, None]}

Seconds = Annotated[timedelta, BeforeValidator(parse_duration), WithJsonSchema(_DURATION_SCHEMA)]
Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema(_SIZE_SCHEMA)]
Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(parse_whole)]
Words = Annotated[list[StrictStr], BeforeValidator(_words)]
Modules = Annotated[list[StrictStr], BeforeValidator(_modules)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ResourcesPart(_Part):
    """What one worker needs."""

    cpus: Number | None = None
    memory: Size | None = None
    gpus: Whole | None = None


class RestartPart(_Part):
    """When to restart, and when to give up."""

    scope: Literal["gang", "rank"] | None = None
    backoff: Seconds | None = None
    backoff_cap: Seconds | None = None
    jitter: Number | None = None
    budget: Whole | None = None
    window: Seconds | None = None
    no_progress_limit: Whole | None = None
    grace: Seconds | None = None


class RetentionPart(_Part):
    """Which checkpoints are kept."""

    keep_last: Whole | None = None
    keep_every: Whole | None = None
    best: Whole | None = None
    metric: StrictStr | None = None
    mode: Literal["min", "max"] | None = None

    def to_proto(self) -> job_pb2.RetentionPolicy:
        """Write it as a RetentionPolicy."""
        return job_pb2.RetentionPolicy(
            keep_last=self.keep_last,
            keep_every=self.keep_every or 0,
            best=self.best or 0,
            metric=self.metric or "",
            mode=job_pb2.MetricMode.Value(f"METRIC_MODE_{(self.mode or 'unspecified').upper()}"),
        )


class LogsPart(_Part):
    """What is kept of the workers' output."""

    keep: Size | None = None


class HangPart(_Part):
    """When a worker hangs, and what is done about it."""

    action: Annotated[
        Literal["notify", "restart", "off"] | None, BeforeValidator(_action), WithJsonSchema(_HANG_ACTIONS)
    ] = None
    limits: dict[StrictStr, Seconds] | None = None
    factor: Number | None = None
    floor: Seconds | None = None

    def to_proto(self) -> job_pb2.HangPolicy:
        """Write it as a HangPolicy."""
        return job_pb2.HangPolicy(
            action=job_pb2.HangAction.Value(f"HANG_ACTION_{(self.action or 'unspecified').upper()}"),
            limits={section: _duration(limit) for section, limit in (self.limits or {}).items()},
            factor=self.factor,
            floor=_proto(self.floor),
        )


class StragglerPart(_Part):
    """When a rank is a straggler, and what is done about it."""

    threshold: Number | None = None
    strikes: Whole | None = None

    def to_proto(self) -> job_pb2.StragglerPolicy:
        """Write it as a StragglerPolicy."""
        return job_pb2.StragglerPolicy(threshold=self.threshold, strikes=self.strikes or 0)


class SpecPart(_Part):
    """A job file."""

    name: StrictStr | None = None
    command: Words | None = None
    world_size: Whole | None = None
    env: dict[StrictStr, StrictStr] | None = None
    working_dir: StrictStr | None = None
    resources: ResourcesPart | None = None
    restart: RestartPart | None = None
    stop_grace: Seconds | None = None
    checkpoint_uri: StrictStr | None = None
    labels: dict[StrictStr, StrictStr] | None = None
    retention: RetentionPart | None = None
    resume_from: StrictStr | None = None
    datasets: dict[StrictStr, StrictStr] | None = None
    rules: list[RulePart] | None = None
    logs: LogsPart | None = None
    log_metrics: dict[StrictStr, StrictStr] | None = None
    hang: HangPart | None = None
    stragglers: StragglerPart | None = None
    preload: Modules | None = None
    spares: Whole | None = None

    def to_proto(self) -> job_pb2.JobSpec:
        """Write it as a JobSpec. What is absent stays absent, but for the world size, which is 1 then."""
        spec = job_pb2.JobSpec(
            name=self.name or "",
            command=self.command or [],
            world_size=1 if self.world_size is None else self.world_size,
            env=self.env or {},
            working_dir=self.working_dir or "",
            stop_grace=_proto(self.stop_grace),
            checkpoint_uri=self.checkpoint_uri or "",
            labels=self.labels or {},
            retention=self.retention.to_proto() if self.retention is not None else None,
            resume_from=self.resume_from or "",
            datasets=[job_pb2.DataSet(name=name, uri=uri) for name, uri in (self.datasets or {}).items()],
            rules=[rule.to_proto() for rule in self.rules or ()],
            log_metrics=self.log_metrics or {},
            hang=self.hang.to_proto() if self.hang is not None else None,
            stragglers=self.stragglers.to_proto() if self.stragglers is not None else None,
            preload=self.preload or [],
            spares=self.spares or 0,
        )
        if self.logs is not None and self.logs.keep is not None:
            spec.logs.keep_bytes = self.logs.keep
        if self.resources is not None:
            needs = self.resources
            spec.resources.cpus = needs.cpus or 0
            spec.resources.memory_bytes = needs.memory or 0
            spec.resources.gpus = needs.gpus or 0
        if self.restart is not None:
            restart = self.restart
            scope = f"RESTART_SCOPE_{(restart.scope or 'unspecified').upper()}"
            spec.restart.CopyFrom(
                job_pb2.RestartPolicy(
                    scope=job_pb2.RestartScope.Value(scope),
                    backoff=_proto(restart.backoff),
                    backoff_cap=_proto(restart.backoff_cap),
                    jitter=restart.jitter,
                    budget=restart.budget,
                    window=_proto(restart.window),
                    no_progress_limit=restart.no_progress_limit,
                    grace=_proto(restart.grace),
                )
            )
        return spec


class SpecFile:
    """A job file that was read: its spec, and where each field stands."""

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        """Read it; or take its content, and name it after `path` in errors. Raises SpecError."""
        self._name = str(path)
        self._lines: dict[Path_, int] = {}
        root = self._compose(_text(path, _read(path) if content is None else content))
        try:
            self.part = SpecPart.model_validate(root)
        except ValidationError as error:
            sentences = "\n".join(self._sentence(problem) for problem in error.errors())
            raise SpecError(sentences, _problems(error)) from error

    def where(self, field: str) -> str | None:
        """`job.yaml:3: world_size` of a field by its path in the proto; None when the file does not have it."""
        field = field.replace("memory_bytes", "memory").replace("keep_bytes", "keep")
        path: Path_ = tuple(field.split(".", 2 if field.startswith("hang.limits.") else 1))
        if path[0] in ("rules", "preload"):
            path = tuple(int(word) if word.isdecimal() else word for word in field.split("."))
            path = path if path in self._lines else path[: 2 if path[0] == "rules" else 1]
        if path not in self._lines:
            return None
        return f"{self._name}:{self._lines[path]}: {field}"

    def _compose(self, text: str) -> object:
        """Parse the text, noting the line of every key."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            if root is None:
                raise SpecError(f"{self._name}: is empty; write at least command and world_size")
            if not isinstance(root, yaml.MappingNode):
                raise SpecError(
                    f"{self._name}:1: is no mapping; write `key: value` lines, e.g. world_size: 4"
                )
            self._index(root, ())
            return yaml.SafeLoader("").construct_document(root)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise SpecError(f"{self._name}:{line}: is not YAML: {error.problem}") from error
        except RecursionError as error:
            raise SpecError(f"{self._name}: goes too deep; flatten it") from error
        except (yaml.YAMLError, ValueError) as error:  # a character, or a date, that can't be
            raise SpecError(f"{self._name}: is not YAML: {str(error).splitlines()[0]}") from error

    def _index(self, node: yaml.Node, path: Path_) -> None:
        """Note the line of every key; refuse a key that is there twice, of which YAML would drop the first."""
        if len(path) > _MAX_DEPTH:
            raise SpecError(f"{self._name}:{node.start_mark.line + 1}: {path[0]}: goes too deep; flatten it")
        if isinstance(node, yaml.ScalarNode) and path[0] in _TEXTS and node.tag in _NUMBER_TAGS:
            node.tag = _TEXT_TAG
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._lines[*path, index] = item.start_mark.line + 1
                self._index(item, (*path, index))
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != _TEXT_TAG:
                raise SpecError(f"{self._name}:{line}: a key has to be a name; put it in quotes if it is one")
            here = (*path, str(key.value))
            if here in self._lines:
                where = f"{self._name}:{line}: {_dotted(here)}"
                raise SpecError(f"{where}: is there twice, first on line {self._lines[here]}; remove one")
            self._lines[here] = line
            self._index(value, here)

    def _line(self, path: Path_) -> int:
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def _sentence(self, problem: Mapping[str, Any]) -> str:
        path: Path_ = tuple(problem["loc"])
        where = f"{self._name}:{self._line(path)}: {_dotted(path)}"
        return f"{where}: {_said(problem, path)}"


def spec_from_json(content: bytes) -> SpecPart:
    """Read a job file that is JSON, with the same keys. Raises SpecError."""
    try:
        root = json.loads(content, object_pairs_hook=_object, parse_constant=_no_number)
    except SpecError:
        raise
    except (ValueError, RecursionError) as error:
        raise SpecError(f"is not JSON: {error}") from error
    if not isinstance(root, dict):
        raise SpecError('is no object; write e.g. {"world_size": 4}')
    try:
        return SpecPart.model_validate(root)
    except ValidationError as error:
        problems = _problems(error)
        raise SpecError("\n".join(f"{field}: {said}" for field, said in problems), problems) from error


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in members:
        if key in found:
            raise SpecError(f"{shown(key)} is there twice; remove one", [(key, "is there twice; remove one")])
        found[key] = value
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{path}: can't be read: {error.strerror}") from error


def _text(path: Path, content: bytes) -> str:
    if len(content) > _MAX_BYTES:
        raise SpecError(f"{path}: is larger than a mebibyte; is it a job file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not text in UTF-8; save it as such") from error


def _problems(error: ValidationError) -> list[tuple[str, str]]:
    """The fields that are wrong, and how, in a sentence each."""
    return [
        (_dotted(tuple(problem["loc"])), _said(problem, tuple(problem["loc"]))) for problem in error.errors()
    ]


def _said(problem: Mapping[str, Any], path: Path_) -> str:
    value = problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(path[-1]), _keys_beside(path), n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(_keys_beside(path))}"
            return f"unknown key; {hint}"
        case "value_error":
            return str(problem["ctx"]["error"])
        case "literal_error":
            return f"{shown(value)} is neither {' nor '.join(_choices(path))}"
        case "string_type":
            return f"{shown(value)} is not a string; put it in quotes"
        case "list_type":
            return f"{shown(value)} is no list; write `- key: value` lines below it"
        case "missing":
            return f"is missing; write e.g. {path[-1]}: {_EXAMPLES.get(str(path[-1]), '...')}"
        case "bool_type":
            return f"{shown(value)} is neither true nor false"
        case "model_type" | "dict_type":
            return f"{shown(value)} is no mapping; write `key: value` lines below it"
        case _:
            return f"{problem['msg']}: {shown(value)}"


_PARTS: dict[str, type[BaseModel]] = {
    "resources": ResourcesPart,
    "restart": RestartPart,
    "retention": RetentionPart,
    "logs": LogsPart,
    "hang": HangPart,
    "stragglers": StragglerPart,
    "rules": RulePart,
}
_EXAMPLES = {"action": "retry"}


def _keys_beside(path: Path_) -> list[str]:
    model = _PARTS.get(str(path[0]), SpecPart) if len(path) > 1 else SpecPart
    return list(model.model_fields)


def _choices(path: Path_) -> list[str]:
    """The words that a field takes."""
    field = _PARTS[str(path[0])].model_fields[str(path[1])]
    words, _ = get_args(field.annotation)
    return list(get_args(words))


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path))


def _proto(duration: timedelta | None) -> Duration | None:
    return None if duration is None else _duration(duration)


def _duration(duration: timedelta) -> Duration:
    found = Duration()
    found.FromTimedelta(duration)
    return found
