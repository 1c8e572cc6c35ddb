"""docs/migrating-from-torchrun.md has every flag that torchrun has, and no other."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/migrating-from-torchrun.md").read_text()
TABLE = re.search(r"<!-- flags -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)[1]


def flags_of_torchrun():
    """The long names with hyphens, read from the source of its parser: to import torch takes seconds."""
    torch = importlib.util.find_spec("torch")
    if torch is None:
        pytest.skip("torch is not installed (`make torch`)")
    source = Path(torch.origin).with_name("distributed") / "run.py"
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            names = [each.value for each in node.args if isinstance(each, ast.Constant)]
            long = [name for name in names if name.startswith("--") and "_" not in name]
            yield from long[:1]


def test_every_flag_is_in_the_table():
    assert set(flags_of_torchrun()) == set(re.findall(r"^\| `(--[a-z-]+)` \|", TABLE, re.MULTILINE))


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_programs_are_some(program):
    compile(program, "train.py", "exec")
