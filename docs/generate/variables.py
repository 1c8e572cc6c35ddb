"""The environment variables that are no settings of a daemon. A test holds the names to those in the code."""

from typing import NamedTuple

from docs.generate.sizes import size
from holdfast.cli.complete import WITHIN
from holdfast.data.cache import LIMIT
from holdfast.storage.s3_settings import LARGEST_PART, LEAST_PART, S3Settings

_S3 = S3Settings()


class Variable(NamedTuple):
    """One of them."""

    name: str
    default: str
    meaning: str


COMMANDS = (
    Variable("HOLDFAST_SERVER", "127.0.0.1:7070", "the coordinator, for every command that talks to one"),
    Variable("HOLDFAST_CONTEXT", "the current one", "the context whose coordinator is meant"),
    Variable("HOLDFAST_CONFIG", "`~/.config/holdfast/config.yaml`", "the file of contexts"),
    Variable(
        "HOLDFAST_COMPLETION_TIMEOUT", WITHIN, "how long a coordinator may take to complete a word in a shell"
    ),
    Variable("NO_COLOR", "", "anything: no colours"),
    Variable("XDG_CONFIG_HOME", "`~/.config`", "where the file of contexts is"),
    Variable("XDG_STATE_HOME", "`~/.local/state`", "where daemons keep their state, unless told"),
    Variable("XDG_CACHE_HOME", "`~/.cache`", "where the cache of shards is, unless told"),
)
TRACES = (
    Variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "none: no traces",
        "the collector of traces, over HTTP; `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` of traces alone",
    ),
    Variable(
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "2 s",
        "for one try to reach it, in seconds; `OTEL_EXPORTER_OTLP_TRACES_TIMEOUT` of traces alone",
    ),
    Variable("OTEL_SDK_DISABLED", "false", "true: no traces"),
    Variable("OTEL_SERVICE_NAME", "`holdfast-agent` and its like", "who traces say that we are"),
    Variable("TRACEPARENT", "", "the trace that a job created here belongs to"),
)
DATA = (
    Variable("HOLDFAST_CACHE_DIR", "`~/.cache/holdfast`", "where shards from elsewhere are kept"),
    Variable("HOLDFAST_CACHE_BYTES", size(LIMIT), "how much room they may take, e.g. 200GiB"),
    Variable(
        "HOLDFAST_DATA_MIRROR",
        "",
        "a directory that holds what is in the bucket, for when it can't be reached",
    ),
    Variable("USE_S3", "off", "1, true, yes, on: paths are places in the bucket"),
    Variable("S3_BUCKET", "", "the bucket of USE_S3"),
    Variable("S3_PREFIX", "", "what paths are below in the bucket"),
    Variable(
        "S3_ENDPOINT",
        "Amazon's",
        "the server, e.g. https://minio.example:9000; else `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`",
    ),
    Variable("S3_ADDRESSING_STYLE", _S3.addressing_style, "auto, path (host/bucket), virtual (bucket.host)"),
    Variable("S3_CHECKSUMS", _S3.checksums, "when_required, when_supported"),
    Variable("S3_CONDITIONAL_PUTS", "auto", "auto, off"),
    Variable(
        "S3_PART_SIZE",
        size(_S3.part_size),
        f"the size of a part, from {size(LEAST_PART)} to {size(LARGEST_PART)}",
    ),
    Variable("S3_CONCURRENCY", str(_S3.concurrency), "how many parts are sent at once, from 1 to 64"),
    Variable("S3_CONNECT_TIMEOUT", f"{_S3.connect_timeout:g} s", "for a connection, e.g. 5s"),
    Variable("S3_READ_TIMEOUT", f"{_S3.read_timeout:g} s", "without a byte, e.g. 30s"),
    Variable("AWS_MAX_ATTEMPTS", str(_S3.attempts), "how often a request is made, from 1 to 20"),
    Variable("AWS_REGION", "boto3's own", "the region; else `AWS_DEFAULT_REGION`"),
)
WORKERS = (
    Variable("HOLDFAST_JOB_ID", "", "the job. Not set: holdfast did not start this process"),
    Variable("HOLDFAST_ATTEMPT", "1", "of the rank, or of the gang; grows with every restart"),
    Variable("HOLDFAST_RESUME_STEP", "", "the committed step to resume from; empty: none"),
    Variable("HOLDFAST_RESTART_SCOPE", "gang", "gang or rank"),
    Variable(
        "HOLDFAST_CHECKPOINT_URI", "`checkpoints`", "where checkpoints go; you may set it outside holdfast"
    ),
    Variable(
        "HOLDFAST_RESUME_FROM",
        "",
        "checkpoints of another job to begin with, or one step of it; you may set it outside holdfast",
    ),
    Variable("HOLDFAST_SPOOL_DIR", "`.holdfast/spool`", "where checkpoints wait while their storage is away"),
    Variable("HOLDFAST_HEARTBEAT_FILE", "", "to touch it is a heartbeat"),
    Variable("HOLDFAST_SOCKET", "", "the agent's unix socket, which speaks worker.proto"),
    Variable("HOLDFAST_DATASETS", "", "a file with the data sets of the job, as they were counted"),
    Variable("RANK", "0", "of the worker in its job"),
    Variable("WORLD_SIZE", "1", "how many workers the job has"),
    Variable("LOCAL_RANK", "0", "of the worker among those of the job on its node"),
    Variable("LOCAL_WORLD_SIZE", "", "how many workers of the job are on the node"),
    Variable("GROUP_RANK", "", "of the node among those of the job"),
    Variable("MASTER_ADDR", "", "where rank 0 is; in restart scope gang"),
    Variable("MASTER_PORT", "", "a port there that is free, another for each attempt"),
    Variable("TORCHELASTIC_RUN_ID", "", "the job"),
    Variable("TORCHELASTIC_RESTART_COUNT", "", "how many restarts came before this attempt"),
    Variable("CUDA_VISIBLE_DEVICES", "", "the GPUs of this worker; not set where it has none"),
    Variable("PYTHONUNBUFFERED", "1", "unless the agent's or the job's environment says otherwise"),
    Variable("OMP_NUM_THREADS", "1", "in a world of two or more, unless one of them says otherwise"),
)
EVERY = (*COMMANDS, *TRACES, *DATA, *WORKERS)
