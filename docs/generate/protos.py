"""The protos with their comments, as protoc reads them."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

PROTO = Path(__file__).parents[2] / "proto"
NAMES = ("job", "node", "worker")
"""What others than a coordinator and its agents have to do with."""
PACKAGE = ".holdfast.v1."
_SYNTAX, _MESSAGES, _ENUMS, _SERVICES = 12, 4, 5, 6
_FIELDS, _VALUES, _METHODS, _NESTED_ENUMS = 2, 2, 2, 4
_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message. `of` names the message or enum that it holds, if it is of this package."""

    name: str
    number: int
    form: str
    of: str
    comment: str
    choice: str
    """The oneof that it is part of; empty: none."""


@dataclass(frozen=True, slots=True)
class Message:
    name: str
    comment: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Value:
    name: str
    number: int
    comment: str


@dataclass(frozen=True, slots=True)
class Enum:
    name: str
    comment: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    comment: str
    takes: str
    streams_in: bool
    gives: str
    streams_out: bool


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    comment: str
    methods: tuple[Method, ...]


@dataclass(frozen=True, slots=True)
class File:
    """A .proto file. `parts` are its messages and enums in their order."""

    name: str
    comment: str
    services: tuple[Service, ...]
    parts: tuple[Message | Enum, ...]


@cache
def read() -> dict[str, File]:
    """Read all protos, by their names. Raises ValueError when protoc does not take them."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder, "set")
        known = files("grpc_tools") / "_proto"
        names = [f"holdfast/v1/{name}.proto" for name in NAMES]
        options = [f"-I{PROTO}", f"-I{known}", "--include_source_info", f"--descriptor_set_out={into}"]
        if protoc.main(["protoc", *options, *names]):
            raise ValueError("protoc does not take the protos")
        found = FileDescriptorSet.FromString(into.read_bytes())
    return {Path(file.name).stem: _File(file).read() for file in found.file}


@cache
def messages() -> dict[str, Message]:
    """Give all messages by name."""
    return {part.name: part for file in read().values() for part in file.parts if isinstance(part, Message)}


@cache
def enums() -> dict[str, Enum]:
    """Give all enums by name."""
    return {part.name: part for file in read().values() for part in file.parts if isinstance(part, Enum)}


class _File:
    """Reads one."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(location.path): _comment(location.leading_comments or location.trailing_comments)
            for location in file.source_code_info.location
        }

    def read(self) -> File:
        services = tuple(
            Service(
                service.name,
                self._said(_SERVICES, at),
                tuple(
                    Method(
                        method.name,
                        self._said(_SERVICES, at, _METHODS, index),
                        _short(method.input_type),
                        method.client_streaming,
                        _short(method.output_type),
                        method.server_streaming,
                    )
                    for index, method in enumerate(service.method)
                ),
            )
            for at, service in enumerate(self._file.service)
        )
        parts = sorted(self._parts(), key=lambda part: part[0])
        return File(
            Path(self._file.name).name, self._said(_SYNTAX), services, tuple(part for _, part in parts)
        )

    def _parts(self) -> Iterator[tuple[int, Message | Enum]]:
        """Give each with its line."""
        lines = {tuple(found.path): found.span[0] for found in self._file.source_code_info.location}
        for at, enum in enumerate(self._file.enum_type):
            yield lines[_ENUMS, at], self._enum(enum, enum.name, (_ENUMS, at))
        for at, message in enumerate(self._file.message_type):
            yield lines[_MESSAGES, at], self._message(message, (_MESSAGES, at))
            for index, enum in enumerate(message.enum_type):
                path = (_MESSAGES, at, _NESTED_ENUMS, index)
                yield lines[path], self._enum(enum, f"{message.name}.{enum.name}", path)

    def _enum(self, enum: EnumDescriptorProto, name: str, path: Sequence[int]) -> Enum:
        values = tuple(
            Value(value.name, value.number, self._said(*path, _VALUES, at))
            for at, value in enumerate(enum.value)
        )
        return Enum(name, self._said(*path), values)

    def _message(self, message: DescriptorProto, path: Sequence[int]) -> Message:
        maps = {inner.name: inner for inner in message.nested_type if inner.options.map_entry}
        found = []
        for at, field in enumerate(message.field):
            entry = maps.get(field.type_name.rsplit(".", 1)[-1]) if field.type_name else None
            held = entry.field[1] if entry is not None else field
            form = _form(held)
            if entry is not None:
                form = f"map<{_form(entry.field[0])}, {form}>"
            elif field.label == FieldDescriptorProto.LABEL_REPEATED:
                form = f"repeated {form}"
            elif field.proto3_optional:
                form = f"optional {form}"
            in_choice = field.HasField("oneof_index") and not field.proto3_optional
            choice = message.oneof_decl[field.oneof_index].name if in_choice else ""
            of = _short(held.type_name) if held.type_name.startswith(PACKAGE) else ""
            found.append(Field(field.name, field.number, form, of, self._said(*path, _FIELDS, at), choice))
        return Message(message.name, self._said(*path), tuple(found))

    def _said(self, *path: int) -> str:
        return self._comments.get(path, "")


def _comment(text: str) -> str:
    """A comment as paragraphs of one line each, without what is said to linters."""
    lines = [line.strip() for line in text.splitlines() if not line.strip().startswith("buf:")]
    paragraphs = "\n".join(lines).strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _form(field: FieldDescriptorProto) -> str:
    return _short(field.type_name) if field.type_name else _SCALARS[field.type]


def _short(name: str) -> str:
    return name.removeprefix(PACKAGE).removeprefix(".google.protobuf.")
