"""Counting data sets for a job's spec: what `--data` does, for those who create jobs from Python.

spec.datasets.append(count_dataset("train", "s3://bucket/train/"))
"""

import os
from collections.abc import Mapping

from holdfast.data.index import Tell, count_shards
from holdfast.data.source import locate
from holdfast.v1 import job_pb2


def count_dataset(
    name: str, uri: str, env: Mapping[str, str] | None = None, tell: Tell = lambda _done, _of: None
) -> job_pb2.DataSet:
    """Count a data set. `env` is that of the workers, which may switch it to S3; `tell` hears of the progress.

    Raises DataError, OSError, and ValueError.
    """
    env = os.environ if env is None else env
    counted = count_shards(locate(uri, env), env, tell)
    shards = [
        job_pb2.DataShard(file=s.file, samples=s.samples, size_bytes=s.size_bytes, digest=s.digest)
        for s in counted.shards
    ]
    return job_pb2.DataSet(name=name, uri=counted.uri, shards=shards)
