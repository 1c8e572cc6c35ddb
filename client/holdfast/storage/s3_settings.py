"""How S3 is spoken to, from the environment. Credentials are not read here: boto3 finds them as it always does."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from holdfast.storage.api import StorageError
from holdfast.units import parse_duration, parse_size, shown

T = TypeVar("T")

LEAST_PART = 5 << 20
"""What S3 itself asks of every part but the last."""
LARGEST_PART = 1 << 30


class S3Settings(NamedTuple):
    """What can be said about an S3 service."""

    endpoint: str | None = None
    """None: where boto3's own configuration says, or Amazon's."""
    region: str | None = None
    addressing_style: str = "auto"
    checksums: str = "when_required"
    """Older servers refuse the checksums that newer clients would send with everything."""
    conditional_puts: bool = True
    part_size: int = 16 << 20
    concurrency: int = 8
    attempts: int = 4
    connect_timeout: float = 5.0
    read_timeout: float = 30.0


def s3_settings(env: Mapping[str, str]) -> S3Settings:
    """Read the settings from an environment. Raises StorageError, which names the variable."""
    default = S3Settings()

    def read(name: str, parse: Callable[[str], T], otherwise: T) -> T:
        text = env.get(name, "").strip()
        if not text:
            return otherwise
        try:
            return parse(text)
        except ValueError as error:
            raise StorageError(f"{name}: {error}") from None

    return S3Settings(
        endpoint=next(
            (found for name in _ENDPOINTS if (found := read(name, _endpoint, None)) is not None), None
        ),
        region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or None,
        addressing_style=read("S3_ADDRESSING_STYLE", _one_of("auto", "path", "virtual"), "auto"),
        checksums=read("S3_CHECKSUMS", _one_of("when_required", "when_supported"), default.checksums),
        conditional_puts=read("S3_CONDITIONAL_PUTS", _one_of("auto", "off"), "auto") == "auto",
        part_size=read("S3_PART_SIZE", _part_size, default.part_size),
        concurrency=read("S3_CONCURRENCY", _whole(1, 64), default.concurrency),
        attempts=read("AWS_MAX_ATTEMPTS", _whole(1, 20), default.attempts),
        connect_timeout=read("S3_CONNECT_TIMEOUT", _seconds, default.connect_timeout),
        read_timeout=read("S3_READ_TIMEOUT", _seconds, default.read_timeout),
    )


_ENDPOINTS = ("S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def _endpoint(text: str) -> str | None:
    try:
        url = urlsplit(text)
        plain = url.scheme in ("http", "https") and url.hostname and (url.port or True)
    except ValueError:
        plain = False
    if not plain or url.username is not None or url.query or url.fragment:
        # It is not quoted: there may be a password in it.
        raise ValueError("this is no endpoint; write e.g. https://minio.example:9000, without a user")
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{shown(text)} is none of {', '.join(words)}")
        return text

    return parse


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"{shown(text)} is no whole number from {least} to {most}")
        return int(text)

    return parse


def _part_size(text: str) -> int:
    size = parse_size(int(text) if text.isdecimal() else text)
    if not LEAST_PART <= size <= LARGEST_PART:
        raise ValueError(f"{shown(text)} is no size of a part; write one from 5MiB to 1GiB")
    return size


def _seconds(text: str) -> float:
    seconds = parse_duration(text).total_seconds()
    if not seconds:
        raise ValueError(f"{shown(text)} is no time to wait; write e.g. 5s")
    return seconds
