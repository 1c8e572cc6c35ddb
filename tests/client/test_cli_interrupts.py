"""Ctrl-C under `holdfast run`, when it is not as simple as that; tests/e2e/test_run.py has the rest."""

import asyncio

import pytest

from holdfast.cli.run import _Interrupts
from holdfast.wire import Unreachable


class FullDisk:
    """A coordinator that can't write down that a job is to stop."""

    async def stop_job(self, job_id, *, force):
        raise Unreachable("the coordinator can't serve now: no room on the disk", "try again")


class Notes(list):
    note = list.append


async def test_who_can_not_stop_in_order_ends_all_the_same():
    notes = Notes()

    async def command():
        interrupts = _Interrupts()
        obeying = asyncio.create_task(interrupts.obey(FullDisk(), "job1", notes))
        await asyncio.sleep(0)
        interrupts._hear()
        try:
            await asyncio.Event().wait()
        finally:
            await obeying

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(command())
    assert notes[0] == "stopping; once more stops at once"
    assert "no room on the disk" in notes[1]
