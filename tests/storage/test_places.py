"""From a URI and an environment to a storage; what is wrong with either is said in one sentence."""

import itertools
import os
import subprocess
import sys

import pytest
from fsspec.registry import known_implementations
from hypothesis import given
from hypothesis import strategies as st

from holdfast.storage.api import Bytes, Gathered, StorageError, Writer
from holdfast.storage.fsspec_storage import FsspecStorage
from holdfast.storage.local import LocalStorage
from holdfast.storage.places import local_root, open_storage, switched
from holdfast.storage.s3 import S3Storage
from holdfast.storage.s3_settings import S3Settings, s3_settings
from tests.storage.bodies import Pieces


def test_a_scheme_says_which_storage_it_is(tmp_path, s3_bucket):
    kinds = {
        str(tmp_path): LocalStorage,
        f"file://{tmp_path}": LocalStorage,
        f"s3://{s3_bucket}": S3Storage,
        "memory://a": FsspecStorage,
    }
    for uri, kind in kinds.items():
        storage = open_storage(uri, "below", Writer(0, 1))
        assert type(storage) is kind
        assert storage.uri.endswith("/below")
        storage.close()


def test_only_what_is_asked_for_is_imported():
    slow = ("boto3", "botocore", "fsspec", "asyncio", "grpc", "pydantic", "pyarrow", "holdfast.client")
    program = f"""
import sys
from holdfast.storage.places import open_storage, switched
open_storage("checkpoints")
print([name for name in {slow} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("uri", "module", "extra"),
    [
        ("s3://bucket", "boto3", "s3"),
        ("gs://bucket", "fsspec", "fsspec"),
        ("hdfs://node/a", "fsspec", "fsspec"),
    ],
)
def test_an_extra_that_is_missing_is_named(monkeypatch, uri, module, extra):
    for name in ("holdfast.storage.s3", "holdfast.storage.fsspec_storage"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StorageError) as caught:
        open_storage(uri)
    assert (
        str(caught.value) == f"{uri} needs {module}, which is not installed: pip install 'holdfast[{extra}]'"
    )


def test_a_package_that_fsspec_needs_is_named(monkeypatch):
    needs = {"class": "absent_package.FileSystem", "err": "Install absent_package"}
    monkeypatch.setitem(known_implementations, "absent", needs)
    with pytest.raises(
        StorageError, match="absent://a needs a package that is not installed: Install absent_package"
    ):
        open_storage("absent://a")


def test_a_scheme_that_nobody_knows():
    with pytest.raises(StorageError, match="nonsense://x is no place for files"):
        open_storage("nonsense://x")


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix", "s3://a", "s3://user:secret@bucket/x"])
def test_a_uri_without_a_bucket(uri):
    with pytest.raises(StorageError, match="names no bucket; write s3://bucket/prefix"):
        open_storage(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/a/../b", "s3://bucket/a//b"])
def test_a_prefix_that_is_none(uri):
    with pytest.raises(StorageError, match="is no name below"):
        open_storage(uri)


def test_slashes_around_a_prefix_are_nothing(s3_bucket):
    one, other = open_storage(f"s3://{s3_bucket}/a/", "j"), open_storage(f"s3://{s3_bucket}/a", "j")
    assert one.uri == other.uri == f"s3://{s3_bucket}/a/j"
    one.put("file", Bytes(b"1"))
    assert other.read("file") == b"1"
    one.close()
    other.close()


def test_local_roots():
    assert local_root("/data/c") == "/data/c"
    assert local_root("file:///data/c") == "/data/c"
    assert local_root("c") == os.path.join(os.getcwd(), "c")
    for uri in ("s3://bucket/c", "file://c"):
        with pytest.raises(StorageError, match="names no directory; give a path, or file:///and/its/path"):
            local_root(uri)


S3_ON = {"USE_S3": "1", "S3_BUCKET": "b"}


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("checkpoints", "s3://b/checkpoints"),
        ("./checkpoints/", "s3://b/checkpoints"),
        ("data//x/../train", "s3://b/data/train"),
        ("/data/ckpt", "s3://b/data/ckpt"),
        ("//data/ckpt/", "s3://b/data/ckpt"),
        ("/../data", "s3://b/data"),
        ("file:///data/ckpt", "s3://b/data/ckpt"),
        (".", "s3://b"),
        ("/", "s3://b"),
        ("s3://other/data", "s3://other/data"),
        ("gs://other/data/../x", "gs://other/data/../x"),
    ],
)
def test_use_s3_moves_what_is_local(uri, place):
    assert switched(uri, S3_ON) == place
    prefixed = place.replace("s3://b", "s3://b/team/a")
    assert switched(uri, {**S3_ON, "S3_PREFIX": "/team/a/"}) == prefixed
    assert switched(place, S3_ON) == place


@pytest.mark.parametrize("off", ["", "0", "false", "No", "off", " "])
def test_without_use_s3_all_stays(off):
    assert switched("data", {"S3_BUCKET": "b", "USE_S3": off}) == "data"
    assert switched("data", {"S3_BUCKET": "b"}) == "data"


@pytest.mark.parametrize("on", ["1", "true", "YES", "on", " 1 "])
def test_use_s3_is_said_in_several_ways(on):
    assert switched("data", {"S3_BUCKET": "b", "USE_S3": on}) == "s3://b/data"


@pytest.mark.parametrize(
    ("env", "uri", "sentence"),
    [
        ({"USE_S3": "maybe"}, "data", "USE_S3: 'maybe' is neither yes nor no; write 1 or 0"),
        (
            {"USE_S3": "1"},
            "data",
            "USE_S3 is on, and S3_BUCKET names no bucket; set it, e.g. S3_BUCKET=training",
        ),
        ({"USE_S3": "1", "S3_BUCKET": "a/b"}, "data", "USE_S3 is on, and S3_BUCKET names no bucket"),
        (S3_ON, "../data", "has no place in bucket b; give a path without '..', or s3://"),
        (S3_ON, "a/../../data", "has no place in bucket b"),
    ],
)
def test_use_s3_that_says_too_little(env, uri, sentence):
    with pytest.raises(StorageError) as caught:
        switched(uri, env)
    assert sentence in str(caught.value)


def test_an_environment_that_says_nothing_gives_what_old_servers_take():
    assert s3_settings({}) == S3Settings()
    assert s3_settings({"S3_PART_SIZE": "", "S3_ENDPOINT": " "}) == S3Settings()
    assert S3Settings().checksums == "when_required"


def test_what_an_environment_can_say():
    env = {
        "S3_ENDPOINT": "https://minio:9000",
        "AWS_ENDPOINT_URL_S3": "https://other",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "S3_ADDRESSING_STYLE": "path",
        "S3_CHECKSUMS": "when_supported",
        "S3_CONDITIONAL_PUTS": "off",
        "S3_PART_SIZE": "64MiB",
        "S3_CONCURRENCY": "4",
        "AWS_MAX_ATTEMPTS": "7",
        "S3_CONNECT_TIMEOUT": "500ms",
        "S3_READ_TIMEOUT": "2m",
    }
    expected = S3Settings(
        "https://minio:9000", "eu-west-1", "path", "when_supported", False, 64 << 20, 4, 7, 0.5, 120.0
    )
    assert s3_settings(env) == expected
    del env["S3_ENDPOINT"]
    assert s3_settings({**env, "AWS_REGION": "eu-west-2"})[:2] == ("https://other", "eu-west-2")


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("S3_ENDPOINT", "minio:9000", "write e.g. https://minio.example:9000"),
        ("S3_ENDPOINT", "http://", "write e.g. https://minio.example:9000"),
        ("S3_ENDPOINT", "http://host:port", "write e.g. https://minio.example:9000"),
        ("S3_ENDPOINT", "https://me:hunter2@minio", "without a user"),
        ("AWS_ENDPOINT_URL", "https://me:hunter2@minio", "without a user"),
        ("S3_ADDRESSING_STYLE", "dns", '"dns" is none of auto, path, virtual'),
        ("S3_CHECKSUMS", "never", "is none of when_required, when_supported"),
        ("S3_CONDITIONAL_PUTS", "yes", "is none of auto, off"),
        ("S3_PART_SIZE", "lots", "is no size"),
        ("S3_PART_SIZE", "1MiB", "write one from 5MiB to 1GiB"),
        ("S3_CONCURRENCY", "0", "is no whole number from 1 to 64"),
        ("S3_CONCURRENCY", "a few", "is no whole number from 1 to 64"),
        ("AWS_MAX_ATTEMPTS", "-1", "is no whole number from 1 to 20"),
        ("S3_READ_TIMEOUT", "30", "is no duration"),
        ("S3_CONNECT_TIMEOUT", "0", "is no time to wait"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(name, value, remedy):
    with pytest.raises(StorageError) as caught:
        s3_settings({name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert remedy in message
    assert "hunter2" not in message


def test_a_profile_that_does_not_exist(monkeypatch, s3_bucket):
    monkeypatch.setenv("AWS_PROFILE", "nobodys")
    with pytest.raises(StorageError, match=r"S3 cannot be used: .*nobodys"):
        open_storage(f"s3://{s3_bucket}")


@pytest.mark.parametrize(("style", "host"), [("path", "minio.example"), ("virtual", "bucket.minio.example")])
def test_addressing_styles(s3_bucket, style, host):
    env = {"S3_ENDPOINT": "https://minio.example", "S3_ADDRESSING_STYLE": style}
    storage = open_storage("s3://bucket/a", env=env)
    url = storage._client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "k"})
    assert url.split("/")[2] == host
    storage.close()


@given(
    st.binary(max_size=60),
    st.lists(st.integers(0, 60), max_size=6),
    st.randoms(use_true_random=False),
    st.integers(1, 20),
)
def test_pieces_gathered_are_the_body(data, ends, random, size):
    ends = sorted(min(end, len(data)) for end in ends)
    order = list(range(len(ends) + 1))
    random.shuffle(order)
    whole = Gathered(Pieces(data, ends, order))
    read = list(itertools.takewhile(len, (whole.read(size) for _ in itertools.count())))
    assert b"".join(read) == data
    assert all(len(each) == size for each in read[:-1])
    whole.seek(0)
    assert whole.read() == data
    at = random.randint(0, len(data))
    assert whole.seek(at - len(data), os.SEEK_END) == whole.tell() == at
    assert whole.read(3) == data[at : at + 3]
    assert b"".join(whole.views(at, len(data))) == data[at:]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 2], "should go on at byte 2, not at 4"),
        ([0, 1, 1, 2], "go on at"),
        ([0, 1], "6 bytes has pieces of 4"),
    ],
)
def test_pieces_that_are_no_body(order, message):
    with pytest.raises(ValueError, match=message):
        Gathered(Pieces(b"abcdef", [2, 4], order))
