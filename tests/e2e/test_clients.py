"""What docs/client.md, docs/any-language.md and examples/node show, against a real coordinator, agent and workers."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.fleet import Fleet
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
