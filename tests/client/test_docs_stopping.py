"""The program in docs/stopping.md runs, and goes on."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/stopping.md"


def test_the_program_runs_and_goes_on(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "train.py").write_text(program)
    for _ in range(2):
        subprocess.run([sys.executable, "-W", "error", "train.py"], cwd=tmp_path, check=True, timeout=60)
    (latest,) = tmp_path.rglob("LATEST")
    assert latest.read_text() == "step-0000000064\n"
