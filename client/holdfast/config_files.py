"""Small YAML files that people write, read strictly: what can't be is one sentence with file, line and remedy."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

_MAX_BYTES = 2**20


class ConfigError(Exception):
    """A config file, or something in it, that can't be; one sentence with the remedy."""


def compose(path: Path, what: str) -> Any:
    """Parse the file; None where it says nothing. `what` names it: "file of contexts".

    Raises ConfigError, and FileNotFoundError.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path}: is larger than 1 MiB; that is no {what}")
    import yaml

    try:
        return yaml.compose(content.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8; write it anew") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{mark.line + 1}: " if mark is not None else " "
        problem = getattr(error, "problem", None) or "can't be read"
        raise ConfigError(f"{path}:{line}is no YAML: {problem}") from error


class Reader:
    """Reads nodes of YAML, so that errors have lines. Everything here raises ConfigError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pairs(self, node: Any, where: str) -> Iterator[tuple[Any, Any]]:
        """Give the keys of a mapping, none of them twice, with their values."""
        if node.id != "mapping":
            self.fail(node, f"{where}: is not of the form NAME: VALUE")
        seen: dict[str, int] = {}
        for key, value in node.value:
            self.text(key, where)
            if key.value in seen:
                self.fail(
                    key, f'"{key.value}" stands in line {seen[key.value]} already; take one of them away'
                )
            seen[key.value] = key.start_mark.line + 1
            yield key, value

    def text(self, node: Any, where: str) -> str:
        """Give a scalar as it is written."""
        if node.id != "scalar":
            self.fail(node, f"{where}: is no text")
        return str(node.value)

    def fail(self, node: Any, message: str) -> NoReturn:
        raise ConfigError(f"{self._path}:{node.start_mark.line + 1}: {message}")

    @contextlib.contextmanager
    def at(self, node: Any, where: str = "") -> Iterator[None]:
        """Say of a ValueError where it is from."""
        try:
            yield
        except ValueError as error:
            self.fail(node, f"{where}{error}")
