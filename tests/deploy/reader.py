"""Somebody who reads a page and types its commands: in a checkout, at a fleet that is as the page supposes."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.agent.processes import remove_groups
from tests.deploy.pages import ROOT, Command
from tests.deploy.warm import PATIENCE_S, Warm
from tests.e2e.fleet import leftovers
from tests.ports import free_port

FOLDERS = (
    "backups",
    "data/spool",
    "etc/holdfast",
    "etc/systemd/system",
    "run/holdfast",
    "tmp",
    ".config/fish/completions",
)
"""What there is on a machine."""
READY = {"coordinator": "listens on", "agent": "session open", "gateway": "listens on"}
"""Daemons, and what they say when they are at work."""
OURS = re.compile(r"(?<![\w/])/(?=(?:backups|checkpoints|data|etc|run/holdfast|tmp|var/lib)(?:[/\s]|$))")
"""The root of paths that pages name as examples; here it is a directory."""
PLACEHOLDERS = {
    "10.77.0.2": "127.0.0.1",
    "COMMAND": "job",
    "DIR": "/data/agent",
    "DIRECTORY": "/data/spool",
    "PATH": "notice",
    "PATTERN": "loss",
    "URL": "http://127.0.0.1:1/notice",
    "ADDRESS": "127.0.0.1:8080",
}
"""What stands for something that only the reader knows; jobs and addresses beside."""
JOB_FILE = 'command: [sh, -c, "echo hello"]\nworld_size: 2\n'
PROGRAM = 'import os\n\nprint("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"])\n'
DIGITS = f"""
import runpy, sys
sys.argv += ["--hidden", "64", "--epochs", "125"]  # 500 steps: what the pages speak of is among them
runpy.run_path("{ROOT}/examples/digits.py", run_name="__main__")
"""


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def checkout(folder: Path) -> None:
    """Make a directory look like one of this repository, with a program to train and a job file beside it."""
    for top, into in (
        (ROOT, folder),
        (ROOT / "examples", folder / "examples"),
        (Path(sys.prefix), folder / ".venv"),
    ):
        into.mkdir(parents=True, exist_ok=True)
        for path in top.iterdir():
            if path.name not in {".git", ".holdfast", ".venv", ".ready", "examples", "digits.py"}:
                (into / path.name).symlink_to(path)
    (folder / ".venv/.ready").touch()  # newer than what it depends on: make has nothing to install
    (folder / "examples/digits.py").write_text(DIGITS)
    (folder / "train.py").write_text(PROGRAM)
    (folder / "job.yaml").write_text(JOB_FILE)


class Reader:
    """Types commands. What it starts is gone after `close`."""

    def __init__(self, warm: Warm, folder: Path, fleet: "Reader | None" = None) -> None:
        """Without a fleet its commands make one. What other readers of a fleet have at / is what it has there."""
        self.folder = folder
        self.root = fleet.root if fleet else folder
        self.own = f"127.0.0.1:{free_port()}"
        self.own_http = f"127.0.0.1:{free_port()}"
        self.server = fleet.server if fleet else self.own
        self.http = fleet.http if fleet else self.own_http
        self.job = fleet.job if fleet else ""
        self.node = "gpu-7"
        self.made = ""
        self.warm = warm
        self.daemons: dict[str, int] = {}
        self._made: list[tuple[str, str]] = []
        self._count = 0
        self._left_running = False
        checkout(folder)
        for name in FOLDERS:
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        """What its shell has set: where a fleet is that is not where it would be by default."""
        own = {
            "HOLDFAST_COORDINATOR_STATE_DIR": "state/coordinator",
            "HOLDFAST_AGENT_STATE_DIR": "state/agent",
            "HOLDFAST_AGENT_NAME": self.own.replace("127.0.0.1:", "node-"),
        }
        given = {
            "HOME": str(self.root),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOLDFAST_SERVER": self.server,
            "HOLDFAST_COORDINATOR_LISTEN": self.own,
            "HOLDFAST_GATEWAY_LISTEN": self.own_http,
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        return inherited | given | (own if self.root != self.folder else {})

    def type(self, text: str) -> Done:
        """Type a command as a page has it; a daemon is left running."""
        text = self.filled(text)
        plain = _plain(text)
        if plain and _daemon(plain[1]):
            return self._leave_running(*plain)
        if plain and plain[1][0] == "holdfast":
            return self._noted(self._wait(self._start(*plain)))
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return self._noted(Done(done.returncode, done.stdout, ""))

    def try_out(self, text: str) -> Done:
        """Type a command of prose: one of a daemon is typed elsewhere, and ended when that is at work."""
        plain = _plain(self.filled(text))
        if not plain or not _daemon(plain[1]):
            return self.type(text)
        self._count += 1
        elsewhere = Reader(self.warm, self.folder / f"elsewhere-{self._count}", self)
        try:
            return elsewhere.type(text)
        finally:
            elsewhere.close()

    def filled(self, text: str) -> str:
        """A command with what its placeholders stand for here."""
        for placeholder, value in PLACEHOLDERS.items():
            text = re.sub(rf"(?<![\w$-]){re.escape(placeholder)}(?!\w)", value, text)
        text = re.sub(r"(?<![\w$-])NODE(?!\w)", self.node, text)
        text = re.sub(r"--metrics \d+", f"--metrics {free_port()}", text)
        text = re.sub(r"(--listen) [\d.]+:7070", rf"\1 {self.own}", text)
        text = re.sub(r"(--listen|--http) [\d.]+:8080", rf"\1 {self.own_http}", text)
        text = re.sub(r"\b(HOST|[\d.]+|localhost):7070\b", self.server, text)
        text = re.sub(r"\b([\d.]+|localhost):(8080|8000)\b", self.http, text)
        text = re.sub(r"(?<![\w$-])(ID|JOB)(?![\w=])", self.job, text)
        return OURS.sub(f"{self.root}/", text)

    def start(self, text: str) -> int:
        """Begin a command; its pid, which leads a session."""
        return self._start(*_plain(self.filled(text)))[0]

    def kill(self, daemon: str) -> None:
        """SIGKILL."""
        os.kill(self.daemons[daemon], signal.SIGKILL)
        self.warm.wait(self.daemons.pop(daemon))

    def end(self, pid: int) -> int:
        """Wait for the end of what `start` has begun."""
        return self.warm.wait(pid)

    def until(self, text: str, said: str) -> Done:
        """Type a command again and again until it says this."""
        until = time.monotonic() + PATIENCE_S
        while not re.search(said, (done := self.type(text)).out):
            assert time.monotonic() < until, f"{text} never says {said}: {done}"
            time.sleep(0.3)
        return done

    def close(self) -> None:
        """Stop jobs and daemons, these as an operator does."""
        for server, job in self._made:
            if server != self.own or "coordinator" in self.daemons:
                words = ["holdfast", "job", "delete", "--stop-first", "--force", "--server", server, job]
                self._wait(self._start({}, words))
        for name in sorted(self.daemons):
            self._end(name)
        if self._left_running:
            for process in leftovers(self.folder):
                process.kill()
            remove_groups(self.folder)

    def _end(self, name):
        pid = self.daemons.pop(name)
        os.kill(pid, signal.SIGTERM)
        assert self.warm.wait(pid) == 0, name

    def _noted(self, done: Done) -> Done:
        """Remember the job that a command has made, which it prints."""
        if made := re.fullmatch(r"([a-z0-9]{10})\n", done.out):
            self.made = made[1]
            self._made.append((self.server, made[1]))
        elif made := re.search(r'{"id": "([a-z0-9]{10})", "spec"', done.out):
            self._made.append((self.server, made[1]))
        return done

    def _start(self, variables, words):
        self._count += 1
        out, err = (self.folder / f"typed-{self._count}.{kind}" for kind in ("out", "err"))
        out.touch()
        err.touch()
        env = self.env
        if "--config" in words:  # which says all of it; the environment would win
            env = {name: value for name, value in env.items() if not name.startswith("HOLDFAST_")}
        return self.warm.start(words[1:], env | variables, self.folder, out, err), out, err

    def _wait(self, started) -> Done:
        pid, out, err = started
        code = self.warm.wait(pid)
        return Done(code, out.read_text(), err.read_text())

    def _leave_running(self, variables, words) -> Done:
        """Start a daemon in place of the one of its kind, and wait until it is at work."""
        self._left_running = True
        name = words[1]
        takes = {name, "gateway"} if "--http" in words else {name}
        for kind in takes & self.daemons.keys():
            self._end(kind)
        pid, out, err = self._start(variables, words)
        self.daemons[name] = pid
        until = time.monotonic() + PATIENCE_S
        while READY[name] not in err.read_text() + out.read_text():
            if (code := self.warm.code(pid)) is not None:
                del self.daemons[name]
                return Done(code, out.read_text(), err.read_text())
            assert time.monotonic() < until, err.read_text()
            time.sleep(0.03)
        if name == "coordinator":
            self.server = words[words.index("--listen") + 1] if "--listen" in words else self.own
        if "gateway" in takes:
            self.http = self.own_http
        return Done(0, out.read_text(), err.read_text())


def _plain(text):
    """Variables and words of a command that needs no shell; None: it does."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return None
    if any(set(word) <= set("();<>|&") for word in words) or "$" in text or "*" in text:
        return None
    variables = {}
    while words and re.match(r"\w+=", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    return (variables, words) if words[:1] == ["holdfast"] else None


def _daemon(words):
    return next((name for name in words[1:2] if name in READY and "--show-settings" not in words), None)


def missing(command: Command, done: Done, folder: Path) -> list[str]:
    """What a page says that a command prints, and it does not: lines in their order, but for numbers and ids."""
    said = re.sub(
        rf"\b{re.escape(socket.gethostname())}\b", "gpu-7", f"{done.err}{done.out}".replace(str(folder), "")
    )
    printed = iter([_shape(line) for line in said.splitlines()])
    return [line for line in command.shown if line and line != "…" and _shape(line) not in printed]


def _shape(line):
    line = re.sub(r"\(the rest: .*\)", "(the rest)", line)
    line = line.replace("from the beginning", "from step 0")  # a commit may be a moment later than the chaos
    line = re.sub(r"(jobs/)\w+", r"\1ID", line)
    line = re.sub(r"[▁-█]+", "▁", line)
    return " ".join(re.sub(r"\d[\d.]*", "0", line).split())
