"""Names that jobs get when nobody gave them one."""

import re
from collections.abc import Sequence
from pathlib import Path


def default_name(command: Sequence[str]) -> str:
    """Name a job after its program: the script where an interpreter runs one."""
    scripts = [word for word in command if word.endswith(".py")]
    stem = Path(scripts[0] if scripts else command[0]).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:40] or "job"
