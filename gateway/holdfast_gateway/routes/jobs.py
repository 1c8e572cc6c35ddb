"""Jobs."""

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from holdfast import tracing
from holdfast.units import parse_duration
from holdfast.v1 import job_pb2
from holdfast.wire import NotFound
from holdfast_gateway.answers import answer, answer_text, to_json
from holdfast_gateway.docs import BODY_OF_A_JOB, BODY_OF_A_PURGE, gives
from holdfast_gateway.parts import Flag, PageSize, PageToken, Parts, Use
from holdfast_gateway.problems import invalid
from holdfast_gateway.specs import read_object, read_spec
from holdfast_gateway.streams import all_jobs, job_changes, respond

SUMMARIES_AT_ONCE = 16
MOST_KEY = 128
ENDED = ("succeeded", "failed", "stopped")
MOST_INCIDENTS = 1_000

State = Literal["pending", "starting", "running", "restarting", "stopping", "succeeded", "failed", "stopped"]
Pause = Annotated[float, Query(ge=0, le=60, description="Seconds, at least, between two.")]
Key = Annotated[str, Header(max_length=MOST_KEY, description="Makes a retry safe: it is done once.")]
Force = Annotated[Flag, Query(description="At once: SIGKILL, and no last checkpoint.")]
StopFirst = Annotated[Flag, Query(description="Also one that runs: stop it, and wait for that.")]
Incidents = Annotated[int, Query(ge=1, le=MOST_INCIDENTS, description="How many, the newest.")]
Name = Annotated[str, Query(description="Only jobs of this name.")]
Names = Annotated[list[str], Query(max_length=100, description="Only these curves; may be repeated.")]
Points = Annotated[int, Query(ge=0, le=100_000, description="How many a curve; 0: all that are kept.")]
States = Annotated[list[State], Query(description="Only jobs in this state; may be repeated.")]

router = APIRouter(tags=["jobs"])


@router.post("/jobs", openapi_extra=BODY_OF_A_JOB, status_code=201, **gives("Job", 201))
async def create_job(
    request: Request,
    parts: Use,
    idempotency_key: Key = "",
) -> Response:
    """Create a job: JSON or YAML with the keys of a job file. Without a command it runs the built-in digits example.

    The same Idempotency-Key never makes a second job.
    """
    spec = await read_spec(request, parts.config.python)
    parent = request.headers.get("traceparent", "")
    if tracing.trace_id(parent) and tracing.VARIABLE not in spec.env:
        spec.env[tracing.VARIABLE] = parent
    job = await parts.client.create_job(spec, idempotency_key)
    return answer(job, 201, {"Location": f"/jobs/{job.id}"})


@router.post("/jobs/plan", openapi_extra=BODY_OF_A_JOB, **gives("JobPlan"))
async def plan_job(request: Request, parts: Use) -> Response:
    """Say where the ranks of a job would be placed if it were created now, or why it would wait; nothing is created."""
    return answer(await parts.client.plan_job(await read_spec(request, parts.config.python)))


@router.get("/jobs", **gives("ListJobsResponse"))
async def list_jobs(
    parts: Use, state: States = [], name: Name = "", page_size: PageSize = 100, page_token: PageToken = ""
) -> Response:
    """List jobs, newest first, without their workers."""
    found = await _page(parts, state, name, page_size, page_token)
    for job in found.jobs:
        del job.workers[:]
    return answer(found)


