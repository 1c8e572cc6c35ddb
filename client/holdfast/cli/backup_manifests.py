"""Which commits the storage of a job tells of: its manifests, as a restore of the coordinator reads them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from holdfast.storage.api import StorageError
from holdfast.storage.local import LocalStorage
from holdfast.storage.places import open_storage, switched
from holdfast.worker.checkpoint import Checkpoints, Owner
from holdfast.worker.errors import CheckpointError
from holdfast.worker.manifest import Commit


class UnreadableError(Exception):
    """It can't be known what was committed; the message says why, as the rest of a sentence."""


def newer(
    job_id: str, uri: str, of_job: Mapping[str, str], rank: int | None, known: int | None
) -> list[Commit]:
    """The commits at and above the step `known` (None: all), newest first, of which there is a manifest.

    `uri` is the job's checkpoint_uri and `of_job` its environment; `rank` is that of one that commits by itself.
    Raises UnreadableError.
    """
    env = {**os.environ, **of_job}
    try:
        place = switched(uri or "checkpoints", env)
        if not uri and place == "checkpoints":
            raise UnreadableError("its checkpoints lie on its nodes alone")
        if "://" not in place and not os.path.isdir(place):  # noqa: PTH112  as the storage does
            raise UnreadableError(f"there is no directory {place} here")
        below = job_id if rank is None else f"{job_id}/rank-{rank:05}"
        with contextlib.closing(open_storage(place, below, None, env)) as storage:
            where = Checkpoints(Owner(job_id, rank or 0, 0), storage)
            steps = where.steps()
            if known is not None and known not in steps and isinstance(storage, LocalStorage):
                raise UnreadableError(f"{storage.uri} has nothing of step {known}, which was committed")
            found = [where.published(step) for step in steps if known is None or step >= known]
    except (StorageError, CheckpointError, OSError) as error:
        raise UnreadableError(str(error)) from error
    return [commit for commit in found if commit is not None]
