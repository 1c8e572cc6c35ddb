"""Job files: YAML to JobSpec, with errors that name file, line, field and remedy.

Shape and types are checked here. What values are possible is the coordinator's to say (it says so for every client in
every language); `SpecFile.explain` puts its answer beside the line that it is about.
"""

import difflib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from google.protobuf.duration_pb2 import Duration
from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictStr, ValidationError

from holdfast.units import parse_duration, parse_size, shown
from holdfast.v1 import job_pb2
from holdfast.wire import InvalidSpec, Violation

Path_ = tuple[str | int, ...]


class SpecError(Exception):
    """A job file that can't be; one sentence a line."""


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shown(value)} is not a number; write for instance 1.5")
    return float(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{shown(value)} is not a whole number; write for instance 4")
    return value


def _words(value: object) -> list[str]:
    if isinstance(value, str):
        raise ValueError('is a single string; write it as a list, for instance ["python", "train.py"]')
    if not isinstance(value, list):
        raise ValueError('is no list; write for instance ["python", "train.py"]')
    return [
        str(word) if isinstance(word, int | float) and not isinstance(word, bool) else word for word in value
    ]


def _scalar(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{shown(value)} is not a string; put it in quotes")
    return str(value)


Seconds = Annotated[timedelta, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole)]
Words = Annotated[list[StrictStr], BeforeValidator(_words)]
Scalar = Annotated[str, BeforeValidator(_scalar)]


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


class SpecPart(_Part):
    """A job file."""

    name: StrictStr | None = None
    command: Words | None = None
    world_size: Whole | None = None
    env: dict[StrictStr, Scalar] | None = None
    working_dir: StrictStr | None = None
    resources: ResourcesPart | None = None
    restart: RestartPart | None = None
    stop_grace: Seconds | None = None
    checkpoint_uri: StrictStr | None = None
    labels: dict[StrictStr, Scalar] | None = None

    def to_proto(self) -> job_pb2.JobSpec:
        """Write it as a JobSpec; what is absent stays absent."""
        spec = job_pb2.JobSpec(
            name=self.name or "",
            command=self.command or [],
            world_size=self.world_size or 0,
            env=self.env or {},
            working_dir=self.working_dir or "",
            stop_grace=_proto(self.stop_grace),
            checkpoint_uri=self.checkpoint_uri or "",
            labels=self.labels or {},
        )
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
                )
            )
        return spec


class SpecFile:
    """A job file that was read: its spec, and where each field stands."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises SpecError."""
        self._name = str(path)
        self._lines: dict[Path_, int] = {}
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except OSError as error:
            raise SpecError(f"{path}: can't be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SpecError(f"{path}: is not text in UTF-8") from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise SpecError(f"{path}:{line}: is not YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise SpecError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from error
        if root is None:
            raise SpecError(f"{path}: is empty; write at least command and world_size")
        if not isinstance(root, yaml.MappingNode):
            raise SpecError(f"{path}:1: is no mapping; write `key: value` lines, for instance world_size: 4")
        self._index(root, ())
        try:
            self.part = SpecPart.model_validate(yaml.SafeLoader("").construct_document(root))
        except ValidationError as error:
            raise SpecError("\n".join(self._sentence(problem) for problem in error.errors())) from error

    def explain(self, error: InvalidSpec) -> str:
        """Put the coordinator's answer beside the lines that it is about."""
        return "\n".join(self._violation(violation) for violation in error.violations) or str(error)

    def _violation(self, violation: Violation) -> str:
        field = violation.field.replace("memory_bytes", "memory")
        line = self._line(tuple(field.split(".")))
        return f"{self._name}:{line}: {field}: {violation.description}"

    def _index(self, node: yaml.Node, path: Path_) -> None:
        """Note the line of every key; refuse a key that is there twice, of which YAML would drop the first."""
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._lines[*path, index] = item.start_mark.line + 1
                self._index(item, (*path, index))
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            here = (*path, str(key.value))
            line = key.start_mark.line + 1
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
            return f"{shown(value)} is neither gang nor rank"
        case "string_type":
            return f"{shown(value)} is not a string; put it in quotes"
        case "model_type" | "dict_type":
            return f"{shown(value)} is no mapping; write `key: value` lines below it"
        case _:
            return f"{problem['msg']}: {shown(value)}"


def _keys_beside(path: Path_) -> list[str]:
    parts: dict[str, type[BaseModel]] = {"resources": ResourcesPart, "restart": RestartPart}
    model = parts.get(str(path[0]), SpecPart) if len(path) > 1 else SpecPart
    return list(model.model_fields)


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path))


def _proto(duration: timedelta | None) -> Duration | None:
    if duration is None:
        return None
    found = Duration()
    found.FromTimedelta(duration)
    return found
