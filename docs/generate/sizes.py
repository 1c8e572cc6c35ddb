"""Durations and sizes as job files have them."""


def duration(milliseconds: int) -> str:
    """Write e.g. 500ms, 30s, 10m."""
    for unit, each in (("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if milliseconds and milliseconds % each == 0:
            return f"{milliseconds // each}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0"


def size(count: int) -> str:
    """Write e.g. 16MiB."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift}{unit}"
    return str(count)
