"""S3 that is overloaded, slow, gone, closed to us, or older than what we ask of it."""

import itertools

import pytest

from holdfast.storage import s3 as s3_module
from holdfast.storage.api import Bytes, Unreachable
from tests.storage.bodies import noise
from tests.storage.fault_proxy import (
    answers,
    gives_only,
    hangs,
    hangs_after,
    is_cut_off,
    loses_the_answer,
    then,
    without,
)

CONDITIONS = ("if-match", "if-none-match")

OPERATIONS = {
    "put": lambda storage: storage.put("new", Bytes(b"1")),
    "update": lambda storage: storage.update("file", lambda before: before + b"1"),
    "read": lambda storage: storage.read("file"),
    "open": lambda storage: storage.open("file"),
    "names": lambda storage: storage.names(),
    "files": lambda storage: storage.files(),
    "rename": lambda storage: storage.rename("file", "new"),
    "delete one": lambda storage: storage.delete(["file"]),
    "delete many": lambda storage: storage.delete(["file", "other"]),
}


@pytest.fixture(params=OPERATIONS)
def operation(request):
    return OPERATIONS[request.param]


def append(text):
    return lambda before: (before or b"") + text


def is_write(request):
    return request.what == "PUT"


@pytest.mark.parametrize("act", [answers(503, "SlowDown"), answers(429, "TooManyRequests"), is_cut_off])
def test_what_may_pass_is_asked_again_so_often(s3, proxy, operation, act):
    storage = s3(AWS_MAX_ATTEMPTS="2")
    storage.put("file", Bytes(b"0"))
    asked = len(proxy.requests)
    proxy.fail(act)
    with pytest.raises(Unreachable):
        operation(storage)
    assert len(proxy.requests) == asked + 2
    proxy.heal()
    assert storage.read("file") == b"0"
    operation(storage)


def test_overload_that_passes_is_not_noticed(s3, proxy, operation):
    storage = s3(AWS_MAX_ATTEMPTS="3")
    storage.put("file", Bytes(b"0"))
    proxy.fail(answers(503, "SlowDown"), times=2)
    operation(storage)


def test_nobody_listens(s3, proxy, operation):
    storage = s3(AWS_MAX_ATTEMPTS="1")
    storage.put("file", Bytes(b"0"))
    proxy.stop()
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:\d+ cannot be reached: no connection"):
        operation(storage)
    proxy.start_again()
    operation(storage)


def test_no_answer_comes(s3, proxy, operation):
    s3().put("file", Bytes(b"0"))
    proxy.fail(hangs)
    with pytest.raises(Unreachable, match="no answer in time"):
        operation(s3(AWS_MAX_ATTEMPTS="1", S3_READ_TIMEOUT="100ms"))


@pytest.mark.parametrize("page", ["<html>Please log in<br></html>", "<html>Please log in</html>", ""])
@pytest.mark.parametrize("ask", ["put", "update", "read", "open", "names", "files"])
def test_what_answers_is_no_s3(s3, proxy, ask, page):
    """Least of all does it say that there is nothing here, and that training may begin anew."""
    storage = s3(AWS_MAX_ATTEMPTS="1")
    proxy.fail(lambda handler, request: handler.reply(200, {"Content-Type": "text/html"}, page.encode()))
    with pytest.raises(OSError, match=r"does not speak S3|is in trouble|bytes, though 1 were put"):
        OPERATIONS[ask](storage)


def test_who_is_not_let_in_is_told_what_to_do(s3, proxy, bucket, operation):
    storage = s3()
    proxy.fail(answers(403, "AccessDenied"))
    with pytest.raises(
        PermissionError, match=rf"bucket {bucket.name} \(.*\); let these credentials do"
    ) as caught:
        operation(storage)
    assert "tests-secret" not in str(caught.value)


def test_a_bucket_that_does_not_exist(s3, bucket):
    storage = s3()
    bucket.client.delete_bucket(Bucket=bucket.name)
    for ask in ("put", "update", "read", "names", "files", "delete many"):
        with pytest.raises(OSError, match=f"there is no bucket {bucket.name} at .*; make it") as caught:
            OPERATIONS[ask](storage)
        assert not isinstance(caught.value, FileNotFoundError)


