"""Programs that are on no fresh machine. Tests that need one run where it is found, and say so where it is not.

HOLDFAST_TESTS_NEED=node,zsh turns such a skip into a failure: what has to have run is not passed over in silence.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

VARIABLE = "HOLDFAST_TESTS_NEED"
NODE_MAJOR = 18  # that of Debian 12
NAMES = {
    "node": ("node",),
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "grpcurl": ("grpcurl",),
    "zsh": ("zsh",),
    "fish": ("fish",),
}
"""What can be asked for, and the commands that it may be."""
REMEDIES = {
    "node": f"install Node.js {NODE_MAJOR} or newer with npm (`make node` does so on Debian)",
    "chromium": "install Chromium (`make browser` does so on Debian)",
    "grpcurl": "install grpcurl (`make grpcurl` does so)",
    "zsh": "install zsh (`make shells` does so on Debian)",
    "fish": "install fish (`make shells` does so on Debian)",
}


def search_path() -> str:
    """PATH, after where this interpreter's own programs are."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def need(name: str) -> str:
    """The path of a program; skips the test where it is not found, or fails it where it has to be."""
    path = next(filter(None, (shutil.which(command, path=search_path()) for command in NAMES[name])), None)
    missing = f"{name} is not found" if path is None else _lacks(name, path)
    if path is None or missing:
        _missing(name, f"{missing}: {REMEDIES[name]}")
    return path


def needed() -> set[str]:
    """What HOLDFAST_TESTS_NEED names. Raises ValueError for what nothing here is called."""
    found = {name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()}
    if unknown := found - NAMES.keys():
        raise ValueError(f"{VARIABLE} names {', '.join(sorted(unknown))}; there is {', '.join(NAMES)}")
    return found


def _lacks(name: str, path: str) -> str:
    """What is wrong with a program that was found; empty: nothing."""
    if name != "node":
        return ""
    if shutil.which("npm") is None:
        return "node is there, but npm is not found"
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < NODE_MAJOR:
        return f"{path} is {version}"
    return ""


def npm_ci(folder: Path) -> None:
    """Install what a folder's package-lock.json names; skips or fails as `need("node")` does where npm can't."""
    need("node")
    done = subprocess.run(["npm", "ci", "--silent"], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        _missing("node", f"`npm ci` in {folder} failed ({(done.stderr or done.stdout).strip()[-500:]})")


def _missing(name: str, why: str) -> NoReturn:
    if name in needed():
        pytest.fail(f"{why}; {VARIABLE} says that this has to run", pytrace=False)
    pytest.skip(why)
