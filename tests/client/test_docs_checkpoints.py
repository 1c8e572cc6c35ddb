"""The programs in docs/checkpoints.md run, one after the other, and again."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def needs(program):
    """What a program imports that may not be installed."""
    return [name for name in ("torch", "jax") if re.search(rf"^import {name}\b", program, re.MULTILINE)]


def parametrized():
    for program in PROGRAMS:
        named = needs(program)
        missing = [name for name in named if importlib.util.find_spec(name) is None]
        skip = pytest.mark.skipif(bool(missing), reason=f"{missing} is not installed (`make torch jax`)")
        yield pytest.param(program, marks=[skip, *(getattr(pytest.mark, name) for name in named)])


def run(folder, program):
    (folder / "train.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-W", "error", "train.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )


@pytest.mark.parametrize("program", list(parametrized()))
def test_the_programs_run_and_resume(tmp_path, program):
    if "holdfast.load(" in program:  # reads what another has saved
        run(tmp_path, "import numpy as np, holdfast\n" + SAVE)
        assert run(tmp_path, program).stdout == "params/w (2, 3) float32\n"
        return
    run(tmp_path, program)
    (latest,) = tmp_path.rglob("LATEST")
    assert f"resumed train from step {int(latest.read_text()[5:])}" in run(tmp_path, program).stderr


SAVE = """
run = holdfast.init()
run.step()
run.checkpoint({"params": {"w": np.zeros((2, 3), np.float32)}, "other": np.zeros(9)}, wait=True)
"""


def test_every_kind_of_program_is_there():
    assert sorted(needs(program) for program in PROGRAMS) == [[], [], ["jax"], ["torch"]]
