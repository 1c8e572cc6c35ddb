"""Which page has something generated in it, and by what."""

from collections.abc import Callable
from pathlib import Path

from docs.generate import commands, diagrams, grpc_page, job_spec, rest, settings

DOCS = Path(__file__).parents[1]
PAGES: dict[str, Callable[[str], str]] = {
    "architecture.md": diagrams.rewritten,
    "cli.md": commands.rewritten,
    "reference/grpc.md": grpc_page.rewritten,
    "reference/job-spec.md": job_spec.rewritten,
    "reference/rest.md": rest.rewritten,
    "settings.md": settings.rewritten,
}


def differing() -> dict[Path, str]:
    """The pages that are not as the code has them, and what they should be."""
    found = {}
    for name, rewritten in PAGES.items():
        text = (DOCS / name).read_text()
        if (made := rewritten(text)) != text:
            found[DOCS / name] = made
    return found
