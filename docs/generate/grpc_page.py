"""docs/reference/grpc.md, from the protos and their comments."""

import re
from collections.abc import Iterator

from docs.generate import markdown, protos
from docs.generate.protos import Enum, File, Message, Method

COMMON = {
    "attempt": "Of the rank, or of its gang.",
    "job_id": "Of the job.",
    "local_rank": "The place of a rank among those of its job on its node.",
    "next_page_token": "For the next page; empty on the last.",
    "node": "The name of the node.",
    "page_size": "At most 1,000. Default 100.",
    "page_token": "The `next_page_token` of the page before; empty: the first page.",
    "rank": "Of the worker in its job, from 0.",
    "step": "The step.",
}
"""What a field means that has no comment of its own, and this name."""
_FIRST_SENTENCE = re.compile(r'.*?\."?(?=\s|$)')
_WELL_KNOWN = "https://protobuf.dev/reference/protobuf/google.protobuf/"


def meaning(name: str, of: str, comment: str) -> str:
    """Say what a field means: its comment, or what its name or its type says; empty when nothing does."""
    if comment or name in COMMON:
        return comment or COMMON[name]
    held = protos.messages().get(of) or protos.enums().get(of)
    first = _FIRST_SENTENCE.match(held.comment) if held is not None else None
    return first[0] if first else ""


def _linked(name: str) -> str:
    """Name a type, with a link to where it is described."""
    if name in protos.messages() or name in protos.enums():
        return f"[{name}](#{name.lower().replace('.', '')})"
    return f"[{name}]({_WELL_KNOWN}#{name.lower()})" if name[0].isupper() else f"`{name}`"


def _form(form: str, of: str) -> str:
    """The type of a field, as the proto has it."""
    words = form.split(" ")
    last = of or words[-1]
    if form.startswith("map<"):
        return f"map of {_linked(form[4:].partition(',')[0])} to {_linked(of or words[-1].rstrip('>'))}"
    return " ".join([*words[:-1], _linked(last)])


def _method(method: Method) -> list[str]:
    takes, gives = _linked(method.takes), _linked(method.gives)
    return [
        f"`{method.name}`",
        f"stream of {takes}" if method.streams_in else takes,
        f"stream of {gives}" if method.streams_out else gives,
        method.comment,
    ]


def _message(message: Message) -> Iterator[str]:
    yield f"### {message.name}"
    if message.comment:
        yield message.comment
    if not message.fields:
        yield "It has no fields."
        return
    rows = []
    for field in message.fields:
        said = meaning(field.name, field.of, field.comment)
        among = f" One of `{field.choice}`." if field.choice else ""
        rows.append([f"`{field.name}`", str(field.number), _form(field.form, field.of), f"{said}{among}"])
    yield markdown.table(["field", "number", "type", ""], rows)


def _enum(enum: Enum) -> Iterator[str]:
    yield f"### {enum.name}"
    if enum.comment:
        yield enum.comment
    values = [value for value in enum.values if value.number]
    yield markdown.table(
        ["value", "number", ""], [[f"`{value.name}`", str(value.number), value.comment] for value in values]
    )


def section(file: File) -> str:
    """Write what a file has: its services, then its messages and enums."""
    written = [file.comment]
    for service in file.services:
        written += [f"### {service.name}", service.comment]
        written.append(markdown.table(["method", "takes", "gives", ""], map(_method, service.methods)))
    for part in file.parts:
        written += _message(part) if isinstance(part, Message) else _enum(part)
    return "\n\n".join(text for text in written if text)


def rewritten(page: str) -> str:
    """Return the page with every file as it is."""
    return markdown.replaced(page, **{name: section(file) for name, file in protos.read().items()})
