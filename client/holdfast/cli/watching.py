"""Lists that are watched: all that there is, then a line for every change."""

from collections.abc import Callable, Sequence
from typing import Any

import click
from google.protobuf.message import Message

from holdfast.cli.common import Column, Showings, printable, show_data, to_dict

follow_option = click.option(
    "-w",
    "--watch",
    "again",
    is_flag=True,
    help="Go on with a line for every change, until Ctrl-C; with -o json one message a line.",
)


class Lines:
    """A list that grows. Its columns are as wide as what was there when it began, and wider where something is."""

    def __init__(self, form: str, columns: Sequence[Column], name: Callable[[Any], str]) -> None:
        self._form = form
        self._columns = [column for column in columns if form == "wide" or not column.wide]
        self._name = name
        self._widths: list[int] = []
        self._showings = Showings(form)

    @property
    def is_table(self) -> bool:
        """Whether people read it."""
        return self._form in ("table", "wide")

    def begin(self, items: Sequence[Message]) -> None:
        """Print the head of a table, and what there is."""
        heads = [column.head for column in self._columns]
        rows = [self._cells(item) for item in items]
        self._widths = [max(len(line[n]) for line in (heads, *rows)) for n in range(len(heads))]
        for line in (heads, *rows):
            self._print(line)

    def add(self, item: Message, message: Message) -> None:
        """Print a thing as it is now; `message` is what told of it."""
        if self.is_table:
            self._print(self._cells(item))
        else:
            self._show(self._name(item), message)

    def gone(self, name: str, message: Message) -> None:
        """Print that something is no more."""
        if self.is_table:
            self._print([printable(name), "deleted"])
        else:
            self._show(name, message)

    def _show(self, name: str, message: Message) -> None:
        if self._form == "name":
            click.echo(name)
        else:
            self._showings.begin()
            show_data(to_dict(message), self._form, compact=True)

    def _cells(self, item: Message) -> list[str]:
        return [printable(column.cell(item)) for column in self._columns]

    def _print(self, cells: Sequence[str]) -> None:
        padded = [cell.ljust(width) for cell, width in zip(cells, self._widths, strict=False)]
        click.echo("  ".join(padded).rstrip())


async def watch_list(
    changes: Any, lines: Lines, field: str, wanted: Callable[[Any], bool] = lambda _: True
) -> None:
    """Print what `watch_jobs` or `watch_nodes` says: those that are wanted, and once more one that no longer is."""
    shown: dict[str, Message] = {}
    begun = not lines.is_table
    async for change in changes:
        kind = change.WhichOneof("change")
        if kind == "ready":
            if not begun:
                lines.begin(list(shown.values()))
            begun = True
        elif kind == "deleted":
            if shown.pop(change.deleted, None) is not None and begun:
                lines.gone(change.deleted, change)
        else:
            item = getattr(change, field)
            name = item.name if field == "node" else item.id
            was = name in shown
            shown.pop(name, None)
            if wanted(item):
                shown[name] = item
            if begun and (was or name in shown):
                lines.add(item, change)
