"""Where coordinators are: `host:port`, or `unix:/path`."""

DEFAULT_TARGET = "127.0.0.1:7070"

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def check_address(text: object) -> str:
    """Give back an address that may be one. Raises ValueError."""
    if isinstance(text, str):
        host, _, port = text.rpartition(":")
        if text.startswith("unix:") and len(text) > len("unix:"):
            return text
        if host and " " not in host and "/" not in host and port.isdecimal() and 0 < int(port) < 2**16:
            return text
    shown = f'"{text}"' if isinstance(text, str) else repr(text)
    raise ValueError(f"{shown} is no address; write host:port, e.g. 10.0.0.1:7070, or unix:/path")


def is_here(target: str) -> bool:
    """Whether a coordinator of this address runs on this machine."""
    return target.startswith("unix:") or target.rpartition(":")[0] in LOOPBACK
