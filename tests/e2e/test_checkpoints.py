"""What becomes of checkpoints in a whole job: one that rots, and those that are no longer kept."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.e2e.fleet import HOLDFAST, PATIENCE_S
from tests.e2e.train import expected

pytestmark = pytest.mark.e2e

TRAIN = os.path.join(os.path.dirname(__file__), "train.py")

ROT = """
import os, pathlib, signal, sys, time
sys.argv = ["train.py", "60", "out"]
sys.path.insert(0, os.path.dirname({train!r}))
import holdfast
run = holdfast.init()
if run.attempt == 2 and run.rank == 1:
    # The disk has lost a bit of what was committed, before anybody reads it again.
    (path,) = pathlib.Path("ckpt", run.job_id).glob(f"step-{{run.resume_step:010}}/rank-00001.*")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    pathlib.Path("rotten").write_text(str(run.resume_step))
import train
train.main()
"""


def holdfast(folder, *arguments):
    """Exit code, stdout, stderr."""
    done = subprocess.run(
        [HOLDFAST, *arguments], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S
    )
    return done.returncode, done.stdout, done.stderr


def assert_undisturbed(folder, ranks=2, steps=60):
    for rank in range(ranks):
        assert np.load(folder / f"out/{rank}.npy").tobytes() == expected(rank, steps).tobytes()


def test_a_checkpoint_that_rots_is_set_aside_and_the_one_before_it_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "rot.py").write_text(ROT.format(train=TRAIN))
    flags = ("--checkpoint-dir", "ckpt", "--backoff", "0s", "--chaos", "kill-worker@step=35")
    code, _, err = holdfast(tmp_path, "run", "-n", "2", *flags, "--", sys.executable, "rot.py")
    assert code == 0, err
    assert_undisturbed(tmp_path)
    rotten = int((tmp_path / "rotten").read_text())
    assert f"step {rotten} failed verification" in err
    assert f"resumed from instead is step {rotten - 10}" in err
    (job,) = (tmp_path / "ckpt").iterdir()
    aside = job / f"step-{rotten:010}"
    assert (aside / "manifest.quarantined-attempt-1.json").exists()
    assert (aside / "rank-00001.attempt-1.safetensors").exists()
    assert (aside / "manifest.json").exists()  # committed anew, by the attempt after
    code, out, _ = holdfast(tmp_path, "checkpoint", "verify", "ckpt", "--all", "-o", "json")
    verdicts = json.loads(out)["verdicts"]
    assert code == 0
    assert sorted(verdict["step"] for verdict in verdicts) == list(range(10, 70, 10))


def test_only_what_is_to_be_kept_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    flags = ("--checkpoint-dir", "ckpt", "--keep-last", "2", "--keep-every", "30", "--backoff", "0s")
    chaos = ("--chaos", "kill-worker@step=35")
    code, _, err = holdfast(
        tmp_path, "run", "-n", "2", *flags, *chaos, "--", sys.executable, TRAIN, "80", "out"
    )
    assert code == 0, err
    assert_undisturbed(tmp_path, steps=80)
    (job,) = (tmp_path / "ckpt").iterdir()
    kept = {int(path.name.removeprefix("step-")) for path in job.glob("step-*")}
    # What the attempt that runs to the end has resumed from is kept as well.
    assert kept == {30, 60, 70, 80, int(re.search(r"restarts from step (\d+)", err)[1])}
    newest = json.loads((job / "step-0000000080/manifest.json").read_bytes())
    files = {path.name for path in (job / "step-0000000080").iterdir()} - {"manifest.json"}
    assert files == {shard["file"] for shard in newest["shards"]}
