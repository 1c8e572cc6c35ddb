"""`holdfast run` with some workers, and then with another number of them, from the checkpoint of the first run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from holdfast.worker import sharding
from tests.e2e.fleet import HOLDFAST, PATIENCE_S, leftovers

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"
SAMPLES, BATCH = 100, 8
EPOCH = 13  # batches; the last holds 4 samples

PROGRAM = """
import json, os, sys
import numpy as np
import holdfast
epochs, out = int(sys.argv[1]), sys.argv[2]
run = holdfast.init()
data = run.dataset(100, 8, seed=3, epochs=epochs)
state = run.restore(default={"taken": np.zeros(0, np.int64)})
with open(f"{out}-{run.rank}-{run.attempt}", "w") as log:
    for batch in data:
        step = run.step()
        print(json.dumps([step, batch.tolist()]), file=log, flush=True)
        run.checkpoint(state, every=5)
run.checkpoint(state, wait=True)
"""


def run(folder, name, workers, *arguments, resume_from=None):
    """Run to the end. Returns where its checkpoints are, and what it said."""
    options = ["-n", str(workers), "--name", name, "--backoff", "10ms"]
    if resume_from is not None:
        options += ["--resume-from", str(resume_from)]
    done = subprocess.run(
        [HOLDFAST, "run", *options, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert not leftovers(folder)
    assert done.returncode == 0, done.stderr
    (job,) = (folder / ".holdfast/runs" / name / "checkpoints").iterdir()
    return job, done


def batches(folder, name, workers):
    """The global batches by step, as the last attempt took them."""
    taken = {}
    for rank in range(workers):
        for attempt in (1, 2):
            path = folder / f"{name}-{rank}-{attempt}"
            for line in path.read_text().splitlines() if path.exists() else ():
                step, part = json.loads(line)
                taken.setdefault(step, {})[rank] = part
    return {
        step: sorted(sample for part in parts.values() for sample in part)
        for step, parts in sorted(taken.items())
    }


def test_two_workers_go_on_with_the_samples_that_four_have_left(tmp_path):
    program = [sys.executable, "-c", PROGRAM]
    first, done = run(
        tmp_path,
        "four",
        4,
        "--chaos",
        "kill-worker@step=8,rank=1",
        "--",
        *program,
        "1",
        str(tmp_path / "four"),
    )
    assert "SIGKILL to rank 1" in done.stderr
    run(tmp_path, "two", 2, "--", *program, "3", str(tmp_path / "two"), resume_from=first)
    taken = {**batches(tmp_path, "four", 4), **batches(tmp_path, "two", 2)}
    assert min(batches(tmp_path, "two", 2)) == EPOCH + 1
    assert list(taken) == list(range(1, 3 * EPOCH + 1))
    for step, batch in taken.items():
        epoch, number = divmod(step - 1, EPOCH)
        order = sharding.order(SAMPLES, 3, epoch)
        assert batch == sorted(order[number * BATCH : (number + 1) * BATCH].tolist())


@pytest.mark.torch
@pytest.mark.timeout(300)
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed: make torch")
def test_a_model_in_four_parts_goes_on_in_two(tmp_path):
    """Resumed in another world, and killed there: what it ends with is what an undisturbed run ends with."""
    import holdfast.torch

    def train(name, workers, epochs, *options, resume_from=None):
        program = [sys.executable, str(EXAMPLES / "digits_fsdp.py"), "--epochs", str(epochs)]
        return run(tmp_path, name, workers, *options, "--", *program, resume_from=resume_from)

    calm, _ = train("calm", 1, 4)
    four, _ = train("four", 4, 2)
    two, killed = train("two", 2, 4, "--chaos", "kill-worker@step=70,rank=1", resume_from=four)
    assert "SIGKILL to rank 1" in killed.stderr
    assert "resumed from step 44 on 2 ranks" in killed.stdout  # that of the four
    assert killed.stdout.count("resumed from step") == 2
    expected, found = holdfast.torch.load(calm), holdfast.torch.load(two)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():  # sums over four, two and one are rounded differently
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=1e-3, atol=1e-4, err_msg=name)
