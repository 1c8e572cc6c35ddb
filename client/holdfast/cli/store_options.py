"""Where a coordinator keeps its state, as options say it: a database, if not its directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from holdfast.cli.common import fail

if TYPE_CHECKING:
    from holdfast_coordinator.store.url import StoreUrl


def other_store(command: Callable[..., None]) -> Callable[..., None]:
    """Options of a command that works on a coordinator's state: those which name its database."""
    url = click.option(
        "--store",
        envvar="HOLDFAST_COORDINATOR_STORE",
        metavar="URL",
        help="The database of coordinators on PostgreSQL: postgresql://USER@HOST:5432/DATABASE, without a password.",
    )
    file = click.option(
        "--store-file",
        type=click.Path(path_type=Path),
        envvar="HOLDFAST_COORDINATOR_STORE_FILE",
        help="A file that holds this URL, which then may have a password.",
    )
    return url(file(command))


def read_store(text: str | None, file: Path | None) -> StoreUrl | None:
    """The database that is named; ends the command when it can't be. Nothing said here holds a password."""
    from holdfast_coordinator.store.url import StoreUrlError, read_url

    if text is not None and file is not None:
        raise click.UsageError("--store and --store-file are two ways to say one thing; give one of them")
    try:
        if file is not None:
            text = file.read_text()
        if text is None:
            return None
        url = read_url(text.strip())
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}", param_hint="--store-file") from error
    except (StoreUrlError, UnicodeDecodeError) as error:
        why = str(error) if isinstance(error, StoreUrlError) else f"{file} is no text"
        raise click.BadParameter(why, param_hint="--store" if file is None else "--store-file") from None
    source = click.get_current_context().get_parameter_source("store")
    if url.has_password and file is None and source is ParameterSource.COMMANDLINE:
        raise click.BadParameter(
            "everyone on this machine can read a command line, and the password with it; put the URL into a file of "
            "yours for --store-file, or the password into one that PGPASSFILE names",
            param_hint="--store",
        )
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        fail(f"PostgreSQL can't be used from here ({error}): pip install 'holdfast[coordinator,postgres]'")
    return url
