"""The units in docs/deploy/systemd, as systemd reads them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.rendering import ROOT

UNITS = ROOT / "docs/deploy/systemd"


def setting(unit, key):
    return re.findall(rf"^{key}=(.*)$", (UNITS / f"holdfast-{unit}.service").read_text(), re.MULTILINE)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_them(tmp_path):
    """An unknown key is a warning to systemd, and an error here."""
    program = Path(sys.executable).parent / "holdfast"
    for unit in UNITS.glob("*.service"):
        text = unit.read_text().replace("/opt/holdfast/bin/holdfast", str(program))
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    about_ours = [line for line in done.stderr.splitlines() if "holdfast" in line]
    assert (done.returncode, about_ours) == (0, [])


def test_workers_outlive_a_restart_of_their_agent():
    assert setting("agent", "KillMode") == ["process"]
    assert setting("agent", "OOMPolicy") == ["continue"]
    assert setting("agent", "Delegate") == ["yes"]
    assert setting("agent", "PrivateTmp") == []


@pytest.mark.parametrize("unit", ["coordinator", "gateway", "agent"])
def test_daemons_are_started_again_for_ever(unit):
    assert setting(unit, "Restart") == ["always"]
    assert setting(unit, "StartLimitIntervalSec") == ["0"]


def test_settings_come_from_files_of_their_own():
    units = ("coordinator", "gateway", "agent")
    assert [setting(unit, "EnvironmentFile") for unit in units] == [
        [f"-/etc/holdfast/{unit}.env"] for unit in units
    ]
