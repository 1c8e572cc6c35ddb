"""What a program, or a job file, names as a data set: a directory, a prefix, a glob, a file, or a list of files."""

import itertools
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from holdfast.data.errors import DataError
from holdfast.data.formats import suffix_of
from holdfast.storage.api import Storage, StorageError
from holdfast.storage.places import local_root, open_storage, switched

_MAGIC = re.compile(r"[*?\[]")


class Source(NamedTuple):
    """Where a data set is, made absolute."""

    uri: str
    """What tells it from others: what was named, made absolute."""
    base: str
    """The directory or prefix that its shards lie below."""
    names: tuple[str, ...] | None
    """Its shards; None: those below the base that match."""
    pattern: str
    """A glob below the base; empty: all."""
    mirror: str
    """A directory that may hold the same shards, for when the base cannot be reached; or empty."""

    def matches(self, name: str) -> bool:
        """A file below the base is a shard of it."""
        return bool(suffix_of(name)) and (not self.pattern or bool(_glob(self.pattern).fullmatch(name)))


def locate(source: object, env: Mapping[str, str]) -> Source:
    """Understand a path, a URI, or a list of them. The environment may switch it to S3, and name its mirror.

    Raises DataError when it cannot be meant.
    """
    if isinstance(source, list | tuple):
        files = [_absolute(_switched(os.fspath(each), env)) for each in source]
        base = _common([_split(file)[0] for file in files])
        names = tuple(file.removeprefix(f"{base.rstrip('/')}/") for file in files)
        home = _common([os.path.dirname(_absolute(os.fspath(each))) for each in source])  # noqa: PTH120
        return Source(base, base, names, "", _mirror(base, home, env))
    text = os.fspath(source)  # type: ignore[call-overload]
    uri = _absolute(_switched(text, env))
    home = _absolute(text)
    if _MAGIC.search(uri) and not os.path.exists(uri):  # noqa: PTH110  pathlib is one more import to pay for
        base, pattern = _split_glob(uri)
        return Source(uri, base, None, pattern, _mirror(base, _split_glob(home)[0], env))
    if suffix_of(uri) and not text.endswith("/") and not os.path.isdir(uri):  # noqa: PTH112
        base, name = _split(uri)
        return Source(uri, base, (name,), "", _mirror(base, _split(home)[0], env))
    return Source(uri, uri, None, "", _mirror(uri, home, env))


def is_local(uri: str) -> bool:
    """It is a path on this machine."""
    return "://" not in uri


def open_place(uri: str, env: Mapping[str, str], below: str = "") -> Storage:
    """The storage at a URI. Raises DataError when there cannot be one."""
    try:
        return open_storage(uri, below, env=env)
    except StorageError as error:
        raise DataError(str(error)) from error


def _switched(uri: str, env: Mapping[str, str]) -> str:
    try:
        return switched(uri, env)
    except StorageError as error:
        raise DataError(str(error)) from error


def _mirror(base: str, home: str, env: Mapping[str, str]) -> str:
    """Of a base that is elsewhere: the place that the program named, or the same path below HOLDFAST_DATA_MIRROR."""
    if is_local(base):
        return ""
    if is_local(home):
        return home
    top = env.get("HOLDFAST_DATA_MIRROR", "")
    return os.path.join(top, *base.partition("://")[2].split("/")[1:]) if top else ""  # noqa: PTH118


def _absolute(uri: str) -> str:
    """A path, when it is one of this machine; also what names it in another way is the same data set."""
    if not is_local(uri) and not uri.startswith("file://"):
        return uri.rstrip("/")
    try:
        return os.path.abspath(local_root(uri))  # noqa: PTH100
    except StorageError as error:
        raise DataError(str(error)) from error


def _split(uri: str) -> tuple[str, str]:
    base, _, name = uri.rpartition("/")
    return base or "/", name


def _split_glob(uri: str) -> tuple[str, str]:
    """The longest directory without a wildcard, and the rest."""
    parts = uri.split("/")
    plain = next((n for n, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    return "/".join(parts[:plain]) or "/", "/".join(parts[plain:])


def _common(directories: list[str]) -> str:
    """The directory that all of them are, or are below."""
    parts = zip(*(directory.split("/") for directory in directories), strict=False)
    same = [part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts)]
    # of "s3://bucket/a" the first three parts are scheme, nothing, and bucket
    if len(same) < (1 if is_local(directories[0]) else 3):
        raise ValueError(
            f"the files of a data set must lie in one place, not in {directories[0]} and {directories[-1]}"
        )
    return "/".join(same) or "/"


def _glob(pattern: str) -> re.Pattern[str]:
    """As a shell with globstar: `*` stays in its directory, `**/` is any number of them."""
    tokens = re.split(r"(\*\*/|\*|\?|\[[^\]]*\])", pattern)
    meaning = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(
            meaning.get(token) or (token.replace("[!", "[^") if token[:1] == "[" else re.escape(token))
            for token in tokens
        )
    )
