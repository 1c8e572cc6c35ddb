"""What S3 holds after an upload that went wrong: all of it or nothing, and no parts left over (P1, P3, P8)."""

import os
import subprocess
import sys
import threading

import pytest

from holdfast.storage.api import Bytes, Writer
from tests.storage.bodies import noise
from tests.storage.conftest import PART
from tests.storage.fault_proxy import (
    answers,
    claims,
    hangs,
    is_cut_off,
    loses_the_answer,
    then,
    without,
)

NAME = "step-1/rank-00003.attempt-2.safetensors"
KEY = f"checkpoints/job-1/{NAME}"
BIG = noise(2 * PART + 1000)
SMALL = noise(1000)
WRITER = Writer(rank=3, attempt=2)

REQUESTS_OF_A_BIG_PUT = 7
"""It looks for what dead attempts left, begins, sends three parts, has them put together, and looks at the file."""

no_such_upload = answers(404, "NoSuchUpload")


def only(what):
    return lambda request: request.what == what


def test_a_big_put_is_so_many_requests(s3, proxy):
    s3(WRITER).put(NAME, Bytes(BIG))
    assert len(proxy.requests) == REQUESTS_OF_A_BIG_PUT
    assert [request.what for request in proxy.requests[:2]] == ["GET uploads", "POST uploads"]
    assert [request.what for request in proxy.requests[2:]] == ["PUT upload"] * 3 + ["POST upload", "HEAD"]


@pytest.mark.parametrize("act", [is_cut_off, loses_the_answer, answers(503, "SlowDown")])
@pytest.mark.parametrize("at", range(REQUESTS_OF_A_BIG_PUT))
def test_a_request_that_fails_once_is_made_again(s3, proxy, bucket, at, act):
    storage = s3(WRITER)
    proxy.fail(act, times=1, after=at)
    storage.put(NAME, Bytes(BIG))
    assert bucket.objects() == {KEY: BIG}
    # A second upload was begun where the answer to the first was lost; whoever is next ends it.
    s3(Writer(3, 3)).put(NAME, Bytes(SMALL))
    assert bucket.uploads() == []


@pytest.mark.parametrize(
    "act", [is_cut_off, loses_the_answer, answers(500, "InternalError"), answers(400, "Odd")]
)
@pytest.mark.parametrize("at", range(REQUESTS_OF_A_BIG_PUT))
def test_what_goes_wrong_for_good_is_not_acknowledged(s3, proxy, bucket, at, act):
    storage = s3(WRITER, AWS_MAX_ATTEMPTS="1")
    proxy.fail(act, after=at)
    try:
        storage.put(NAME, Bytes(BIG))
    except OSError:
        assert bucket.objects() in ({}, {KEY: BIG})
    else:
        assert bucket.objects() == {KEY: BIG}
        assert at == 0, "only not to know of dead attempts is no reason to fail"
    proxy.heal()
    storage.close()
    assert bucket.uploads() == []
    s3(Writer(3, 3)).put(NAME, Bytes(BIG))
    assert bucket.objects() == {KEY: BIG}


def test_a_small_put_whose_answer_is_lost(s3, proxy, bucket):
    proxy.fail(loses_the_answer, only("PUT"), times=1)
    s3().put(NAME, Bytes(SMALL))
    assert bucket.objects() == {KEY: SMALL}


def test_a_server_that_claims_to_have_what_it_has_not(s3, proxy):
    proxy.fail(claims(ETag='"0"'), only("PUT"))
    with pytest.raises(OSError, match="was put and is not there"):
        s3().put(NAME, Bytes(SMALL))


def test_a_server_that_keeps_half(s3, proxy, bucket):
    storage = s3()
    cut = lambda: bucket.client.put_object(Bucket=bucket.name, Key=KEY, Body=SMALL[:500])  # noqa: E731
    proxy.fail(then(cut), only("PUT"))
    with pytest.raises(OSError, match="has 500 bytes, though 1000 were put"):
        storage.put(NAME, Bytes(SMALL))


def test_a_server_that_keeps_no_metadata(s3, proxy, bucket):
    proxy.fail(without("x-amz-meta-holdfast-writes"))
    storage = s3(WRITER)
    storage.put(NAME, Bytes(BIG))
    storage.put("LATEST", Bytes(SMALL))
    storage.update("LATEST", lambda before: before + b"!")
    assert bucket.objects() == {KEY: BIG, "checkpoints/job-1/LATEST": SMALL + b"!"}


def test_what_another_puts_in_its_place_at_once_was_still_put(s3, proxy, bucket):
    storage, other = s3(), s3()
    proxy.fail(then(lambda: other.put(NAME, Bytes(b"others"))), only("PUT"), times=1)
    storage.put(NAME, Bytes(SMALL))
    assert bucket.objects() == {KEY: b"others"}


