"""The core imports nothing that can be impure."""

import ast
from pathlib import Path

import pytest

import holdfast_coordinator.core.step

CORE = Path(holdfast_coordinator.core.step.__file__).parent
PURE = {
    *(
        "bisect",
        "collections",
        "collections.abc",
        "dataclasses",
        "enum",
        "math",
        "operator",
        "re",
        "statistics",
        "typing",
        "warnings",
    ),
    "zlib",
}
OURS = "holdfast_coordinator.core"


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.stem)
def test_imports_are_pure(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            names = [node.module]
        else:
            continue
        for name in names:
            assert name in PURE or name == OURS or name.startswith(f"{OURS}."), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.stem)
def test_nothing_is_ordered_by_hash(path):
    """A set's order, `hash` and `id` differ from process to process."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"hash", "id", "open", "input", "eval", "exec"}, f"line {node.lineno}"
        if isinstance(node, ast.For):
            ordered = not isinstance(node.iter, ast.Set | ast.SetComp)
            assert ordered, f"{path.name} line {node.lineno} iterates over a set"
