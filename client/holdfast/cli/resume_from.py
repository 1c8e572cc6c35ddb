"""What `--resume-from` means: a place of checkpoints as it is, a run of this directory or a job by its id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

import click

from holdfast.cli.late import api, job_pb2
from holdfast.cli.run_state import ROOT
from holdfast.worker.layout import directory

_NAME = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:@(?P<step>[0-9]+))?")


async def resolve_resume_from(spec: job_pb2.JobSpec, server: str) -> None:
    """Write the spec's `resume_from` as a path or a URI. Raises HoldfastError when its job can't be asked about."""
    if not spec.resume_from or "://" in spec.resume_from:
        return
    named = _named(spec.resume_from)
    if named is None:
        spec.resume_from = _absolute(spec.resume_from)
        return
    name, step = named
    spec.resume_from = _of_run(name, step) or await _of_job(server, name, step)


def _named(text: str) -> tuple[str, int | None] | None:
    """The name and step of a run or a job; None of a path."""
    named = _NAME.fullmatch(text)
    if named is None or Path(text).exists():
        return None
    return named["name"], int(named["step"]) if named["step"] else None


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _of_run(name: str, step: int | None) -> str:
    """The checkpoints of a run of `holdfast run` in this directory; empty when there is no such."""
    if not (ROOT / "runs" / name).is_dir():
        return ""
    found = sorted((ROOT / "runs" / name / "checkpoints").glob("*/"))
    if not found:
        _refuse(f"run {name} has no checkpoint in {ROOT / 'runs' / name / 'checkpoints'}")
    place = found[0].absolute()
    if step is not None:
        place /= directory(step)
        if not place.is_dir():
            _refuse(f"run {name} has no checkpoint of all ranks of step {step}: there is no {place}")
    return str(place)


async def _of_job(server: str, job_id: str, step: int | None) -> str:
    async with api.Client(server) as client:
        job = await client.get_job(job_id)
        if step is not None:
            await client.get_checkpoint(job_id, step)
    if not job.spec.checkpoint_uri:
        _refuse(f"the checkpoints of job {job_id} lie below its agents' state directories; give their path")
    if not job.HasField("last_committed_step"):
        _refuse(f"job {job_id} has no checkpoint yet")
    place = f"{job.spec.checkpoint_uri.rstrip('/')}/{job_id}"
    return place if step is None else f"{place}/{directory(step)}"


def _refuse(sentence: str) -> NoReturn:
    raise click.UsageError(f"--resume-from: {sentence}")
