"""Who this process is, as its environment says."""

import os
import sys
from collections.abc import Mapping
from typing import NamedTuple


class Identity(NamedTuple):
    """One worker of one job, or a process that holdfast did not start."""

    job_id: str
    rank: int
    world_size: int
    local_rank: int
    attempt: int
    resume_step: int | None
    """The committed step to resume from. None: from the beginning, or `supervised` is False."""
    independent: bool
    """Restart scope "rank": this rank restarts, and commits its checkpoints, by itself."""
    supervised: bool
    """holdfast started this process."""
    checkpoint_uri: str
    spool_dir: str
    """Where checkpoints wait on this machine while their storage is away; empty: below the working directory."""
    resume_from: str
    """The checkpoints of another job to begin with, or one of its steps; empty: none."""
    socket: str | None
    heartbeat_file: str | None

    @property
    def alone(self) -> bool:
        """A world of one outside holdfast: it commits its checkpoints itself."""
        return not self.supervised and self.world_size == 1


def identify(env: Mapping[str, str], program: str) -> Identity:
    """Read the environment; `program` is sys.argv[0]. Raises ValueError with a sentence that names the variable.

    Outside holdfast the job is named after the program, so that two programs started in one directory do not
    take each other's checkpoints for their own.
    """
    job_id = env.get("HOLDFAST_JOB_ID", "")
    return Identity(
        job_id=job_id or _program_name(program),
        rank=_number(env, "RANK", 0),
        world_size=_number(env, "WORLD_SIZE", 1),
        local_rank=_number(env, "LOCAL_RANK", 0),
        attempt=_number(env, "HOLDFAST_ATTEMPT", 1),
        resume_step=_number(env, "HOLDFAST_RESUME_STEP", -1) if env.get("HOLDFAST_RESUME_STEP") else None,
        independent=env.get("HOLDFAST_RESTART_SCOPE") == "rank",
        supervised=bool(job_id),
        checkpoint_uri=env.get("HOLDFAST_CHECKPOINT_URI") or "checkpoints",
        spool_dir=env.get("HOLDFAST_SPOOL_DIR", ""),
        resume_from=env.get("HOLDFAST_RESUME_FROM", ""),
        socket=env.get("HOLDFAST_SOCKET") or None,
        heartbeat_file=env.get("HOLDFAST_HEARTBEAT_FILE") or None,
    )


def current() -> Identity:
    """Of this process."""
    return identify(os.environ, sys.argv[0])


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name)
    if not text:
        return default
    if not text.isdecimal():
        raise ValueError(f"the environment variable {name} is {text!r}, which is not a number")
    return int(text)


def _program_name(program: str) -> str:
    stem = os.path.splitext(os.path.basename(program))[0]
    usable = stem.replace("-", "").replace("_", "").replace(".", "").isalnum() and stem[0].isalnum()
    return stem if usable else "local"
