"""The command line, forked from a process that has imported it: a command takes a tenth of the CPU that it would.

All else is as at a prompt: it is a process of its own, in a session of its own, with arguments, environment and files
of its own.
"""

import gc
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("holdfast.cli", "holdfast_coordinator", "holdfast_agent", "holdfast_gateway")
LEFT_OUT = {"__main__", "env", "versions"}
"""What does something when it is imported."""
PATIENCE_S = 100.0


class Warm:
    """Starts commands, and knows how they ended."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.deploy.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def start(self, arguments: list[str], env: dict[str, str], folder: Path, out: Path, err: Path) -> int:
        """Start `holdfast`, with what it writes going to the ends of files. Returns its pid."""
        order = {"arguments": arguments, "env": env, "folder": str(folder), "out": str(out), "err": str(err)}
        return self._ask(order)

    def code(self, pid: int) -> int | None:
        """The exit code of what was started, or a signal's number below 0; None: it runs. Once only."""
        status = self._ask({"pid": pid})
        return None if status is None else os.waitstatus_to_exitcode(status)

    def wait(self, pid: int) -> int:
        until = time.monotonic() + PATIENCE_S
        while (code := self.code(pid)) is None:
            assert time.monotonic() < until, "it does not end"
            time.sleep(0.03)
        return code

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def _ask(self, order):
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


def serve() -> None:
    for name in PACKAGES:
        package = importlib.import_module(name)
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not LEFT_OUT & set(found.name.split(".")):
                importlib.import_module(found.name)
    gc.freeze()  # a collection in a child would have all of it copied
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if "pid" in order:
            pid, status = os.waitpid(order["pid"], os.WNOHANG)
            answer = status if pid else None
        elif not (answer := os.fork()):
            become(order)
        print(json.dumps(answer), flush=True)


def become(order) -> None:
    """Be the command, to its end."""
    os.setsid()
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["out"], append),
        (2, order["err"], append),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["holdfast", *order["arguments"]]
    from holdfast.cli import main

    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # to take down all that was imported takes longer than most commands


if __name__ == "__main__":
    serve()
