"""Messages of the API as JSON: protobuf's own JSON form, with the names of the fields as the protos have them."""

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from starlette.responses import Response


def to_json(message: Message) -> str:
    """Write it on one line. 64-bit integers are strings, as protobuf's JSON form has them."""
    return MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=None,
        ensure_ascii=False,
    )


def answer(message: Message, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Give it."""
    return Response(to_json(message).encode(), status, headers, "application/json")


def answer_text(json: str) -> Response:
    """Give what is JSON already."""
    return Response(json.encode(), 200, None, "application/json")
