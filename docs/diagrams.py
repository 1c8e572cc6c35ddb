"""Writes the state diagrams in docs/architecture.md from the coordinator's transition tables.

Run `python docs/diagrams.py` after a change of the tables; a test holds the page to them.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from holdfast_coordinator.core.edges import JOB_EDGES, NODE_EDGES, WORKER_EDGES

PAGE = Path(__file__).parent / "architecture.md"
TABLES: dict[str, Mapping[StrEnum, frozenset[StrEnum]]] = {
    "job": JOB_EDGES,
    "worker": WORKER_EDGES,
    "node": NODE_EDGES,
}


def diagram(table: Mapping[StrEnum, frozenset[StrEnum]]) -> str:
    """Draw a table as a Mermaid state diagram: the first state is where things begin."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {next(iter(table))}"]
    for old, edges in table.items():
        lines += [f"    {old} --> {new}" for new in table if new in edges]
        if not edges:
            lines.append(f"    {old} --> [*]")
    return "\n".join([*lines, "```"])


def rewritten(page: str) -> str:
    """Return the page with every diagram as the tables have it."""
    for name, table in TABLES.items():
        block = re.compile(rf"(<!-- {name} states -->\n).*?(<!-- end -->)", re.DOTALL)
        page = block.sub(lambda m, t=table: f"{m[1]}{diagram(t)}\n{m[2]}", page)
    return page


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
