"""What S3 and the way to it answer, as the errors that every storage raises."""

import contextlib
import errno
from collections.abc import Iterator
from typing import NamedTuple

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from holdfast.storage.api import Unreachable

BROKEN_OFF = (ReadTimeoutError, ResponseStreamingError, IncompleteReadError)
"""An answer that began and did not end; botocore asks again only for those that did not begin."""

_NO_WAY = (
    HTTPClientError,
    BotoConnectionError,
    IncompleteReadError,
    ResponseParserError,
    KeyError,  # an answer without what S3 always says
    CredentialRetrievalError,
    MetadataRetrievalError,
    TokenRetrievalError,
)
_IN_TROUBLE = frozenset({"SlowDown", "RequestTimeout", "Throttling", "InternalError", "ServiceUnavailable"})
_NOT_LET_IN = frozenset({"AccessDenied", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (ConnectTimeoutError, "no connection in time"),
    (ReadTimeoutError, "no answer in time"),
    (EndpointConnectionError, "no connection; is the endpoint right, and does it listen?"),
    (ResponseParserError, "what answers does not speak S3"),
    (KeyError, "what answers does not speak S3"),
    (CredentialRetrievalError, "the credentials could not be fetched"),
    (MetadataRetrievalError, "the credentials could not be fetched"),
)


def code_of(error: ClientError) -> str:
    """S3's word for what went wrong; of an answer without a body, the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """The HTTP status."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


class Place(NamedTuple):
    """A bucket at an endpoint, as errors name it: no URL, since there may be a secret in it."""

    bucket: str
    endpoint: str

    @contextlib.contextmanager
    def told(self, name: str) -> Iterator[None]:
        """Raise what boto3 raises in here as the errors of `api.Storage`, with a sentence about `name`."""
        try:
            yield
        except ClientError as error:
            message = str(error.response.get("Error", {}).get("Message", ""))
            raise self.answer(code_of(error), status_of(error), message, name) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise PermissionError(
                errno.EACCES,
                f"there are no credentials for bucket {self.bucket}; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role",
            ) from error
        except _NO_WAY as error:
            reason = next(
                (reason for kind, reason in _REASONS if isinstance(error, kind)), type(error).__name__
            )
            raise Unreachable(
                errno.EHOSTUNREACH, f"S3 at {self.endpoint} cannot be reached: {reason}"
            ) from error
        except BotoCoreError as error:
            raise OSError(
                errno.EIO, f"S3 at {self.endpoint} was not asked for {name}: {type(error).__name__}"
            ) from error

    def answer(self, code: str, status: int, message: str, name: str) -> OSError:
        """The error that stands for what S3 answered."""
        bucket, endpoint = self
        if code == "NoSuchBucket":
            return OSError(
                errno.ENODEV, f"there is no bucket {bucket} at {endpoint}; make it, or correct its name"
            )
        if code == "RequestTimeTooSkewed":
            return PermissionError(
                errno.EACCES, f"S3 at {endpoint} finds this machine's clock wrong; set it right"
            )
        if status in (401, 403) or code in _NOT_LET_IN:
            return PermissionError(
                errno.EACCES,
                f"S3 at {endpoint} refuses {name} in bucket {bucket} ({code}); let these credentials do "
                "s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload "
                "there, or use others",
            )
        if code in _IN_TROUBLE or status == 429 or (status >= 500 and status != 501):
            return Unreachable(errno.EBUSY, f"S3 at {endpoint} is in trouble: {code} ({status}) for {name}")
        if status == 404:
            return FileNotFoundError(errno.ENOENT, "no such object", f"s3://{bucket}/{name}")
        return OSError(errno.EIO, f"S3 at {endpoint} answers {code} ({status}) for {name}: {message}")
