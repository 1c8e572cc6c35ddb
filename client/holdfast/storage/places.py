"""From a URI to its storage.

Only the storage that is asked for is imported: boto3 and fsspec are slow to come up, and nobody should pay for them
at a restart who keeps files in a directory.
"""

# pathlib is one more import to pay for at every restart

import os
import posixpath
from collections.abc import Mapping

from holdfast.storage.api import Storage, StorageError, Writer
from holdfast.storage.local import LocalStorage

_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"", "0", "false", "no", "off"})


def open_storage(
    uri: str, below: str = "", writer: Writer | None = None, env: Mapping[str, str] | None = None
) -> Storage:
    """The storage of what is `below` a URI: a path, file://, s3://, or whatever else fsspec knows.

    `env` has the settings of S3 in place of this process's environment; credentials are always this process's own.
    Nothing is asked of the place yet. Raises StorageError when there cannot be one, or needs an extra.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        return LocalStorage(local_root(uri), below, writer)
    if scheme == "s3":
        return _s3(uri, below, writer, env)
    return _fsspec(uri, below, writer)


def local_root(uri: str) -> str:
    """The directory that a URI names. Raises StorageError for places that are not local."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return os.path.abspath(uri)
    if scheme == "file" and rest.startswith("/"):
        return rest
    raise StorageError(f"{uri!r} names no directory; give a path, or file:///and/its/path")


def switched(uri: str, env: Mapping[str, str]) -> str:
    """Where a URI is with USE_S3: a path becomes a place in S3_BUCKET, below S3_PREFIX; what has a scheme stays.

    Raises StorageError when the variables do not say where that is.
    """
    scheme, separator, rest = uri.partition("://")
    if not _is_on(env) or (separator and scheme != "file"):
        return uri
    bucket = env.get("S3_BUCKET", "").strip().strip("/").removeprefix("s3://")
    if not bucket or "/" in bucket:
        raise StorageError("USE_S3 is on, and S3_BUCKET names no bucket; set it, e.g. S3_BUCKET=training")
    path = posixpath.normpath(rest if separator else uri).lstrip("/")
    if path.split("/")[0] == "..":
        raise StorageError(
            f"USE_S3 is on, and {uri!r} has no place in bucket {bucket}; give a path without '..', or s3://"
        )
    prefix = env.get("S3_PREFIX", "").strip().strip("/")
    return "/".join(("s3:/", *filter(None, (bucket, prefix, "" if path == "." else path))))


def _is_on(env: Mapping[str, str]) -> bool:
    text = env.get("USE_S3", "").strip()
    if text.lower() in _YES:
        return True
    if text.lower() in _NO:
        return False
    raise StorageError(f"USE_S3: {text!r} is neither yes nor no; write 1 or 0")


def _s3(uri: str, below: str, writer: Writer | None, env: Mapping[str, str] | None) -> Storage:
    from holdfast.storage.s3_settings import s3_settings

    settings = s3_settings(os.environ if env is None else env)
    try:
        from holdfast.storage.s3 import S3Storage
    except ModuleNotFoundError as error:
        raise _without(error, uri, "s3") from error
    return S3Storage(uri, below, writer, settings)


def _fsspec(uri: str, below: str, writer: Writer | None) -> Storage:
    try:
        from holdfast.storage.fsspec_storage import FsspecStorage
    except ModuleNotFoundError as error:
        raise _without(error, uri, "fsspec") from error
    return FsspecStorage(uri, below, writer)


def _without(error: ModuleNotFoundError, uri: str, extra: str) -> StorageError:
    return StorageError(f"{uri} needs {error.name}, which is not installed: pip install 'holdfast[{extra}]'")
