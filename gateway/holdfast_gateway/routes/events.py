"""The timeline."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from holdfast_gateway.answers import answer
from holdfast_gateway.docs import gives
from holdfast_gateway.parts import PageSize, PageToken, Use
from holdfast_gateway.problems import invalid
from holdfast_gateway.streams import END, respond, timeline
from holdfast_gateway.timeline import MOST_TAIL, before_last

After = Annotated[int, Query(ge=0, le=2**62, description="Only what came after the event of this seq.")]
Of = Annotated[str, Query(description="Only of this job.")]
Tail = Annotated[int | None, Query(ge=0, le=MOST_TAIL, description="Begin with so many of the last.")]
MOST_DIGITS = 18

router = APIRouter(tags=["events"])


@router.get("/events", **gives("ListEventsResponse"))
async def list_events(
    parts: Use, job_id: Of = "", after: After = 0, page_size: PageSize = 100, page_token: PageToken = ""
) -> Response:
    """List what happened and why, of one job or of all and the nodes, oldest first."""
    return answer(await parts.client.list_events_page(job_id, after=after, size=page_size, token=page_token))


@router.get("/events/stream", **gives(None))
async def stream_events(
    request: Request, parts: Use, job_id: Of = "", after: After = 0, tail: Tail = None
) -> Response:
    """Stream the timeline, of one job or of all and the nodes: `event`, whose id is its seq.

    From behind `after`, or with the last `tail` of them; and from where the reader was, with `Last-Event-ID`.
    """
    known = request.headers.get("last-event-id", "")
    if job_id:
        await parts.client.get_job(job_id)
    if known and known != END:
        if not known.isascii() or not known.isdecimal() or len(known) > MOST_DIGITS:
            raise invalid("Last-Event-ID is no seq of an event", remedy="connect without it")
        after = int(known)
    elif tail is not None:
        after = max(after, await before_last(parts.client, job_id, tail))
    return respond(request, parts, "events", timeline(parts, job_id, after))


@router.get("/jobs/{job_id}/events", **gives("ListEventsResponse"))
async def list_events_of_job(
    job_id: str, parts: Use, after: After = 0, page_size: PageSize = 100, page_token: PageToken = ""
) -> Response:
    """List what happened to a job and why, oldest first."""
    await parts.client.get_job(job_id)
    return answer(await parts.client.list_events_page(job_id, after=after, size=page_size, token=page_token))
