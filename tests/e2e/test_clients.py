"""What docs/client.md, docs/any-language.md and examples/node show, against a real coordinator, agent and workers."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.fleet import Fleet
from tests.needs import need, npm_ci, search_path
from tests.ports import free_port

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PATIENCE = 100
ADDRESS = "127.0.0.1:7070"
"""Where a coordinator listens unless it is told otherwise, and so in what docs show."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A coordinator on a port, with one agent; the same for all."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    fleet.target = f"127.0.0.1:{free_port()}"
    fleet.start_coordinator()
    fleet.start_agent()

    async def ready():
        await fleet.open()
        await fleet.node_until("node-a", lambda node: node.capacity.slots == 4)
        await fleet.client.close()

    async def close():
        await fleet.open()
        await fleet.close()

    asyncio.run(ready())
    yield fleet.target
    asyncio.run(close())


def shown(page, language):
    """The blocks of a language in a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def printed(command, cwd, **more):
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False, **more
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert not done.stderr
    return done.stdout.splitlines()


class TestClientPage:
    """docs/client.md."""

    PROGRAMS = shown("client.md", "python")

    @pytest.fixture
    def run(self, address, tmp_path):
        def run(program):
            text = program.replace(ADDRESS, address)
            return printed([sys.executable, "-W", "error", "-c", text], tmp_path)

        return run

    def test_the_first_program(self, run):
        *states, one, two, restarts = run(self.PROGRAMS[0])
        assert states[-1].startswith("JOB_STATE_SUCCEEDED ")
        assert {one, two} == {"[0] hello", "[1] hello"}
        assert restarts == "0 restarts"

    def test_asyncio(self, run):
        assert run(self.PROGRAMS[1]) == ["a: JOB_STATE_SUCCEEDED", "b: JOB_STATE_SUCCEEDED"]

    def test_iterators(self, run):
        assert run(self.PROGRAMS[2]) == ["['long']", "JOB_STATE_STOPPED"]

    def test_errors(self, run):
        field, message, remedy = run(self.PROGRAMS[3])
        assert field.startswith("world_size: ")
        assert (message, remedy) == ("there is no job nope", "list the jobs to see their ids")

    def test_there_are_no_more(self):
        assert len(self.PROGRAMS) == 4

    def test_the_table_has_every_kind(self):
        from holdfast import errors

        page = (ROOT / "docs/client.md").read_text()
        kinds = set(errors.__all__) - {"HoldfastError", "Violation"}
        assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == kinds


def test_the_program_of_the_quickstart(address, tmp_path):
    (program,) = shown("quickstart.md", "python")
    said = printed([sys.executable, "-W", "error", "-c", program.replace(ADDRESS, address)], tmp_path)
    assert said[-1]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """examples/node, copied to where it may be installed."""
    need("node")
    root = tmp_path_factory.mktemp("node")
    shutil.copytree(ROOT / "proto", root / "proto")
    here = root / "examples/node"
    shutil.copytree(ROOT / "examples/node", here, ignore=shutil.ignore_patterns("node_modules"))
    npm_ci(here)
    return here


class TestNode:
    def run(self, example, address, *command):
        env = os.environ | {"HOLDFAST_SERVER": address}
        done = subprocess.run(
            ["node", "train.mjs", *command],
            cwd=example,
            env=env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    def test_it_sees_a_job_from_its_beginning_to_its_end(self, example, address):
        code, said, errors = self.run(example, address)
        assert (code, errors) == (0, "")
        job_id = said[0].removeprefix("created ")
        assert said[-1] == f"deleted {job_id}"
        assert sorted(line for line in said if line.startswith("[")) == ["[0] hello", "[1] hello"]
        states = [line.split(":")[0] for line in said if line.startswith("JOB_STATE_")]
        assert states[-1] == "JOB_STATE_SUCCEEDED"

    def test_a_job_that_fails_is_told(self, example, address):
        code, said, _ = self.run(example, address, "sh", "-c", "echo so it goes; exit 3")
        assert code == 1
        assert any(line.startswith("JOB_STATE_FAILED: ") for line in said), said

    def test_so_is_what_can_not_be(self, example, address):
        code, said, errors = self.run(example, address, "")
        assert (code, said) == (1, [])
        assert errors.startswith("the job can't be: command")

    def test_its_lock_names_no_registry(self):
        lock = json.loads((ROOT / "examples/node/package-lock.json").read_text())
        assert [name for name, package in lock["packages"].items() if "resolved" in package] == []


class TestShell:
    """docs/any-language.md."""

    @pytest.fixture
    def run(self, address, tmp_path):
        def run(language):
            script = "set -euo pipefail\n" + "".join(shown("any-language.md", language))
            env = os.environ | {"PATH": search_path(), "HOME": str(tmp_path)}
            return printed(["bash", "-c", script.replace(ADDRESS, address)], tmp_path, env=env)

        return run

    def test_buf_curl(self, run):
        said = run("sh")
        assert "holdfast.v1.JobService/CreateJob" in said
        text = "\n".join(said)
        assert '"status": "SERVING"' in text
        assert '"name": "node-a"' in text
        assert text.count('"data": "aGVsbG8K"') == 2
        assert '"kind": "JobCreated"' in text
        assert '"state": "JOB_STATE_SUCCEEDED"' in text
        assert said[-1] == "{}"

    def test_grpcurl(self, run):
        need("grpcurl")
        said = run("bash")
        assert "holdfast.v1.JobService" in said
        assert (
            "rpc CreateJob ( .holdfast.v1.CreateJobRequest ) returns ( .holdfast.v1.CreateJobResponse );"
            in said
        )
        assert '"state": "JOB_STATE_SUCCEEDED"' in "\n".join(said)
