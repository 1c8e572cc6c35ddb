"""Contexts: which coordinators there are, by name, and which one is meant. Kept in a small YAML file.

    current: lab
    contexts:
      lab:
        server: 10.0.0.1:7070

Reading is strict: what is not as above is an error that names file and line. Writing replaces the file as a whole, or
not at all.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.addresses import DEFAULT_TARGET, check_address
from holdfast.config_files import ConfigError, Reader, compose

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(slots=True)
class Config:
    """What the file says: the addresses by the names of their contexts, and the name of the current one."""

    servers: dict[str, str] = field(default_factory=dict)
    current: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """An address, and in a few words where it was taken from."""

    address: str
    source: str


def config_path(env: Mapping[str, str] = os.environ) -> Path:
    """HOLDFAST_CONFIG, or config.yaml where XDG has it."""
    if named := env.get("HOLDFAST_CONFIG"):
        return Path(named)
    base = env.get("XDG_CONFIG_HOME") or Path(env.get("HOME") or Path.home()) / ".config"
    return Path(base, "holdfast", "config.yaml")


def resolve(given: str | None, env: Mapping[str, str] = os.environ) -> Server:
    """Say which coordinator is meant: --server, HOLDFAST_SERVER, HOLDFAST_CONTEXT, the current context, the default.

    Raises ConfigError.
    """
    if given:
        return Server(given, "of --server")
    if address := env.get("HOLDFAST_SERVER"):
        return Server(address, "of HOLDFAST_SERVER")
    path = config_path(env)
    named = env.get("HOLDFAST_CONTEXT", "")
    if not named and not path.exists():
        return Server(DEFAULT_TARGET, "the default")
    config = read_config(path)
    name = named or config.current
    if not name:
        return Server(DEFAULT_TARGET, "the default")
    source = f'context "{name}" of HOLDFAST_CONTEXT' if named else f'context "{name}" of {path}'
    return Server(server_of(config, name, path), source)


def server_of(config: Config, name: str, path: Path) -> str:
    """Give the address of a context. Raises ConfigError."""
    if name not in config.servers:
        known = f"has {', '.join(config.servers)}" if config.servers else "has none"
        raise ConfigError(
            f'there is no context "{name}": {path} {known}; add it with '
            f"`holdfast context set {name} --server HOST:PORT`"
        )
    return config.servers[name]


def check_name(name: object) -> str:
    """Give back a name that a context may have. Raises ValueError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        shown = f'"{name}"' if isinstance(name, str) else repr(name)
        raise ValueError(f"{shown} is no name of a context; write letters, digits, '-', '_' and '.'")
    return name


def read_config(path: Path) -> Config:
    """Read the file; where there is none, there are no contexts. Raises ConfigError."""
    try:
        root = compose(path, "file of contexts")
    except FileNotFoundError:
        return Config()
    return _Reader(path).config(root)


class _Reader(Reader):
    def config(self, root: Any) -> Config:
        config = Config()
        if root is None:
            return config
        current = None
        for key, value in self.pairs(root, "the file"):
            match key.value:
                case "current":
                    current = value
                case "contexts":
                    for name, context in self.pairs(value, "contexts"):
                        with self.at(name):
                            check_name(name.value)
                        config.servers[name.value] = self._server(context, f"contexts.{name.value}")
                case _:
                    hint = "there are current and contexts"
                    if key.value in ("coordinator", "agent", "gateway"):
                        hint = "a daemon's settings are named by its --config; here are current and contexts"
                    self.fail(key, f'unknown field "{key.value}"; {hint}')
        if current is not None:
            config.current = self.text(current, "current")
            if config.current and config.current not in config.servers:
                self.fail(current, f'current: there is no context "{config.current}" below contexts')
        return config

    def _server(self, node: Any, where: str) -> str:
        found = ""
        for key, value in self.pairs(node, where):
            if key.value != "server":
                self.fail(key, f'{where}: unknown field "{key.value}"; there is server')
            with self.at(value, f"{where}.server: "):
                found = check_address(self.text(value, f"{where}.server"))
        if not found:
            self.fail(node, f"{where}: has no server; add e.g. server: 10.0.0.1:7070")
        return found


@contextlib.contextmanager
def changing(path: Path) -> Iterator[Config]:
    """Read the file, and write it when the block is over. Who changes it at the same time waits.

    Raises ConfigError.
    """
    try:
        path = path.resolve()  # a link to it stays one
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{path}: its directory can't be made: {error.strerror}") from error
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        config = read_config(path)
        yield config
        _write(path, config, holder)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error.strerror}") from error
    finally:
        os.close(holder)


def _write(path: Path, config: Config, directory: int) -> None:
    import secrets

    import yaml

    data: dict[str, Any] = {"current": config.current} if config.current else {}
    data["contexts"] = {name: {"server": address} for name, address in config.servers.items()}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        os.fsync(directory)
    finally:
        beside.unlink(missing_ok=True)
