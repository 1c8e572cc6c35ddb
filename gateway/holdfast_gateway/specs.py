"""Bodies of requests: job specs as JSON or YAML, with the keys of job files."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from holdfast.names import default_name
from holdfast.spec import SpecFile, SpecPart, spec_from_json
from holdfast.v1 import job_pb2
from holdfast_gateway.guard import TOO_LARGE, TooLargeError
from holdfast_gateway.problems import invalid

EXAMPLE = "holdfast.examples.digits"
"""What a job without a command runs."""

_JSON = frozenset({"application/json", "application/x-www-form-urlencoded", ""})
"""The second is what curl says when it is told nothing; a form of a page is refused by its Origin."""
_YAML = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})


async def read_spec(request: Request, python: str) -> job_pb2.JobSpec:
    """Read the spec of a job, and fill in what a command line would. Raises SpecError, InvalidSpec.

    Its data sets are counted here, which takes as long as reading them where they are on this machine.
    """
    kind = _media_type(request)
    if kind not in _JSON | _YAML:
        raise invalid(
            f'a job can\'t be read from "{kind[:80]}"', remedy="send application/json or application/yaml"
        )
    content = await read_body(request)
    part = SpecFile(Path("job"), content).part if kind in _YAML else spec_from_json(content)
    spec = _to_proto(part)
    if not spec.command:
        spec.command[:] = [python, "-m", EXAMPLE]
        spec.name = spec.name or "digits"
        if not spec.restart.scope:
            spec.restart.scope = job_pb2.RESTART_SCOPE_RANK
    spec.name = spec.name or default_name(spec.command)
    if spec.datasets:
        await asyncio.to_thread(_count_datasets, spec)
    return spec


async def read_object(request: Request, known: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Read a small JSON object of known keys. An empty body is an empty object. Raises InvalidSpec."""
    content = await read_body(request)
    if not content.strip():
        return {}
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise invalid("the body is no JSON object", remedy=f"its keys are {', '.join(known)}")
    for key, value in found.items():
        if key not in known:
            raise invalid(f"{key[:80]}: unknown key", [(key[:80], f"known are {', '.join(known)}")])
        if not isinstance(value, known[key]) or (isinstance(value, bool) and known[key] is not bool):
            raise invalid(
                f"{key}: {json.dumps(value)[:60]} is of the wrong type", [(key, "is of the wrong type")]
            )
    return found


async def read_body(request: Request) -> bytes:
    """Read the body. Raises HTTPException."""
    try:
        return await request.body()
    except TooLargeError as error:
        raise HTTPException(413, TOO_LARGE) from error


def _to_proto(part: SpecPart) -> job_pb2.JobSpec:
    try:
        return part.to_proto()
    except UnicodeEncodeError as error:
        raise invalid(
            "the job can't be: half of a surrogate pair stands in a string; write whole characters"
        ) from error
    except ValueError as error:
        raise invalid(f"the job can't be: {error}") from error


def _count_datasets(spec: job_pb2.JobSpec) -> None:
    from holdfast.data.errors import DataError
    from holdfast.datasets import count_dataset  # numpy, which a gateway needs for this alone

    env = os.environ | dict(spec.env)
    try:
        counted = [count_dataset(found.name, found.uri, env) for found in spec.datasets]
    except (DataError, OSError, ValueError) as error:
        raise invalid(f"the job can't be: datasets: {error}", [("datasets", str(error))]) from error
    del spec.datasets[:]
    spec.datasets.extend(counted)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
