"""Pages: sizes with bounds, and tokens that say after which row to go on."""

import base64
import json
from typing import TypeVar

from google.rpc import code_pb2

from holdfast_coordinator.rpc.errors import Context, abort

T = TypeVar("T")
Place = TypeVar("Place", bound=tuple[int | str, ...])

DEFAULT = 100
LARGEST = 1_000


def size(asked: int) -> int:
    """How many rows a page has."""
    return min(asked, LARGEST) if asked > 0 else DEFAULT


def encode(place: list[int | str]) -> str:
    """Make the token of the page after `place`."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


async def token(context: Context, text: str, like: Place) -> Place:
    """Read a token; an empty one gives `like`. Ends the call when it is none of ours."""
    if not text:
        return like
    try:
        place = tuple(json.loads(base64.urlsafe_b64decode(text)))
    except ValueError:
        place = ()
    if [type(item) for item in place] != [type(item) for item in like]:
        message = "page_token is not one that this coordinator gave"
        await abort(context, code_pb2.INVALID_ARGUMENT, message, remedy="begin without a page_token")
    return place  # type: ignore[return-value]  # its types were just compared