@router.get("/summaries", **gives({"summaries": ["JobSummary"], "next_page_token": str}))
async def list_summaries(
    parts: Use, state: States = [], name: Name = "", page_size: PageSize = 100, page_token: PageToken = ""
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


@router.get("/jobs/stream", **gives(None))
async def stream_jobs(request: Request, parts: Use) -> Response:
    """Stream all jobs, without their workers: `job` each, `ready`, then `job` and `deleted` as they change."""
    await parts.client.list_jobs_page(size=1)
    return respond(request, parts, "jobs", all_jobs(parts))


@router.get("/jobs/{job_id}/stream", **gives(None))
async def stream_job(job_id: str, request: Request, parts: Use, pause: Pause = 0.0) -> Response:
    """Stream a job with its workers: `job` now and after every change, `end` when it has ended."""
    await parts.client.get_job(job_id)
    return respond(request, parts, "job", job_changes(parts, job_id, pause))


@router.get("/jobs/{job_id}", **gives("Job"))
async def get_job(job_id: str, parts: Use) -> Response:
    """Look at a job and its workers."""
    return answer(await parts.client.get_job(job_id))


@router.get("/jobs/{job_id}/summary", **gives("JobSummary"))
async def get_summary(job_id: str, parts: Use) -> Response:
    """Give a job in numbers."""
    return answer(await parts.client.job_summary(job_id))


@router.get("/jobs/{job_id}/why", **gives("JobStory"))
async def explain_job(job_id: str, parts: Use, incidents: Incidents = 10) -> Response:
    """Tell what ended the attempts of a job, what was done, what it cost; the newest `incidents`."""
    return answer(await parts.client.explain_job(job_id, incidents=incidents))


@router.get("/jobs/{job_id}/metrics", **gives("GetJobMetricsResponse"))
async def get_metrics(job_id: str, parts: Use, name: Names = [], points: Points = 0) -> Response:
    """Give the curves of a job: what it reported, `steps_per_second`, `goodput`; each of at most `points` points."""
    series = await parts.client.job_metrics(job_id, name, points)
    return answer(job_pb2.GetJobMetricsResponse(series=series))


@router.get("/jobs/{job_id}/checkpoints", **gives("ListCheckpointsResponse"))
async def list_checkpoints(
    job_id: str, parts: Use, page_size: PageSize = 100, page_token: PageToken = ""
) -> Response:
    """List committed checkpoints that are kept, newest first."""
    return answer(await parts.client.list_checkpoints_page(job_id, size=page_size, token=page_token))


@router.post("/jobs/{job_id}/stop", **gives("Job"))
async def stop_job(job_id: str, parts: Use, force: Force = "false") -> Response:
    """Ask a job to stop after a last checkpoint, within its grace; with `force` at once. Idempotent."""
    return answer(await parts.client.stop_job(job_id, force=force == "true"))


@router.post("/jobs/{job_id}/restart", **gives("Job"))
async def restart_job(job_id: str, parts: Use, force: Force = "false", idempotency_key: Key = "") -> Response:
    """Have a job begin its next attempt after a checkpoint, with `force` at once.

    One that has failed or was stopped goes on from its last commit. The same Idempotency-Key never restarts it twice.
    """
    job = await parts.client.restart_job(job_id, force=force == "true", request_id=idempotency_key)
    return answer(job)


@router.delete("/jobs/{job_id}", status_code=204, **gives(None, 204))
async def delete_job(
    job_id: str, parts: Use, stop_first: StopFirst = "false", force: Force = "false"
) -> Response:
    """Forget an ended job and its logs; with `stop_first` also one that runs, which is stopped and waited for.

    Its checkpoints stay where they are.
    """
    if force == "true" and stop_first == "false":
        raise invalid("force says how to stop", [("force", "give stop_first=true, too")])
    await parts.client.delete_job(job_id, stop_first=stop_first == "true", force=force == "true")
    return Response(status_code=204)


@router.post("/jobs/purge", openapi_extra=BODY_OF_A_PURGE, **gives({"jobs": ["Job"]}))
async def purge_jobs(request: Request, parts: Use) -> Response:
    """Forget the jobs that ended long ago, and give them; with `dry_run` only give them."""
    wanted = await read_object(request, {"older_than": str, "status": list, "name": str, "dry_run": bool})
    try:
        older_than = parse_duration(wanted.get("older_than", "7d"))
    except ValueError as error:
        raise invalid(f"older_than: {error}", [("older_than", str(error))]) from error
    words = wanted.get("status", list(ENDED))
    for word in words:
        if word not in ENDED:
            raise invalid(
                "status: jobs that have not ended are not purged", [("status", f"is one of {ENDED}")]
            )
    deleted = await parts.client.purge_jobs(
        older_than=older_than,
        states=_states(words),
        name=wanted.get("name", ""),
        dry_run=wanted.get("dry_run", False),
    )
    for job in deleted:
        del job.workers[:]
    return answer_text(f'{{"jobs": [{", ".join(map(to_json, deleted))}]}}')


async def _page(
    parts: Parts, states: list[State], name: str, size: int, token: str
) -> job_pb2.ListJobsResponse:
    return await parts.client.list_jobs_page(states=_states(states), name=name, size=size, token=token)


def _states(words: Sequence[str]) -> list["job_pb2.JobState.ValueType"]:
    return [job_pb2.JobState.Value(f"JOB_STATE_{word.upper()}") for word in words]
