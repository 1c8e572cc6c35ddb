"""A little of what `make soak` does a thousand times."""

import pytest

from tests.e2e.fleet import Fleet
from tests.soak.kills import WORLD, kill_agents, kill_workers

pytestmark = pytest.mark.e2e


@pytest.fixture
async def fleet(tmp_path):
    fleet = Fleet(tmp_path)
    await fleet.open()
    fleet.start_coordinator()
    fleet.start_agent(slots=WORLD)
    yield fleet
    await fleet.close()


@pytest.mark.parametrize(
    ("kill", "count", "preload"),
    [(kill_workers, 30, []), (kill_workers, 20, ["numpy"]), (kill_agents, 5, [])],
)
async def test_kills_are_survived_and_noticed(fleet, kill, count, preload):
    findings = await kill(fleet, count, seed=1, tell=print, preload=preload)
    assert len(findings.noticed or findings.adopted) == count
