"""Jobs."""

import asyncio
import json
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from holdfast.v1 import job_pb2
from holdfast.wire import NotFound
from holdfast_gateway.answers import answer, answer_text, to_json
from holdfast_gateway.docs import BODY_OF_A_JOB, gives
from holdfast_gateway.parts import Flag, PageSize, PageToken, Parts, Text, Use
from holdfast_gateway.specs import read_spec
from holdfast_gateway.streams import job_changes, respond

SUMMARIES_AT_ONCE = 16
MOST_KEY = 128
MOST_INCIDENTS = 1_000

State = Literal["pending", "starting", "running", "restarting", "stopping", "succeeded", "failed", "stopped"]
States = Annotated[list[State], Query()]

router = APIRouter(tags=["jobs"])


@router.post("/jobs", openapi_extra=BODY_OF_A_JOB, status_code=201, **gives("Job", 201))
async def create_job(
    request: Request,
    parts: Use,
    idempotency_key: Annotated[str, Header(max_length=MOST_KEY)] = "",
) -> Response:
    """Create a job: JSON or YAML with the keys of a job file. Without a command it runs the built-in digits example.

    The same Idempotency-Key never makes a second job.
    """
    spec = await read_spec(request, parts.config.python)
    job = await parts.client.create_job(spec, idempotency_key)
    return answer(job, 201, {"Location": f"/jobs/{job.id}"})


@router.get("/jobs", **gives("ListJobsResponse"))
async def list_jobs(
    parts: Use, state: States = [], name: Text = "", page_size: PageSize = 100, page_token: PageToken = ""
) -> Response:
    """List jobs, newest first, without their workers."""
    found = await _page(parts, state, name, page_size, page_token)
    for job in found.jobs:
        del job.workers[:]
    return answer(found)


@router.get("/summaries", **gives({"summaries": ["JobSummary"], "next_page_token": str}))
async def list_summaries(
    parts: Use, state: States = [], name: Text = "", page_size: PageSize = 100, page_token: PageToken = ""
) -> Response:
    """List jobs in numbers, newest first."""
    found = await _page(parts, state, name, page_size, page_token)
    room = asyncio.Semaphore(SUMMARIES_AT_ONCE)

    async def summary(job_id: str) -> str | None:
        async with room:
            try:
                return to_json(await parts.client.job_summary(job_id))
            except NotFound:  # it was deleted meanwhile
                return None

    all_of = await asyncio.gather(*(summary(job.id) for job in found.jobs))
    items = ", ".join(text for text in all_of if text is not None)
    return answer_text(f'{{"summaries": [{items}], "next_page_token": {json.dumps(found.next_page_token)}}}')


@router.get("/jobs/{job_id}", **gives("Job"))
async def get_job(job_id: str, parts: Use) -> Response:
    """Look at a job and its workers."""
    return answer(await parts.client.get_job(job_id))


@router.get("/jobs/{job_id}/stream", **gives(None))
async def stream_job(job_id: str, request: Request, parts: Use) -> Response:
    """Stream a job: `job` now and after every change, `end` when it has ended."""
    await parts.client.get_job(job_id)
    return respond(request, parts, "job", job_changes(parts, job_id))


@router.get("/jobs/{job_id}/summary", **gives("JobSummary"))
async def get_summary(job_id: str, parts: Use) -> Response:
    """Give a job in numbers."""
    return answer(await parts.client.job_summary(job_id))


@router.get("/jobs/{job_id}/why", **gives("JobStory"))
async def explain_job(
    job_id: str, parts: Use, incidents: Annotated[int, Query(ge=1, le=MOST_INCIDENTS)] = 10
) -> Response:
    """Tell what ended the attempts of a job, what was done, what it cost; the newest `incidents`."""
    return answer(await parts.client.explain_job(job_id, incidents=incidents))


@router.get("/jobs/{job_id}/checkpoints", **gives("ListCheckpointsResponse"))
async def list_checkpoints(
    job_id: str, parts: Use, page_size: PageSize = 100, page_token: PageToken = ""
) -> Response:
    """List committed checkpoints that are kept, newest first."""
    return answer(await parts.client.list_checkpoints_page(job_id, size=page_size, token=page_token))


@router.post("/jobs/{job_id}/stop", **gives("Job"))
async def stop_job(job_id: str, parts: Use, force: Flag = "false") -> Response:
    """Ask a job to stop after a last checkpoint, within its grace; with `force` at once. Idempotent."""
    return answer(await parts.client.stop_job(job_id, force=force == "true"))


@router.delete("/jobs/{job_id}", status_code=204, **gives(None, 204))
async def delete_job(job_id: str, parts: Use) -> Response:
    """Forget an ended job and its logs. Its checkpoints stay where they are."""
    await parts.client.delete_job(job_id)
    return Response(status_code=204)


async def _page(
    parts: Parts, states: list[State], name: str, size: int, token: str
) -> job_pb2.ListJobsResponse:
    wanted = [job_pb2.JobState.Value(f"JOB_STATE_{word.upper()}") for word in states]
    return await parts.client.list_jobs_page(states=wanted, name=name, size=size, token=token)
