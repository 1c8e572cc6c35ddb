"""The state diagrams in docs/architecture.md, from the coordinator's transition tables."""

from collections.abc import Mapping
from enum import StrEnum

from docs.generate import markdown
from holdfast_coordinator.core.edges import JOB_EDGES, NODE_EDGES, WORKER_EDGES

TABLES: dict[str, Mapping[StrEnum, frozenset[StrEnum]]] = {
    "job_states": JOB_EDGES,
    "worker_states": WORKER_EDGES,
    "node_states": NODE_EDGES,
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
    return markdown.replaced(page, **{name: diagram(table) for name, table in TABLES.items()})
