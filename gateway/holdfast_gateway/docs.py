"""OpenAPI: schemas of the answers, made from the protos, and of the bodies, made from the reader of job files."""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from holdfast.spec import SpecPart
from holdfast.v1 import job_pb2, node_pb2

PROBLEM = "application/problem+json"
_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
_MADE = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$"},
}
DURATION = r"^(0|[0-9]+(\.[0-9]+)?(ms|s|m|h|d))$"
_WIDE = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)

BODY_OF_A_JOB: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/JobFile"}},
            "application/yaml": {
                "schema": {
                    "type": "object",
                    "description": "As JobFile; numbers in `env`, `labels` and `command` are text.",
                }
            },
        },
    }
}
BODY_OF_A_PURGE: dict[str, Any] = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "older_than": {"type": "string", "pattern": DURATION},
                        "status": {
                            "type": "array",
                            "items": {"type": "string", "enum": ["succeeded", "failed", "stopped"]},
                        },
                        "name": {"type": "string", "description": "A glob."},
                        "dry_run": {"type": "boolean"},
                    },
                }
            }
        },
    }
}


def gives(what: str | dict[str, Any] | None, status: int = 200) -> dict[str, Any]:
    """What a route answers: a message by its name, parts of an object, a media type; None: a stream, or nothing.

    Errors are problems, whatever their status.
    """
    found: dict[str, Any] = {"description": "It worked."}
    if what is None:
        if status != 204:
            found["content"] = _STREAM
    elif isinstance(what, str) and "/" in what:
        found["content"] = {what.partition(";")[0]: {"schema": {"type": "string"}}}
    else:
        found["content"] = {"application/json": {"schema": _schema(what)}}
    problem = {
        "description": "It did not work: what is wrong, and what to do about it.",
        "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    answers: dict[int | str, Any] = {status: found, "default": problem}
    if what is None and status == 200:
        answers[204] = {"description": "The end was seen: there is nothing more."}
    return {"responses": answers}


def complete(schema: dict[str, Any]) -> dict[str, Any]:
    """Add to what FastAPI made: the schemas that were named, and no answers of a form that we do not give."""
    schemas: dict[str, Any] = {"Problem": _problem(), **_job_file()}
    for file in (job_pb2.DESCRIPTOR, node_pb2.DESCRIPTOR):
        for message in file.message_types_by_name.values():
            _add(message, schemas)
    schema["components"] = {"schemas": schemas}
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            for answer in operation["responses"].values():
                _drop_guess(answer.get("content", {}))
    return schema


def _drop_guess(content: dict[str, Any]) -> None:
    """FastAPI takes every answer for JSON, beside what it is."""
    if len(content) > 1 and content.get("application/json") == {"schema": {}}:
        del content["application/json"]


def _schema(what: Any) -> dict[str, Any]:
    if isinstance(what, dict):
        return {
            "type": "object",
            "properties": {name: _schema(part) for name, part in what.items()},
            "required": list(what),
        }
    if isinstance(what, list):
        return {"type": "array", "items": _schema(what[0])}
    return {"type": "string"} if what is str else {"$ref": f"#/components/schemas/{what}"}


def _problem() -> dict[str, Any]:
    text = {"type": "string"}
    violation = {"type": "object", "properties": {"field": text, "description": text}}
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": text,
            "title": text,
            "status": {"type": "integer"},
            "detail": text,
            "remedy": text,
            "violations": {"type": "array", "items": violation},
        },
    }


def _job_file() -> dict[str, Any]:
    """What the reader of job files takes."""
    made = SpecPart.model_json_schema(ref_template="#/components/schemas/{model}")
    parts: dict[str, Any] = made.pop("$defs", {})
    made["title"] = "JobFile"
    return {"JobFile": made, **parts}


def _add(message: Descriptor, into: dict[str, Any]) -> None:
    if message.name in into or message.GetOptions().map_entry:
        return
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False}
    into[message.name] = schema
    schema["properties"] = {field.name: _field(field, into) for field in message.fields}


def _field(field: FieldDescriptor, into: dict[str, Any]) -> dict[str, Any]:
    of = field.message_type
    if of is not None and of.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _value(of.fields_by_name["value"], into)}
    value = _value(field, into)
    return {"type": "array", "items": value} if field.is_repeated else value


def _value(field: FieldDescriptor, into: dict[str, Any]) -> dict[str, Any]:
    if (of := field.message_type) is not None:
        if of.full_name in _MADE:
            return dict(_MADE[of.full_name])
        _add(of, into)
        return {"$ref": f"#/components/schemas/{of.name}"}
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    if field.cpp_type in _WIDE:
        return {"type": "string", "pattern": "^-?[0-9]+$"}
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return {"type": "boolean"}
        case FieldDescriptor.CPPTYPE_STRING:
            return {"type": "string"}
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            # JSON has no number for these.
            return {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
        case _:
            return {"type": "integer"}
