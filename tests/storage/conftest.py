import contextlib
import os
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from botocore.retries.standard import ExponentialBackoff
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from holdfast.storage.fsspec_storage import FsspecStorage
from holdfast.storage.local import LocalStorage
from holdfast.storage.places import open_storage
from tests.storage.object_store import ObjectStore

PART = 5 << 20
"""The size of a part in an upload to S3, and so where storages may begin to do things in another way."""


class Place(NamedTuple):
    """Where the contract is to hold."""

    open: Callable[..., Any]
    """(below="", writer=None) -> Storage"""
    uri: str | None
    """What another process opens it by; None when none is to."""


@pytest.fixture
def s3_place(request, monkeypatch):
    """A prefix in a bucket: of a server of ours, or of the one that `make test-s3` was given."""
    monkeypatch.setenv("S3_PART_SIZE", str(PART))
    bucket = os.environ.get("TEST_S3_BUCKET") or request.getfixturevalue("s3_bucket")
    uri = f"s3://{bucket}/holdfast-tests/{uuid.uuid4().hex[:12]}"

    def open_it(below="", writer=None):
        return open_storage(uri, below, writer)

    yield Place(open_it, uri)
    storage = open_it()
    storage.delete([entry.name for entry in storage.files()])
    storage.close()


@pytest.fixture
def local_place(tmp_path):
    return Place(lambda below="", writer=None: LocalStorage(str(tmp_path), below, writer), str(tmp_path))


@pytest.fixture
def fsspec_local_place(tmp_path):
    return Place(lambda below="", writer=None: FsspecStorage(f"file://{tmp_path}", below, writer), None)


@pytest.fixture
def fsspec_memory_place():
    uri = f"memory://{uuid.uuid4().hex}"
    yield Place(lambda below="", writer=None: FsspecStorage(uri, below, writer), None)
    fs = MemoryFileSystem()
    if fs.exists(uri):
        fs.rm(uri, recursive=True)


@pytest.fixture
def fsspec_objects_place(monkeypatch):
    """What fsspec's object stores are, in Google's place."""
    monkeypatch.setitem(_registry, "gs", ObjectStore)
    bucket = uuid.uuid4().hex
    yield Place(lambda below="", writer=None: FsspecStorage(f"gs://{bucket}", below, writer), None)
    ObjectStore.objects.clear()


@pytest.fixture
def s3(proxy, s3_bucket, monkeypatch):
    """Opens storages on S3 through the proxy, and closes them. They ask again at once: botocore would wait seconds."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.001)
    with contextlib.ExitStack() as stack:

        def make(writer=None, below="job-1", **env):
            settings = {
                "S3_ENDPOINT": proxy.endpoint,
                "AWS_MAX_ATTEMPTS": "2",
                "S3_PART_SIZE": str(PART),
                **env,
            }
            storage = open_storage(f"s3://{s3_bucket}/checkpoints", below, writer, settings)
            stack.callback(storage.close)
            return storage

        yield make