def test_an_attempt_ends_the_uploads_of_those_before_it_alone(s3, bucket):
    top = "checkpoints/job-1/"
    dead = [f"{top}step-1/rank-00003.attempt-{attempt}.safetensors" for attempt in (1, 2, 2)]
    others = [
        f"{top}step-1/rank-00003.attempt-10.safetensors",
        f"{top}step-1/rank-00030.attempt-1.safetensors",
        f"{top}step-1/rank-00003.attempt-x.safetensors",
        f"{top}manifest.json",
        "checkpoints/job-10/rank-00003.attempt-1.safetensors",
        "rank-00003.attempt-1.safetensors",
    ]
    for key in dead + others:
        bucket.begin_upload(key)
    storage = s3(WRITER)
    assert bucket.uploads() == sorted(dead + others)
    storage.put(NAME, Bytes(SMALL))
    assert bucket.uploads() == sorted(others)


def test_who_may_not_list_uploads_may_put(s3, proxy, bucket):
    proxy.fail(answers(403, "AccessDenied"), only("GET uploads"))
    s3(WRITER).put(NAME, Bytes(BIG))
    assert bucket.objects() == {KEY: BIG}


def test_an_upload_that_a_newer_attempt_ended_is_not_acknowledged(s3, proxy, bucket):
    def ended(handler, request):
        (upload,) = bucket.client.list_multipart_uploads(Bucket=bucket.name)["Uploads"]
        bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=KEY, UploadId=upload["UploadId"])
        no_such_upload(handler, request)  # for which moto has a 500

    storage = s3(WRITER)
    proxy.fail(ended, only("POST upload"), times=1)
    with pytest.raises(OSError, match="was put and is not there"):
        storage.put(NAME, Bytes(BIG))
    assert bucket.objects() == {}
    proxy.heal()
    storage.put(NAME, Bytes(BIG))
    proxy.fail(ended, only("POST upload"), times=1)
    with pytest.raises(OSError, match="was aborted by another process"):
        storage.put(NAME, Bytes(BIG[::-1]))
    assert bucket.objects() == {KEY: BIG}


def test_an_upload_that_is_complete_when_it_is_completed_again(s3, proxy, bucket):
    """S3 remembers for a while that it has put the parts together; others do not."""
    proxy.fail(loses_the_answer, only("POST upload"), times=1)
    proxy.fail(no_such_upload, only("POST upload"))
    s3(WRITER).put(NAME, Bytes(BIG))
    assert proxy.counted("POST upload") == 2
    assert bucket.objects() == {KEY: BIG}
    assert bucket.uploads() == []


def test_close_ends_what_could_not_be_ended_before(s3, proxy, bucket):
    storage = s3(AWS_MAX_ATTEMPTS="1")
    proxy.fail(answers(500, "InternalError"), only("PUT upload"))
    proxy.fail(answers(500, "InternalError"), only("DELETE upload"))
    with pytest.raises(OSError, match="in trouble"):
        storage.put(NAME, Bytes(BIG))
    bucket.begin_upload(f"{KEY}.of-another")
    assert bucket.uploads() == [KEY, f"{KEY}.of-another"]
    proxy.heal()
    storage.close()
    assert bucket.uploads() == [f"{KEY}.of-another"]


UPLOAD = """
import sys
from holdfast.storage.api import Bytes, Writer
from holdfast.storage.places import open_storage
storage = open_storage(sys.argv[1], "job-1", Writer(3, 2))
storage.put("step-1/rank-00003.attempt-2.safetensors", Bytes(bytes(20 << 20)))
"""


def test_the_next_attempt_ends_the_upload_of_a_process_that_was_killed(s3, proxy, bucket):
    begun = threading.Event()
    proxy.fail(lambda handler, request: (begun.set(), hangs(handler, request)), only("PUT upload"), after=1)
    env = {**os.environ, "S3_ENDPOINT": proxy.endpoint, "S3_PART_SIZE": str(PART)}
    victim = subprocess.Popen([sys.executable, "-c", UPLOAD, f"s3://{bucket.name}/checkpoints"], env=env)
    assert begun.wait(60)
    victim.kill()
    victim.wait()
    assert bucket.uploads() == [KEY]
    proxy.heal()
    s3(Writer(3, 3)).put(NAME, Bytes(SMALL))
    assert bucket.uploads() == []
    assert bucket.objects() == {KEY: SMALL}


AT_EXIT = """
import sys, threading
from holdfast.storage.api import Bytes
from holdfast.storage.places import open_storage

storage = open_storage(sys.argv[1], "job-1")

def upload():
    threading.main_thread().join()
    storage.put("big", Bytes(bytes(12 << 20)))
    storage.put("small", Bytes(b"1"))
    storage.close()
    print("done", flush=True)

threading.Thread(target=upload).start()
"""


def test_uploads_end_after_the_program_has(s3_bucket, bucket, monkeypatch):
    """No pool of threads takes work any more then."""
    monkeypatch.setenv("S3_PART_SIZE", str(PART))
    command = [sys.executable, "-W", "error", "-c", AT_EXIT, f"s3://{s3_bucket}/checkpoints"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    sizes = {key: len(data) for key, data in bucket.objects().items()}
    assert sizes == {"checkpoints/job-1/big": 12 << 20, "checkpoints/job-1/small": 1}
    assert bucket.uploads() == []
