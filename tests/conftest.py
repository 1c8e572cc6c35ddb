"""What every test begins from."""

import functools
import os
import signal

import botocore.session
import pytest

from tests.storage.fault_proxy import FaultProxy
from tests.storage.s3_server import Bucket, S3Server

# Whoever starts the tests in the background of a shell has these ignored, and what the tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# Contexts of whoever runs the tests are none of theirs.
os.environ["HOLDFAST_CONFIG"] = os.devnull
os.environ.pop("HOLDFAST_CONTEXT", None)


def pytest_addoption(parser):
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write what happens now into tests/traces and tests/client/golden, to be reviewed in git",
    )


AWS = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_MAX_ATTEMPTS",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server; see `S3Server`."""
    with pytest.MonkeyPatch.context() as patch:
        # What botocore knows of S3 is the same for every session, and takes longer to read than a test is long.
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        server = S3Server()
        yield server
        server.stop()


@pytest.fixture
def s3_bucket(s3_server, monkeypatch):
    """A bucket of the test's own, which this process and those that it starts can use."""
    for name in AWS:
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server.make_bucket()


@pytest.fixture
def bucket(s3_server, s3_bucket):
    return Bucket(s3_server.client, s3_bucket)


@pytest.fixture
def proxy(s3_server):
    """Stands before the S3 server, and lets all through until it is told otherwise."""
    proxy = FaultProxy(s3_server.address)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server."""
    from tests.postgres import PostgresServer

    server = PostgresServer()
    yield server
    server.remove()
