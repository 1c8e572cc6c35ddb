"""Where coordinators are: `host:port`, or `unix:/path`; or several of `ip:port` with commas, of which one serves."""

DEFAULT_TARGET = "127.0.0.1:7070"

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def check_address(text: object) -> str:
    """Give back an address that may be one. Raises ValueError."""
    if isinstance(text, str) and several(text):
        return text
    if isinstance(text, str):
        host, _, port = text.rpartition(":")
        if text.startswith("unix:") and len(text) > len("unix:"):
            return text
        if host and " " not in host and "/" not in host and port.isdecimal() and 0 < int(port) < 2**16:
            return text
    shown = f'"{text}"' if isinstance(text, str) else repr(text)
    raise ValueError(f"{shown} is no address; write host:port, e.g. 10.0.0.1:7070, or unix:/path")


def several(target: str) -> str:
    """Write a list of addresses as gRPC has it; "" for a single one. Raises ValueError."""
    if "," not in target or target.startswith("unix:"):
        return ""
    from ipaddress import ip_address

    versions = set()
    for one in target.split(","):
        host, _, port = one.rpartition(":")
        try:
            versions.add(ip_address(host.strip("[]")).version)
        except ValueError:
            port = ""
        if not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f'"{one}" is no IP address with a port; write e.g. 10.0.0.1:7070,10.0.0.2:7070')
    if len(versions) > 1:
        raise ValueError(f'"{target}" mixes IPv4 and IPv6; write addresses of one kind')
    return f"ipv{versions.pop()}:{target}"


def is_here(target: str) -> bool:
    """Whether a coordinator of this address runs on this machine."""
    return target.startswith("unix:") or target.rpartition(":")[0] in LOOPBACK
