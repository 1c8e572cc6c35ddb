"""The environment of a worker: what torchrun gives, and what holdfast adds. PURE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OF_NODE = ("HOLDFAST_CACHE_DIR", "HOLDFAST_CACHE_BYTES", "HOLDFAST_DATA_MIRROR")
"""What begins like ours, but says what there is on the machine, and not who a worker is."""
_OF_WORKER = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
    | {"CUDA_VISIBLE_DEVICES"}
)
_OFF = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is in its job and on its node."""

    job_id: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    group_rank: int
    attempt: int
    restart_count: int
    scope: str
    """The restart scope: gang or rank."""
    resume_step: int | None
    gpus: Sequence[int]
    master_addr: str
    master_port: int
    """0: none, in scope "rank"."""


def worker_environment(
    place: Place,
    *,
    inherited: Mapping[str, str],
    asked: Mapping[str, str],
    checkpoint_uri: str,
    node_checkpoints: str,
    socket: str,
    heartbeat_file: str,
    spool_dir: str,
    resume_from: str,
    datasets_file: str = "",
) -> dict[str, str]:
    """Build it. `asked` is the spec's and wins over what the agent has; what says who the worker is wins over both.

    Where the spec names no place for checkpoints it is `node_checkpoints`, on this node; with USE_S3 it is one that is
    the same on every node.
    """
    env = {"PYTHONUNBUFFERED": "1"}  # so that the last lines before a death are not lost
    if place.world_size > 1:
        env["OMP_NUM_THREADS"] = "1"  # as torchrun does: ranks on one node must not fight for its cores
    env |= inherited
    env |= asked
    uses_s3 = uses_s3_in(env)
    env |= {
        "HOLDFAST_JOB_ID": place.job_id,
        "HOLDFAST_ATTEMPT": str(place.attempt),
        "HOLDFAST_RESUME_STEP": "" if place.resume_step is None else str(place.resume_step),
        "HOLDFAST_RESTART_SCOPE": place.scope,
        "HOLDFAST_CHECKPOINT_URI": checkpoint_uri or ("checkpoints" if uses_s3 else node_checkpoints),
        "HOLDFAST_HEARTBEAT_FILE": heartbeat_file,
        "HOLDFAST_RESUME_FROM": resume_from,
        "HOLDFAST_SPOOL_DIR": spool_dir,
        "HOLDFAST_SOCKET": socket,
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_world_size),
        "GROUP_RANK": str(place.group_rank),
        "TORCHELASTIC_RUN_ID": place.job_id,
        "TORCHELASTIC_RESTART_COUNT": str(place.restart_count),
    }
    if datasets_file:
        env["HOLDFAST_DATASETS"] = datasets_file
    if place.master_port:
        env |= {"MASTER_ADDR": place.master_addr, "MASTER_PORT": str(place.master_port)}
    if place.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, place.gpus))
    return env


def shared_environment(env: Mapping[str, str]) -> dict[str, str]:
    """What of a worker's environment is the same for all workers of its job on a node: where modules are preloaded."""
    return {name: value for name, value in env.items() if name not in _OF_WORKER and not is_ours(name)}


def is_ours(name: str) -> bool:
    """Whether a variable says who a worker is, so that nobody inherits it from an agent."""
    return name.startswith(("HOLDFAST_", "TORCHELASTIC_")) and name not in OF_NODE


def uses_s3_in(env: Mapping[str, str]) -> bool:
    """Paths are places in a bucket, by this environment."""
    return env.get("USE_S3", "").strip().lower() not in _OFF
