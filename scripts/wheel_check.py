"""Holds the wheel to what is promised of it: `python scripts/wheel_check.py`, by `make wheel-check`.

It is built twice, in two directories, at two times, by two users' habits, and has to come out the same. Then it
is installed in empty environments of every Python that is here, or that PYTHONS names, and does its work there.
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from release import NO_DASHBOARD, ROOT, STATIC, add, build

PYTHONS = ("python3.11", "python3.12", "python3.13")
PATIENCE_S = 60.0
DIGITS = ("python", "-m", "holdfast.examples.digits", "--epochs", "20")


def main() -> None:
    """Check all of it; the first thing that is not so ends the program."""
    pythons = interpreters()
    with tempfile.TemporaryDirectory(prefix="wheel-check-") as folder:
        ours = twice(Path(folder))
        for python, version in pythons:
            place = Path(folder, version)
            place.mkdir()
            bare(python, ours, place)
            whole(python, ours, place)
            print(f"Python {version}: installed and at work, with and without extras", flush=True)


def interpreters() -> list[tuple[str, str]]:
    """The Pythons to check with, and their versions."""
    named = os.environ.get("PYTHONS", "").split()
    found = []
    for python in named or PYTHONS:
        ask = [python, "-c", "import platform; print(platform.python_version())"]
        try:
            done = subprocess.run(ask, capture_output=True, text=True, check=False)
        except OSError:
            done = None
        if done is not None and not done.returncode:
            found.append((python, done.stdout.strip()))
        elif named:
            sys.exit(f"PYTHONS names {python}, which does not run")
    if not found:
        sys.exit(f"none of {', '.join(PYTHONS)} is here: name some with PYTHONS='/path/to/python ...'")
    return found


# The same bytes


def twice(folder: Path) -> Path:
    """Build everything twice, as differently as can be. Returns the wheel."""
    made = []
    for name, age_s, umask, environment in (
        ("a", 0, 0o022, {"TZ": "UTC", "PYTHONHASHSEED": "1", "LC_ALL": "C"}),
        ("another/directory", 1_000_000, 0o077, {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "2"}),
    ):
        old = os.umask(umask)
        try:
            copy(folder / name, time.time() - age_s)
            made.append(build(folder / name, folder / name / "dist", **environment))
        finally:
            os.umask(old)
    for first, second in zip(*made, strict=True):
        if first.name != second.name or first.read_bytes() != second.read_bytes():
            sys.exit(f"{first.name} is not the same when it is built twice")
        print(f"{first.name}  sha256 {hashlib.sha256(first.read_bytes()).hexdigest()}, twice", flush=True)
    if not (ROOT / STATIC / "index.html").is_file():
        print(NO_DASHBOARD, file=sys.stderr)
    return made[0][0]


def copy(to: Path, at: float) -> None:
    """Copy what git has, or would have, and the dashboard where it is built, as if it had been written at a time."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [Path(name) for name in listed.split("\0") if name]
    names += [path.relative_to(ROOT) for path in (ROOT / STATIC).rglob("*") if path.is_file()]
    for name in names:
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)
            (to / name).chmod(0o755 if os.access(ROOT / name, os.X_OK) else 0o666)
            os.utime(to / name, (at, at))


# At work


def bare(python: str, ours: Path, place: Path) -> None:
    """Without extras: the library and the client, and of the daemons a sentence that says what to install."""
    there = environment(python, place / "bare")
    add(there / "python", str(ours))
    version = ours.name.split("-")[1]
    expect(run(there, place, "python", "-c", "import holdfast; print(holdfast.__version__)"), version)
    expect(run(there, place, "holdfast", "--version"), f"holdfast, version {version}")
    expect(run(there, place, "holdfast", "--help"), "Usage: holdfast")
    run(there, place, "python", "-W", "error", "-m", "compileall", "-q", str(package(there)))
    run(there, place, "python", "-c", "import holdfast; run = holdfast.init(); run.step(loss=1.0)")
    for command, extra in (
        (("coordinator",), "coordinator"),
        (("agent",), "agent"),
        (("gateway",), "gateway"),
        (("coordinator", "--http", "127.0.0.1:0"), "coordinator"),
        (("run", "-n", "1", "--", "true"), "run"),
    ):
        said = run(there, place, "holdfast", *command, fails=True)
        expect(said, f"pip install 'holdfast[{extra}]'")
        if "Traceback" in said or len(said.splitlines()) > 1:
            sys.exit(f"holdfast {' '.join(command)} says more than a sentence: {said}")


