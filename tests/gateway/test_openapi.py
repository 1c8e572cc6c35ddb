"""The description of the API is true: schemathesis asks what it allows and what it forbids, of a real fleet."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e

RUN = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
OPTIONS = [
    *("--phases", "fuzzing", "--max-examples", "3", "--mode", "all", "--no-color"),
    *("--seed", "1", "--generation-deterministic"),
    *("--exclude-path-regex", "/stream$"),  # they do not end
    # What has the right shape may still be refused: which values are possible is the coordinator's to say.
    *("--exclude-checks", "positive_data_acceptance"),
]


def test_answers_are_as_described(served, tmp_path):
    description = served.get("/openapi.json")
    assert len(description["paths"]) > 20
    done = subprocess.run(
        [*RUN, f"{served.url}/openapi.json", *OPTIONS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
