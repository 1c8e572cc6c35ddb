"""Durations and sizes as people write them."""

import re
from datetime import timedelta

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(B|KiB|MiB|GiB|TiB)")
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_duration(text: object) -> timedelta:
    """Read `500ms`, `30s`, `5m`, `1h`, or 0. Raises ValueError."""
    if text in (0, "0") and not isinstance(text, bool):
        return timedelta()
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise ValueError(f"{shown(text)} is no duration; write for instance 500ms, 30s, 5m or 1h")
    return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])


def parse_size(text: object) -> int:
    """Read `2GiB`, `512MiB`, or bytes as a whole number. Raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    found = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise ValueError(f"{shown(text)} is no size; write for instance 512MiB or 2GiB")
    return int(float(found[1]) * _BYTES[found[2]])


def shown(value: object) -> str:
    """A value as an error message quotes it."""
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
