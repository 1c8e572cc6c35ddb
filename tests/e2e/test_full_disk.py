"""P1, P3, P9 on a full disk: a clear error, no corrupt state, no worker touched, and on it goes when there is room."""

import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

from holdfast import wire
from tests.e2e.fleet import Fleet, committed, pids

pytestmark = pytest.mark.e2e


def can_mount() -> bool:
    unshare = shutil.which("unshare")
    command = [unshare or "unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return unshare is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


class FullDiskFleet(Fleet):
    """The coordinator's state directory is a small file system that nobody else sees."""

    def inside(self, name: str) -> list[str]:
        if name != "coordinator":
            return []
        mount = f"mount -t tmpfs -o size=16m tmpfs {self.root}/coordinator"
        return ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]

    def start_coordinator(self) -> None:
        (self.root / "coordinator").mkdir()
        super().start_coordinator()

    def fill(self) -> Path:
        """Fill it to the last block, as seen from inside."""
        pid = self.processes["coordinator"].pid
        filler = Path(f"/proc/{pid}/root{self.root}/coordinator/filler")
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return filler


async def create_many(fleet, spec):
    for number in range(200):  # what is left in the write-ahead log takes a few
        await fleet.client.create_job(spec, request_id=f"too-much-{number}")


@pytest.mark.skipif(not can_mount(), reason="this machine lets the test mount no file system of its own")
async def test_a_full_disk_refuses_and_recovers(tmp_path):
    fleet = FullDiskFleet(tmp_path)
    await fleet.open()
    fleet.start_coordinator()
    fleet.start_agent()
    try:
        job_id = await fleet.submit(steps=1_000)
        before = await fleet.until(job_id, committed(10))
        filler = fleet.fill()
        with pytest.raises(wire.HoldfastError, match="no room on the disk"):
            await create_many(fleet, before.spec)
        assert all(psutil.pid_exists(pid) for pid in pids(before))
        filler.unlink()
        after = await fleet.succeeded(job_id)
        assert pids(after) == pids(before)
        assert after.restarts == 0
    finally:
        await fleet.close()
