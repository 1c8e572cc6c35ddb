"""`holdfast run` of the examples, with a worker killed on the way: the results do not show it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.e2e.fleet import HOLDFAST, PATIENCE_S, leftovers

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(folder, *arguments):
    """Run to the end; stdout, stderr and exit code."""
    command = [HOLDFAST, "run", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert not leftovers(folder)
    return done


def test_chaos_kills_a_worker_and_the_arrays_do_not_show_it(tmp_path):
    arrays = {}
    for name, chaos in (("calm", []), ("killed", ["--chaos", "kill-worker@step=120,rank=2"])):
        out = tmp_path / f"{name}.safetensors"
        program = [
            sys.executable,
            str(EXAMPLES / "digits.py"),
            "--epochs",
            "60",
            "--hidden",
            "256",
            "--out",
            str(out),
        ]
        options = ["-n", "4", "--restart-scope", "rank", "--backoff", "10ms", *chaos]
        done = run(tmp_path, "--name", name, *options, "--", *program)
        assert done.returncode == 0, done.stderr
        assert "test accuracy 0.9" in done.stdout
        assert ("SIGKILL to rank 2" in done.stderr) == bool(chaos)
        arrays[name] = load_file(out)
    for key, array in arrays["calm"].items():
        np.testing.assert_array_equal(array, arrays["killed"][key])


@pytest.mark.torch
@pytest.mark.timeout(300)
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed: make torch")
def test_ddp_resumes_bit_for_bit(tmp_path):
    curves, said = [], []
    for name, chaos in (("calm", []), ("killed", ["--chaos", "kill-worker@step=40,rank=1"])):
        curve = tmp_path / f"{name}.csv"
        program = [sys.executable, str(EXAMPLES / "digits_ddp.py"), "--epochs", "4", "--curve", str(curve)]
        done = run(tmp_path, "--name", name, "-n", "2", "--backoff", "10ms", *chaos, "--", *program)
        assert done.returncode == 0, done.stderr
        assert (
            "restarts      1" in " ".join(done.stderr.split()) or "SIGKILL to rank 1" in done.stderr
        ) == bool(chaos)
        curves.append(curve.read_text())
        said.append(done.stdout)
    assert len(curves[0].splitlines()) == 4 * 22
    assert curves[0] == curves[1]
    assert "test accuracy 0.8" in said[0]
    assert said[0] == said[1]
