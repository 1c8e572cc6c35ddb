"""What docs/hangs.md shows is so: its programs run, its job files are read, its defaults are the defaults."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.spec import SpecFile
from holdfast_agent import hangs
from holdfast_coordinator import codec
from holdfast_coordinator.core import stragglers
from holdfast_coordinator.core.model import HangPolicy, StragglerPolicy
from holdfast_coordinator.core.validate import violations

PAGE = (Path(__file__).parents[2] / "docs/hangs.md").read_text()


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_programs_run(tmp_path, program):
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, timeout=100, check=True)


def test_the_job_files_are_taken(tmp_path):
    text = "".join(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    (tmp_path / "job.yaml").write_text(f"name: a\ncommand: [train]\n{text}")
    spec = codec.spec_from_proto(SpecFile(tmp_path / "job.yaml").part.to_proto())
    assert violations(spec) == ()
    assert spec.hang.limits_ms == {"setup": 1_200_000, "step": 90_000, "eval": 3_600_000}
    assert (spec.hang.factor, spec.hang.floor_ms) == (HangPolicy().factor, HangPolicy().floor_ms)
    assert spec.stragglers.threshold == StragglerPolicy().threshold


def test_its_numbers_are_so():
    assert (HangPolicy().factor, HangPolicy().floor_ms) == (10, 600_000)
    assert (hangs.WARM_UP_STEPS, hangs.LOOK_NS) == (3, 10**9)
    assert (stragglers.WINDOW_MS, stragglers.PEERS) == (60_000, 4)
    assert StragglerPolicy().threshold * stragglers.LEAST_SPREAD == pytest.approx(0.3)
    assert StragglerPolicy().threshold * stragglers.LEAST_SPREAD_OF_FEW == pytest.approx(0.75)
