"""What the routes share: the parts of an app, and how parameters are read."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, cast

from fastapi import Depends, Query, Request

from holdfast.client import Client
from holdfast_gateway.boards import Boards
from holdfast_gateway.config import GatewayConfig
from holdfast_gateway.metrics import Metrics
from holdfast_gateway.problems import invalid
from holdfast_gateway.tracks import Tracks

MOST_A_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Parts:
    """What a gateway has one of."""

    config: GatewayConfig
    client: Client
    metrics: Metrics
    boards: Boards
    tracks: Tracks = field(default_factory=Tracks)


async def _parts(request: Request) -> Parts:  # a plain function would be called in a thread
    return cast("Parts", request.app.state.parts)


Use = Annotated[Parts, Depends(_parts)]
Flag = Literal["true", "false"]
PageSize = Annotated[int, Query(ge=1, le=MOST_A_PAGE, description="How many at most.")]
PageToken = Annotated[str, Query(description="`next_page_token` of the page before.")]


async def only_known(request: Request) -> None:
    """Refuse a query with a parameter that the route does not have: a filter with a typing error would filter nothing.

    Raises InvalidSpec.
    """
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if dependant is None:
        return
    known = {parameter.alias for parameter in dependant.query_params}
    for name in request.query_params:
        if name not in known:
            hint = f"known are {', '.join(sorted(known))}" if known else "this route has none"
            raise invalid(f"there is no query parameter {name[:80]}", [(name[:80], f"is unknown; {hint}")])
