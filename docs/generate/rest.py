"""docs/reference/rest.md, from the gateway's OpenAPI description."""

from collections.abc import Iterator, Mapping
from typing import Any

from docs.generate import markdown, protos
from holdfast_gateway.app import description

_METHODS = {"get": "GET", "post": "POST", "delete": "DELETE"}
_BODIES = {"JobFile": "[job spec](job-spec.md)", "Problem": "[problem](#problems)"}


def _named(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, its messages linked to where they are described."""
    if reference := schema.get("$ref"):
        name = reference.rsplit("/", 1)[1]
        if name not in _BODIES and name not in protos.messages():
            raise ValueError(f"{name} is described nowhere")
        return _BODIES.get(name) or f"[{name}](grpc.md#{name.lower()})"
    if schema.get("type") == "array":
        return f"list of {_named(schema['items'])}"
    if schema.get("type") == "object" and "properties" in schema:
        inner = (f"`{name}`: {_named(part)}" for name, part in schema["properties"].items())
        return f"object of {', '.join(inner)}"
    if choices := schema.get("enum"):
        return ", ".join(f"`{choice}`" for choice in choices)
    if several := schema.get("anyOf"):
        return _named(next(each for each in several if each.get("type") != "null"))
    least, most = schema.get("minimum"), schema.get("maximum")
    kind = {"integer": "whole number", "string": "text", "boolean": "true or false"}.get(
        schema["type"], schema["type"]
    )
    return kind if most is None else f"{kind}, {least:,} to {most:,}"


def _content(content: Mapping[str, Any]) -> str:
    if "text/event-stream" in content:
        return "[stream of events](../gateway.md#streams)"
    if "text/plain" in content:
        return "text"
    return "; or ".join(
        f"{_named(found['schema'])}{'' if kind == 'application/json' else f' as `{kind}`'}"
        if "$ref" in found["schema"] or "properties" in found["schema"]
        else f"the same as `{kind}`"
        for kind, found in content.items()
    )


def _parameters(operation: Mapping[str, Any]) -> str:
    rows = []
    for found in operation.get("parameters", []):
        if found["in"] == "path":
            continue
        schema = found["schema"]
        default = schema.get("default", "")
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        where = "" if found["in"] == "query" else f" ({found['in']})"
        rows.append(
            [
                f"`{found['name']}`{where}",
                _named(schema).removeprefix("list of "),
                "" if default == [] else shown,
                found.get("description", ""),
            ]
        )
    return markdown.table(["parameter", "value", "default", ""], rows) if rows else ""


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {_METHODS[method]} {path}"
    yield " ".join(operation["description"].split())
    if table := _parameters(operation):
        yield table
    if body := operation.get("requestBody"):
        yield f"Takes: {_content(body['content'])}."
    status, answer = next((s, a) for s, a in operation["responses"].items() if s != "default")
    given = f", {_content(answer['content'])}" if answer.get("content") else ""
    also = ", or 204 when the end was seen" if "204" in operation["responses"] and status != "204" else ""
    yield f"Gives: {status}{given}{also}."


def routes() -> str:
    """Write all routes, by their tags."""
    by_tag: dict[str, list[str]] = {}
    for path, operations in description()["paths"].items():
        for method, operation in operations.items():
            (tag,) = operation["tags"]
            by_tag.setdefault(tag, []).extend(_operation(method, path, operation))
    return "\n\n".join(
        text for tag, written in by_tag.items() for text in (f"## {tag.capitalize()}", *written)
    )


def rewritten(page: str) -> str:
    """Return the page with the routes as the gateway has them."""
    return markdown.replaced(page, routes=routes())
