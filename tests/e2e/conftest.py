import pytest

from tests.e2e.fleet import Fleet


@pytest.fixture
async def fleet(tmp_path):
    """A coordinator and one agent of four slots."""
    async for found in _fleet(tmp_path):
        yield found


@pytest.fixture
async def nervous_fleet(tmp_path):
    """One in which a node is lost after five seconds of silence."""
    async for found in _fleet(tmp_path, lost_after="5s"):
        yield found


async def _fleet(root, **options):
    fleet = Fleet(root, **options)
    await fleet.open()
    fleet.start_coordinator()
    fleet.start_agent()
    try:
        yield fleet
    finally:
        await fleet.close()
