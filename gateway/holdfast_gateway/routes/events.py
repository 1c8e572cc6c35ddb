"""The timeline."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from holdfast_gateway.answers import answer
from holdfast_gateway.docs import gives
from holdfast_gateway.parts import PageSize, PageToken, Text, Use

After = Annotated[int, Query(ge=0, le=2**62, description="Only what came after the event of this seq.")]

router = APIRouter(tags=["events"])


@router.get("/events", **gives("ListEventsResponse"))
async def list_events(
    parts: Use, job_id: Text = "", after: After = 0, page_size: PageSize = 100, page_token: PageToken = ""
) -> Response:
    """List what happened and why, of one job or of all and the nodes, oldest first."""
    return answer(await parts.client.list_events_page(job_id, after=after, size=page_size, token=page_token))


@router.get("/jobs/{job_id}/events", **gives("ListEventsResponse"))
async def list_events_of_job(
    job_id: str, parts: Use, after: After = 0, page_size: PageSize = 100, page_token: PageToken = ""
) -> Response:
    """List what happened to a job and why, oldest first."""
    await parts.client.get_job(job_id)
    return answer(await parts.client.list_events_page(job_id, after=after, size=page_size, token=page_token))
