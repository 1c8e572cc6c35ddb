"""`holdfast context`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import click

from holdfast import contexts
from holdfast.addresses import check_address
from holdfast.cli.common import fail, output_option, printable, show_data, show_table
from holdfast.cli.complete import complete_contexts
from holdfast.cli.exits import EXIT
from holdfast.config_files import ConfigError

name_argument = click.argument("name", shell_complete=complete_contexts)


class _Context(NamedTuple):
    name: str
    server: str
    current: bool


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Let a config that can't be end the command."""
    try:
        yield
    except ConfigError as error:
        fail(printable(str(error)), EXIT.USAGE)


@click.group()
def command() -> None:
    """Name coordinators, and choose the one that commands talk to.

    They are kept in ~/.config/holdfast/config.yaml, or the file that HOLDFAST_CONFIG names. A command takes the address
    of --server, or else of HOLDFAST_SERVER, of the context that HOLDFAST_CONTEXT names, of the current context, or
    127.0.0.1:7070.

    \b
    Example:
      holdfast context set lab --server 10.0.0.1:7070 --use
    """  # noqa: D301  click reads the backspaces


@command.command("list")
@output_option
def list_contexts(output: str) -> None:
    """List the contexts.

    \b
    Example:
      holdfast context list
    """  # noqa: D301  click reads the backspaces
    with _one_sentence():
        config = contexts.read_config(contexts.config_path())
    found = [_Context(name, server, name == config.current) for name, server in config.servers.items()]
    if output == "name":
        for context in found:
            click.echo(context.name)
    elif output in ("json", "yaml"):
        show_data({"contexts": [context._asdict() for context in found]}, output)
    else:
        rows = [["*" if context.current else "", context.name, context.server] for context in found]
        show_table(["CURRENT", "NAME", "SERVER"], rows)


@command.command()
@click.argument("name", required=False, shell_complete=complete_contexts)
@output_option
def get(name: str | None, output: str) -> None:
    """Show a context; without a name, which coordinator commands talk to, and why that one.

    \b
    Examples:
      holdfast context get
      holdfast context get lab -o name
    """  # noqa: D301  click reads the backspaces
    with _one_sentence():
        if name is None:
            server = contexts.resolve(None)
        else:
            path = contexts.config_path()
            address = _server_of(contexts.read_config(path), name)
            server = contexts.Server(address, f'context "{name}" of {path}')
    if output == "name":
        click.echo(server.address)
    elif output in ("json", "yaml"):
        show_data({"server": server.address, "source": server.source}, output)
    else:
        show_table(["SERVER", "FROM"], [[server.address, server.source]])


@command.command()
@name_argument
def use(name: str) -> None:
    """Make a context the current one.

    \b
    Example:
      holdfast context use lab
    """  # noqa: D301  click reads the backspaces
    with _one_sentence(), contexts.changing(contexts.config_path()) as config:
        _server_of(config, name)
        config.current = name
    click.echo(f"commands talk to {config.servers[name]} now", err=True)


@command.command("set")
@name_argument
@click.option("--server", required=True, metavar="ADDRESS", help="The coordinator: host:port, or unix:/path.")
@click.option("--use", "make_current", is_flag=True, help="Make it the current one.")
def set_context(name: str, server: str, *, make_current: bool) -> None:
    """Add a context, or change the one of this name.

    \b
    Example:
      holdfast context set lab --server 10.0.0.1:7070 --use
    """  # noqa: D301  click reads the backspaces
    try:
        contexts.check_name(name)
        check_address(server)
    except ValueError as error:
        raise click.UsageError(printable(str(error))) from error
    with _one_sentence(), contexts.changing(contexts.config_path()) as config:
        config.servers[name] = server
        if make_current:
            config.current = name
    how = "the current one" if config.current == name else f"use it with `holdfast context use {name}`"
    click.echo(f"context {name} is {server}; {how}", err=True)


@command.command()
@name_argument
def delete(name: str) -> None:
    """Forget a context.

    \b
    Example:
      holdfast context delete lab
    """  # noqa: D301  click reads the backspaces
    with _one_sentence(), contexts.changing(contexts.config_path()) as config:
        _server_of(config, name)
        del config.servers[name]
        was_current = config.current == name
        if was_current:
            config.current = ""
    click.echo(f"context {name} deleted{'; none is the current one now' if was_current else ''}", err=True)


def _server_of(config: contexts.Config, name: str) -> str:
    """Find a context, or end the command."""
    try:
        return contexts.server_of(config, name, contexts.config_path())
    except ConfigError as error:
        fail(printable(str(error)), EXIT.NOT_FOUND)
