"""Durations and sizes as people write them."""

import re
from datetime import timedelta

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(B|KiB|MiB|GiB|TiB)")
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

LONGEST = timedelta(days=36_500)
LARGEST = 2**60


def parse_duration(text: object) -> timedelta:
    """Read `500ms`, `30s`, `5m`, `1h`, `7d`, or 0. Raises ValueError."""
    if text in (0, "0") and not isinstance(text, bool):
        return timedelta()
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise ValueError(f"{shown(text)} is no duration; write e.g. 500ms, 30s, 5m or 1h")
    seconds = float(found[1]) * _SECONDS[found[2]]
    if seconds > LONGEST.total_seconds():
        raise ValueError(f"{shown(text)} is longer than a hundred years; write less")
    return timedelta(seconds=seconds)


def parse_size(text: object) -> int:
    """Read `2GiB`, `512MiB`, or bytes as a whole number. Raises ValueError."""
    if isinstance(text, str) and (found := _SIZE.fullmatch(text)):
        size = float(found[1]) * _BYTES[found[2]]
    elif isinstance(text, int) and not isinstance(text, bool):
        size = text
    else:
        raise ValueError(f"{shown(text)} is no size; write e.g. 512MiB or 2GiB")
    if abs(size) > LARGEST:
        raise ValueError(f"{shown(text)} is more than an exbibyte; write less")
    return int(size)


def parse_whole(number: object) -> int:
    """Check that it is a whole number that fits into 32 bits. Raises ValueError."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{shown(number)} is not a whole number; write e.g. 4")
    if abs(number) >= 2**31:
        raise ValueError(f"{shown(number)} is too large; write a number below {2**31:,}")
    return number


def shown(value: object) -> str:
    """A value as an error message quotes it."""
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
