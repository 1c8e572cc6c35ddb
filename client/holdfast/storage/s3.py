"""A prefix in a bucket of S3, or of what speaks as S3 does.

An object appears whole when its upload is complete, so `put` needs no second name. What became of a request whose
answer was lost is told by a mark in the object's metadata: each write leaves its own behind those of the writes before
it. `update` is a put on the condition that nothing has changed since it was read; where the server knows no conditions
it is a put, and a look whether it stayed.

boto3 is imported with this module, so that it is paid for only where it is used: `places.open_storage` sees to that.
"""

import contextlib
import errno
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from holdfast.storage.api import Body, Entry, Gathered, StorageError, Unreachable, Writer, checked
from holdfast.storage.s3_errors import BROKEN_OFF, Place, code_of, status_of
from holdfast.storage.s3_settings import S3Settings, s3_settings

DEFAULT_REGION = "us-east-1"
"""What servers that know no regions take a request to be signed for."""
MARKS = "holdfast-writes"
"""The metadata that names the latest writes of an object, the newest last."""
MARKS_KEPT = 16
"""So many writes of others may come before a writer learns what became of its own."""
UPDATE_ROUNDS = 64
LONGEST_PAUSE = 1.0
DELETE_AT_ONCE = 1000
"""As many as one request may name."""
READ_BYTES = 1 << 20
"""What is taken from a connection at once: urllib3 holds as much beside the caller's buffer."""

_in_flight: set[tuple[str, str]] = set()
"""The bucket and key of what this process uploads, so that no sweep of its own aborts it."""


class Held(NamedTuple):
    """An object's content, and who wrote it."""

    data: bytes
    version: str
    marks: tuple[str, ...]


class S3Reader:
    """An object as it was when it was opened. See `api.Reader`."""

    def __init__(self, client: Any, place: Place, key: str, attempts: int) -> None:
        """Raises what `Place.told` does."""
        self._client = client
        self._place = place
        self._key = key
        self._attempts = attempts
        with place.told(key):
            head = client.head_object(Bucket=place.bucket, Key=key)
            self.version: str = head["ETag"]
            self.size: int = head["ContentLength"]
        self.path: str | None = None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See `api.Reader`. Raises OSError when the object was replaced since it was opened."""
        if len(buffer) and offset + len(buffer) > self.size:
            raise EOFError(f"s3://{self._place.bucket}/{self._key} ends at byte {self.size}")
        done = broken = 0
        while done < len(buffer):
            with self._place.told(self._key):
                body = self._range(offset + done, len(buffer) - done)
                try:
                    for read in _drain(body, buffer[done:]):
                        done += read
                except BROKEN_OFF:
                    broken += 1
                    if broken == self._attempts:
                        raise

    def close(self) -> None:
        """See `api.Reader`: nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _range(self, offset: int, size: int) -> Any:
        """The answer's body. The version is compared here as well: not every server looks at the condition."""
        try:
            answer = self._client.get_object(
                Bucket=self._place.bucket,
                Key=self._key,
                Range=f"bytes={offset}-{offset + size - 1}",
                IfMatch=self.version,
            )
        except ClientError as error:
            if status_of(error) != 412:
                raise
            raise self._changed() from error
        if answer["ETag"] != self.version:
            answer["Body"].close()
            raise self._changed()
        if answer["ContentLength"] != size:
            answer["Body"].close()
            raise OSError(
                errno.EIO, f"S3 at {self._place.endpoint} gives {answer['ContentLength']} bytes, not {size}"
            )
        return answer["Body"]

    def _changed(self) -> OSError:
        name = f"s3://{self._place.bucket}/{self._key}"
        return OSError(errno.ESTALE, f"{name} was replaced while it was read; open it again")


