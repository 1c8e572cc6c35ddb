"""Many seeds keep every promise; one seed is one trace, in any process; every planted bug is found."""

import os
import re
import subprocess
import sys

import pytest

from tests.sim.bugs import PLANTS
from tests.sim.coordinator import Bugs
from tests.sim.run import run

SEEDS = 150
BUG_SEEDS = 1_000


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_promises_hold_whatever_breaks(first):
    for seed in range(first, first + 50):
        result = run(seed)
        assert not result.failure, f"{result.failure}; replay with make sim SEED={seed}"


def test_the_simulation_breaks_enough_to_mean_something():
    kinds = (
        *("commits", "nodes lost", "restarts", "spawned", "degraded", "dropped", "set aside", "hangs"),
        *("rules", "stopped in time", "stopped in peace", "wanted again", "restarted in peace"),
        *("pods gone", "nodes forgotten"),
    )
    totals = dict.fromkeys(kinds, 0)
    for seed in range(80):
        for what, count in run(seed).counts.items():
            totals[what] += count
    assert min(totals.values()) > 10, totals


def test_one_seed_is_one_trace_in_any_process():
    def trace(hash_seed: str) -> str:
        command = [sys.executable, "-m", "tests.sim", "--seed", "12", "--trace"]
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        return done.stdout

    first = trace("1")
    assert len(first.splitlines()) > 100
    assert first == trace("2")


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name, monkeypatch):
    plant, bugs = PLANTS[name], Bugs()
    plant.plant(monkeypatch, bugs)
    for seed in (plant.first, *range(BUG_SEEDS)):
        failure = run(seed, bugs=bugs, only=plant.faults).failure
        if failure:
            assert re.search(plant.found, failure), f"seed {seed} fails otherwise: {failure}"
            return
    pytest.fail(f"{BUG_SEEDS} seeds do not find it")
