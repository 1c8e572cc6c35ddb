"""Pieces of Markdown."""

import re
from collections.abc import Iterable, Sequence


def replaced(page: str, **blocks: str) -> str:
    """Return the page with what stands between `<!-- name -->` and `<!-- end -->`, for each block, replaced.

    A space in a name of the page is a `_` here. Raises ValueError for a name that the page does not have once.
    """
    for name, text in blocks.items():
        marker = f"<!-- {name.replace('_', ' ')} -->"
        block = re.compile(rf"({marker}\n).*?(<!-- end -->)", re.DOTALL)
        page, count = block.subn(lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page)
        if count != 1:
            raise ValueError(f"{marker} stands {count} times in the page; it has to stand there once")
    return page


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; what could end a cell is escaped."""
    lines = ["".join(f"| {text} " if text else "| " for text in head) + "|", "|" + "---|" * len(head)]
    lines += ["".join(f"| {cell(text)} " if text else "| " for text in row) + "|" for row in rows]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Write text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Write code inside a line; nothing of nothing."""
    return f"`{text}`" if text else ""