def whole(python: str, ours: Path, place: Path) -> None:
    """With extras: a run with a worker killed, and a fleet of one node that is told over HTTP to train."""
    there = environment(python, place / "whole")
    add(there / "python", f"holdfast[run,gateway] @ {ours.as_uri()}")
    expect(run(there, place, "holdfast", "run", "-n", "2", "--", "true"), "succeeded|elapsed")
    add(there / "python", f"holdfast[examples] @ {ours.as_uri()}")
    run(there, place, "python", "-m", "pip", "check")
    chaos = ("--restart-scope", "rank", "--chaos", "kill-worker@step=20", "--backoff", "0s")
    said = run(there, place, "holdfast", "run", "-n", "2", *chaos, "--", *DIGITS)
    expect(said, r"test accuracy 0\.9")
    expect(said, r"restarts +1\b")
    fleet(there, place)


def fleet(there: Path, place: Path) -> None:
    """A coordinator with a gateway, an agent, and a job by curl's way."""
    listen = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--state-dir", "state-coordinator")
    with daemon(there, place, "coordinator", *listen) as said:
        target = wait_for(said, r"holdfast coordinator listens on (\S+)")
        page = "http://" + wait_for(said, r"holdfast gateway listens on (?:http://)?([^\s/]+)")
        front = fetch(page).decode()
        expect(front, "<title>holdfast")
        if (ROOT / STATIC / "index.html").is_file():
            for asset in re.findall(r'(?:src|href)="\.?/?(assets/[^"]+)"', front):
                assert fetch(f"{page}/{asset}"), asset
            expect(front, "assets/.*js")
        options = ("--coordinator", target, "--slots", "2", "--state-dir", "state-agent")
        with daemon(there, place, "agent", *options):
            submitted = ("job", "submit", "-n", "2", "--wait", "--timeout", "60s", "--", *DIGITS)
            run(there, place, "holdfast", *submitted, server=target)
            expect(fetch(f"{page}/jobs").decode(), "SUCCEEDED")


@contextlib.contextmanager
def daemon(there: Path, place: Path, *command: str) -> Iterator[Path]:
    """Run one for a while. Gives the file with what it says."""
    log = place / f"{command[0]}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [there / "holdfast", *command], env=clean(there), cwd=place, stdout=file, stderr=file
        )
    try:
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)


def wait_for(log: Path, pattern: str) -> str:
    """Wait until a daemon has said something. Returns what is in the pattern's group."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = re.search(pattern, log.read_text())
        if found:
            return found[1]
        time.sleep(0.05)
    sys.exit(f"it never said {pattern}:\n{log.read_text()}")


def fetch(url: str) -> bytes:
    """What is there."""
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310  it is http
        return bytes(answer.read())


def environment(python: str, folder: Path) -> Path:
    """Make an empty one. Returns where its programs are."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    return folder / "bin"


def package(there: Path) -> Path:
    """Where packages lie in an environment."""
    return next(there.parent.glob("lib/*/site-packages/holdfast"))


def clean(there: Path) -> dict[str, str]:
    """An environment in which nothing of the checkout is found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HOLDFAST"))}
    return {**kept, "PATH": f"{there}:{os.environ['PATH']}", "HOME": str(there.parent)}


def run(
    there: Path, place: Path, program: str, *arguments: str, fails: bool = False, server: str = ""
) -> str:
    """Run a program of an environment. Returns all that it said."""
    env = clean(there) | ({"HOLDFAST_SERVER": server} if server else {})
    command = [there / program, *arguments]
    done = subprocess.run(
        command, env=env, cwd=place, capture_output=True, text=True, timeout=600, check=False
    )
    if bool(done.returncode) is not fails:
        sys.exit(f"{program} {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def expect(said: str, pattern: str) -> None:
    """End the program unless that was said."""
    if not re.search(pattern, said) and pattern not in said:
        sys.exit(f"{pattern!r} is not in what was said:\n{said}")


if __name__ == "__main__":
    main()
