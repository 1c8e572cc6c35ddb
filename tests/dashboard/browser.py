"""A real Chromium that a test tells what to do, through dashboard/tests/browser.mjs."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.needs import needed

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "dashboard"
BUILT = ROOT / "gateway/holdfast_gateway/static/index.html"


def need_built() -> None:
    """Skip, or fail where it has to run, when `make dashboard` was not, or not since a source was changed."""
    sources = [*DASHBOARD.glob("*.*"), *DASHBOARD.glob("src/**/*.*"), *DASHBOARD.glob("public/*")]
    newest = max(path.stat().st_mtime for path in sources)
    if (DASHBOARD / "node_modules").is_dir() and BUILT.is_file() and BUILT.stat().st_mtime >= newest:
        return
    reason = "the dashboard is not built, or not as its sources are: run `make dashboard`"
    if "node" in needed():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


class Browser:
    """One tab of it. Everything waits for what it asks for."""

    def __init__(self, node: str, chromium: str, profile: Path, base: str) -> None:
        command = [node, "tests/browser.mjs", chromium, str(profile), base]
        self._process = subprocess.Popen(
            command, cwd=DASHBOARD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, do: str, what: str = "", **how: object) -> object:
        """Do one thing, and give what came of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, "what": what, **how}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the browser is gone"}')
        assert "error" not in answer, f"{do} {what} {how}: {answer['error']}"
        return answer["answer"]

    def close(self) -> None:
        """End it, and Chromium with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