class S3Storage:
    """A prefix in a bucket. See `api.Storage`."""

    def __init__(
        self, uri: str, below: str = "", writer: Writer | None = None, settings: S3Settings | None = None
    ) -> None:
        """The place is what is `below` the URI s3://bucket/prefix; nothing need be there but the bucket.

        Without `settings` they are the environment's. Raises StorageError when they, or the URI, cannot be meant.
        """
        bucket, prefix = _bucket_and_prefix(uri)
        self.uri = f"s3://{'/'.join(filter(None, (bucket, prefix, below)))}"
        self._prefix = "".join(f"{checked(part, uri)}/" for part in (prefix, below) if part)
        self._writer = writer
        self._settings = settings or s3_settings(os.environ)
        self._client = _client(self._settings)
        self._place = Place(bucket, urlsplit(self._client.meta.endpoint_url).netloc.rpartition("@")[2])
        self._conditional = self._settings.conditional_puts
        self._deletes_many = True
        self._lock = threading.Lock()
        self._swept = writer is None
        self._unfinished: set[str] = set()

    def put(self, name: str, body: Body) -> None:
        """See `api.Storage`. Unreachable may also mean that it was done, and that the answer was lost."""
        key = self._key(name)
        with self._lock:
            if not self._swept:
                self._sweep()
                self._swept = True
        mark = _new_mark()
        source = Gathered(body)
        if source.size <= self._settings.part_size:
            with self._place.told(key):
                self._put(key, source.read(), (mark,))
            self._verify(key, source.size, mark, sure=True)
        else:
            self._verify(key, source.size, mark, sure=self._upload(key, source, mark))

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """See `api.Storage`. Unreachable may also mean that it was done, and that the answer was lost."""
        key = self._key(name)
        mark = _new_mark()
        for step in range(UPDATE_ROUNDS):
            try:
                held: Held | None = self._held(key)
            except FileNotFoundError:
                held = None
            if held and mark in held.marks:
                return  # done before, by a request of which that was not known
            after = change(held.data if held else None)
            if after is None or self._swap(key, after, held, mark):
                return
            time.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.005 * 2**step)))
        raise OSError(
            errno.EBUSY, f"{self.uri}/{name} was changed by others {UPDATE_ROUNDS} times in a row; try again"
        )

    def read(self, name: str) -> bytes:
        """See `api.Storage`."""
        return self._held(self._key(name)).data

    def open(self, name: str) -> S3Reader:
        """See `api.Storage`."""
        return S3Reader(self._client, self._place, self._key(name), self._settings.attempts)

    def names(self) -> list[str]:
        """See `api.Storage`."""
        found: list[str] = []
        for page in self._pages("list_objects_v2", self._prefix, Delimiter="/"):
            found += (each["Prefix"] for each in page.get("CommonPrefixes", ()))
            found += (each["Key"] for each in page.get("Contents", ()))
        names = (key.removeprefix(self._prefix).removesuffix("/") for key in found)
        return list(dict.fromkeys(filter(None, names)))

    def files(self, under: str = "") -> list[Entry]:
        """See `api.Storage`."""
        prefix = f"{self._key(under)}/" if under else self._prefix
        return sorted(
            Entry(each["Key"].removeprefix(self._prefix), each["Size"], each["ETag"])
            for page in self._pages("list_objects_v2", prefix)
            for each in page.get("Contents", ())
            if not each["Key"].endswith("/")  # what consoles put where they show a directory
        )

    def rename(self, name: str, new: str) -> None:
        """See `api.Storage`. It is a copy and a delete: after a crash in between, both names are there."""
        old, key = self._key(name), self._key(new)
        bucket = self._place.bucket
        with self._place.told(old):
            if old == key:
                self._client.head_object(Bucket=bucket, Key=key)
                return
            self._client.copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": bucket, "Key": old})
        self.delete([name])

    def delete(self, names: Iterable[str]) -> None:
        """See `api.Storage`."""
        keys = [self._key(name) for name in names]
        for start in range(0, len(keys), DELETE_AT_ONCE):
            some = keys[start : start + DELETE_AT_ONCE]
            if len(some) == 1 or not self._delete_many(some):
                for key in some:
                    self._delete_one(key)

    def close(self) -> None:
        """See `api.Storage`."""
        for key in sorted(self._unfinished):
            with contextlib.suppress(OSError):
                self._abort(key, key.__eq__)
        self._unfinished.clear()
        self._client.close()

    def _key(self, name: str) -> str:
        return self._prefix + checked(name, self.uri)

    def _pages(self, operation: str, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        with self._place.told(prefix):
            pages = self._client.get_paginator(operation)
            for page in pages.paginate(Bucket=self._place.bucket, Prefix=prefix, **options):
                if "IsTruncated" not in page:
                    raise KeyError(
                        "IsTruncated"
                    )  # a log-in page, say, lists nothing; that is not to be believed
                yield page

    def _held(self, key: str) -> Held:
        """Read an object. Raises FileNotFoundError."""
        with self._place.told(key):
            for left in reversed(range(self._settings.attempts)):
                answer = self._client.get_object(Bucket=self._place.bucket, Key=key)
                try:
                    return Held(answer["Body"].read(), answer["ETag"], _marks(answer))
                except BROKEN_OFF:
                    if not left:
                        raise
        raise AssertionError("there is at least one attempt")

    def _put(self, key: str, data: bytes, marks: tuple[str, ...], **conditions: str) -> None:
        self._client.put_object(
            Bucket=self._place.bucket,
            Key=key,
            Body=data,
            Metadata={MARKS: ",".join(marks[-MARKS_KEPT:])},
            **conditions,
        )

    def _swap(self, key: str, data: bytes, held: Held | None, mark: str) -> bool:
        """Put the data if what is there is still what is held. False when it was not done, or may not last."""
        conditional = self._conditional
        conditions = {"IfMatch": held.version} if held else {"IfNoneMatch": "*"}
        with self._place.told(key):
            try:
                self._put(
                    key, data, (*(held.marks if held else ()), mark), **(conditions if conditional else {})
                )
            except ClientError as error:
                if conditional and (status_of(error) == 501 or code_of(error) == "NotImplemented"):
                    self._conditional = False
                elif status_of(error) not in (409, 412) and code_of(error) != "NoSuchKey":
                    raise
                return False
        return conditional

    def _upload(self, key: str, source: Gathered, mark: str) -> bool:
        """Upload in parts. False when S3 did not say that they were put together, though they may have been."""
        here = (self._place.bucket, key)
        _in_flight.add(here)
        self._unfinished.add(key)
        try:
            with self._place.told(key):
                try:
                    self._transfer(key, source, mark, threads=True)
                except RuntimeError:
                    # The interpreter is on its way out and lets no thread be started, while a thread that began
                    # before is still to finish its upload.
                    source.seek(0)
                    self._transfer(key, source, mark, threads=False)
                except ClientError as error:
                    if code_of(error) != "NoSuchUpload":
                        raise
                    return False
        finally:
            _in_flight.discard(here)
        self._unfinished.discard(key)
        return True

    def _transfer(self, key: str, source: Gathered, mark: str, *, threads: bool) -> None:
        settings = self._settings
        self._client.upload_fileobj(
            source,
            self._place.bucket,
            key,
            ExtraArgs={"Metadata": {MARKS: mark}},
            Config=TransferConfig(
                multipart_threshold=settings.part_size,
                multipart_chunksize=settings.part_size,
                max_concurrency=settings.concurrency,
                use_threads=threads,
                preferred_transfer_client="classic",
            ),
        )

    def _verify(self, key: str, size: int, mark: str, *, sure: bool) -> None:
        """Look at what was put. Unless `sure`, S3 has not said that it was.

        Whoever replaced it since left a mark of their own; a server that keeps no metadata leaves none at all.
        """
        name = f"s3://{self._place.bucket}/{key}"
        try:
            with self._place.told(key):
                head = self._client.head_object(Bucket=self._place.bucket, Key=key)
        except FileNotFoundError:
            raise OSError(errno.EIO, f"{name} was put and is not there; put it again") from None
        marks = _marks(head)
        if not sure and mark not in marks:
            raise OSError(errno.EIO, f"the upload of {name} was aborted by another process; put it again")
        if (mark in marks or not marks) and head["ContentLength"] != size:
            raise OSError(
                errno.EIO, f"{name} has {head['ContentLength']} bytes, though {size} were put; put it again"
            )

    def _sweep(self) -> None:
        """Abort the uploads that attempts of this writer's rank, up to its own, left unfinished."""
        writer = self._writer
        if writer is None:
            return
        pattern = re.compile(rf"rank-{writer.rank:05}\.attempt-([0-9]+)\.")

        def left(key: str) -> bool:
            found = pattern.match(key.rpartition("/")[2])
            return found is not None and int(found[1]) <= writer.attempt

        try:
            self._abort(self._prefix, left)
        except Unreachable:
            raise
        except OSError:
            pass  # not every server lists them, nor everyone may; the bucket's lifecycle is to end them then

    def _abort(self, prefix: str, chosen: Callable[[str], bool]) -> None:
        bucket = self._place.bucket
        for page in self._pages("list_multipart_uploads", prefix):
            for each in page.get("Uploads", ()):
                key = each["Key"]
                if not chosen(key) or (bucket, key) in _in_flight:
                    continue
                with contextlib.suppress(FileNotFoundError), self._place.told(key):
                    self._client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=each["UploadId"])

    def _delete_many(self, keys: list[str]) -> bool:
        """Delete by one request. False when the server cannot, or wants a checksum that is not sent any more."""
        if not self._deletes_many:
            return False
        named = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        with self._place.told(keys[0]):
            try:
                answer = self._client.delete_objects(Bucket=self._place.bucket, Delete=named)
            except ClientError as error:
                if status_of(error) not in (400, 405, 411, 501):
                    raise
                self._deletes_many = False
                return False
        for each in answer.get("Errors", ()):
            if each["Code"] != "NoSuchKey":
                raise self._place.answer(each["Code"], 0, each.get("Message", ""), each["Key"])
        return True

    def _delete_one(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._place.told(key):
            self._client.delete_object(Bucket=self._place.bucket, Key=key)


def _bucket_and_prefix(uri: str) -> tuple[str, str]:
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise StorageError(f"{uri!r} names no bucket; write s3://bucket/prefix")
    return bucket, prefix.strip("/")


def _client(settings: S3Settings) -> Any:
    """A client of boto3's, which any thread may use. Raises StorageError."""
    try:
        session = boto3.session.Session(region_name=settings.region)
        return session.client(
            "s3",
            region_name=session.region_name or DEFAULT_REGION,
            endpoint_url=settings.endpoint,
            config=Config(
                s3={"addressing_style": settings.addressing_style},
                request_checksum_calculation=settings.checksums,
                response_checksum_validation=settings.checksums,
                retries={"mode": "standard", "total_max_attempts": settings.attempts},
                connect_timeout=settings.connect_timeout,
                read_timeout=settings.read_timeout,
                max_pool_connections=2 * settings.concurrency,
                tcp_keepalive=True,
            ),
        )
    except BotoCoreError as error:
        raise StorageError(f"S3 cannot be used: {error}") from error
    except ValueError:
        raise StorageError("S3 cannot be used: the endpoint in boto3's own configuration is none") from None


def _drain(body: Any, buffer: memoryview) -> Iterator[int]:
    """Fill the buffer from an answer's body; yields how many bytes each time, so that what came is not lost."""
    with contextlib.closing(body):
        while buffer:
            read = body.readinto(buffer[:READ_BYTES])
            if not read:
                return
            buffer = buffer[read:]
            yield read


def _new_mark() -> str:
    return secrets.token_hex(8)


def _marks(answer: dict[str, Any]) -> tuple[str, ...]:
    """The marks of an object's latest writes, the newest last."""
    return tuple(filter(None, answer.get("Metadata", {}).get(MARKS, "").split(",")))