def test_no_credentials(s3, proxy, monkeypatch, operation, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(PermissionError, match=r"no credentials for bucket .*; set AWS_ACCESS_KEY_ID"):
        operation(s3())
    assert proxy.requests == []


@pytest.mark.parametrize("code", [409, 412])
def test_an_update_that_meets_another_is_done_on_top_of_it(s3, proxy, bucket, code):
    storage, other = s3(), s3()
    proxy.fail(answers(code, "PreconditionFailed"), is_write, times=1)
    storage.update("log", append(b"a"))
    proxy.fail(
        lambda handler, request: (
            other.update("log", append(b"b")),
            handler.reply(*handler.forward(request)),
        ),
        is_write,
        times=1,
    )
    storage.update("log", append(b"c"))
    assert storage.read("log") == b"abc"


def test_an_update_gives_up_in_the_end(s3, proxy, monkeypatch):
    monkeypatch.setattr(s3_module, "LONGEST_PAUSE", 0.001)
    storage = s3()
    storage.put("log", Bytes(b"0"))
    proxy.fail(answers(412, "PreconditionFailed"), lambda request: request.is_conditional)
    with pytest.raises(OSError, match="changed by others 64 times in a row"):
        storage.update("log", append(b"1"))
    assert storage.read("log") == b"0"


@pytest.mark.parametrize("before", [None, b"0"])
@pytest.mark.parametrize("between", [0, 1, 10])
def test_an_update_whose_answer_is_lost_is_done_once(s3, proxy, before, between):
    """However many others are done before it is asked again."""
    storage, other = s3(), s3()
    if before is not None:
        storage.put("log", Bytes(before))

    def others():
        for number in range(between):
            other.update("log", append(b"%d" % number))

    proxy.fail(then(others, lose=True), is_write, times=1)
    storage.update("log", append(b"a"))
    assert storage.read("log") == (before or b"") + b"a" + b"0123456789"[:between]


def test_an_update_that_hangs_after_it_was_done(s3, proxy):
    storage = s3(
        S3_READ_TIMEOUT="500ms", AWS_MAX_ATTEMPTS="10"
    )  # the machine may be slow to answer the others
    proxy.fail(hangs_after, is_write, times=1)
    storage.update("log", append(b"a"))
    assert storage.read("log") == b"a"


def test_an_update_of_which_nothing_is_heard_is_not_acknowledged(s3, proxy):
    storage = s3(AWS_MAX_ATTEMPTS="1")
    proxy.fail(loses_the_answer, is_write)
    with pytest.raises(Unreachable):
        storage.update("log", append(b"a"))


def test_an_update_of_what_is_deleted_meanwhile(s3, proxy, bucket):
    storage = s3()
    storage.put("log", Bytes(b"0"))

    def deleted(handler, request):
        bucket.client.delete_object(Bucket=bucket.name, Key="checkpoints/job-1/log")
        handler.reply(*handler.forward(request))

    proxy.fail(deleted, is_write, times=1)
    storage.update("log", append(b"a"))
    assert storage.read("log") == b"a"


def knows_no_conditions(proxy):
    proxy.fail(answers(501, "NotImplemented"), lambda request: is_write(request) and request.is_conditional)


def test_a_server_without_conditions(s3, proxy):
    storage = s3()
    knows_no_conditions(proxy)
    for text in (b"a", b"b", b"c"):
        storage.update("log", append(text))
    assert storage.read("log") == b"abc"
    assert sum(is_write(request) and request.is_conditional for request in proxy.requests) == 1


def test_without_conditions_an_update_that_was_overwritten_is_done_again(s3, proxy):
    storage, other = s3(), s3()
    knows_no_conditions(proxy)
    # The other has read what was there before the first wrote, and writes a moment later.
    proxy.fail(then(lambda: other.put("log", Bytes(b"b"))), is_write, times=1)
    storage.update("log", append(b"a"))
    assert storage.read("log") == b"ba"


def test_conditions_can_be_left_out(s3, proxy):
    """For servers that take them and do not look at them."""
    storage = s3(S3_CONDITIONAL_PUTS="off")
    for text in (b"a", b"b"):
        storage.update("log", append(text))
    assert storage.read("log") == b"ab"
    assert not any(is_write(request) and request.is_conditional for request in proxy.requests)


def test_an_answer_that_breaks_off_is_gone_on_with(s3, proxy):
    data = noise(3_000_000)
    storage = s3(AWS_MAX_ATTEMPTS="3")
    storage.put("file", Bytes(data))
    proxy.fail(gives_only(1_500_000), lambda request: request.what == "GET", times=2)
    assert storage.read("file") == data
    with storage.open("file") as reader:
        proxy.fail(gives_only(1_200_000), lambda request: request.what == "GET", times=2)
        buffer = bytearray(2_999_000)
        reader.read_into(memoryview(buffer), 1000)
    assert buffer == data[1000:]
    ranges = [request.headers["Range"] for request in proxy.requests if request.headers["Range"]]
    starts = [int(each.removeprefix("bytes=").split("-")[0]) for each in ranges]
    assert starts == sorted(set(starts))
    assert len(starts) == 3


def test_answers_that_always_break_off(s3, proxy):
    storage = s3(AWS_MAX_ATTEMPTS="3")
    storage.put("file", Bytes(noise(1000)))
    with storage.open("file") as reader:
        proxy.fail(gives_only(0), lambda request: request.what == "GET")
        with pytest.raises(Unreachable):
            reader.read_into(memoryview(bytearray(1000)), 0)
        with pytest.raises(Unreachable):
            storage.read("file")
    assert proxy.counted("GET") == 6


@pytest.mark.parametrize("server_compares", [True, False])
def test_what_was_replaced_is_not_read_on(s3, proxy, server_compares):
    storage = s3()
    storage.put("file", Bytes(noise(1000, 1)))
    if not server_compares:
        proxy.fail(without("if-match"))
    with storage.open("file") as reader:
        storage.put("file", Bytes(noise(1000, 2)))
        with pytest.raises(OSError, match="was replaced while it was read; open it again"):
            reader.read_into(memoryview(bytearray(1000)), 0)
        storage.delete(["file"])
        with pytest.raises(FileNotFoundError):
            reader.read_into(memoryview(bytearray(1000)), 0)


def test_a_server_without_ranges(s3, proxy):
    storage = s3()
    storage.put("file", Bytes(noise(1000)))
    proxy.fail(without("range"))
    with storage.open("file") as reader, pytest.raises(OSError, match="gives 1000 bytes, not 10"):
        reader.read_into(memoryview(bytearray(10)), 0)


@pytest.mark.parametrize(
    "act",
    [answers(501, "NotImplemented"), answers(400, "MissingContentMD5"), answers(411, "MissingContentLength")],
)
def test_a_server_that_does_not_delete_many(s3, proxy, bucket, act):
    storage = s3()
    for name in "abcd":
        storage.put(name, Bytes(b"1"))
    proxy.fail(act, lambda request: request.what == "POST delete")
    storage.delete(["a", "b", "none"])
    storage.delete(["c", "none"])
    assert list(bucket.objects()) == ["checkpoints/job-1/d"]
    assert proxy.counted("POST delete") == 1


def test_more_are_deleted_than_one_request_names(s3, proxy, bucket, monkeypatch):
    monkeypatch.setattr(s3_module, "DELETE_AT_ONCE", 3)
    storage = s3()
    names = [f"file-{number}" for number in range(7)]
    for name in names:
        storage.put(name, Bytes(b"1"))
    storage.delete(names)
    assert bucket.objects() == {}
    assert (proxy.counted("POST delete"), proxy.counted("DELETE")) == (2, 1)


@pytest.mark.parametrize(
    ("code", "error"),
    [("AccessDenied", PermissionError), ("InternalError", Unreachable), ("NoSuchKey", None)],
)
def test_one_of_many_is_not_deleted(s3, proxy, code, error):
    body = f"<DeleteResult><Error><Key>checkpoints/job-1/b</Key><Code>{code}</Code></Error></DeleteResult>"
    proxy.fail(
        lambda handler, request: handler.reply(200, {"Content-Type": "application/xml"}, body.encode())
    )
    storage = s3()
    if error is None:
        storage.delete(["a", "b"])
    else:
        with pytest.raises(error, match="checkpoints/job-1/b"):
            storage.delete(["a", "b"])


def test_listings_go_on_over_pages(s3, proxy, bucket):
    """A server gives as many as it likes at once; here two."""

    def two_at_a_time(handler, request):
        handler.reply(*handler.forward(request._replace(path=f"{request.path}&max-keys=2")))

    names = [f"step-{step}/{name}" for step, name in itertools.product(range(3), "abc")]
    storage = s3()
    for name in names:
        storage.put(name, Bytes(b"1"))
    proxy.fail(two_at_a_time, lambda request: request.what == "GET list")
    assert [entry.name for entry in storage.files()] == names
    assert storage.names() == ["step-0", "step-1", "step-2"]
    assert proxy.counted("GET list") > 5


def test_what_consoles_put_for_a_directory_is_no_file(s3, bucket):
    for key in ("checkpoints/job-1/", "checkpoints/job-1/step-1/"):
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"")
    assert s3().files() == []
    assert s3().names() == ["step-1"]


@pytest.mark.parametrize("checksums", [None, "when_supported"])
def test_older_servers_are_sent_no_checksums_that_they_do_not_know(s3, proxy, checksums):
    storage = s3(**({"S3_CHECKSUMS": checksums} if checksums else {}))
    storage.put("small", Bytes(b"1"))
    storage.put("big", Bytes(noise(6 << 20)))
    sent = {name.lower() for request in proxy.requests for name in request.headers}
    assert any("checksum" in name or name == "x-amz-trailer" for name in sent) == bool(checksums)
    assert storage.read("small") == b"1"
