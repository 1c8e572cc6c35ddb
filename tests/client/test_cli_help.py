"""Help is quick, and there for every command."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from holdfast import __version__
from holdfast.cli import cli
from tests.client.scripted import run

ROOT = Path(__file__).parents[2]
SLOW = ("grpc", "google.protobuf", "pydantic", "yaml", "rich", "sqlalchemy", "structlog", "asyncio", "numpy")


def commands(group=cli, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands())


def test_the_page_has_every_command():
    text = (ROOT / "docs/cli.md").read_text()
    assert (
        text.count("\n| `holdfast ") == sum(not isinstance(found, click.Group) for found in ALL.values()) > 20
    )


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_each_command_says_what_it_is_for(path):
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: cli {' '.join(path)}")
    assert ALL[path].get_short_help_str()


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_shows_examples(path):
    """Each on a line of its own."""
    lines = run(*path, "--help").stdout.splitlines()
    example = re.compile(rf"    .*\bholdfast {' '.join(path)}\b")
    assert any(example.match(line) for line in lines)


HELPS = [[], *([name] for name in dict.fromkeys(path[0] for path in ALL)), ["job", "list"], ["job", "submit"]]


def test_no_help_imports_anything_slow():
    """Each of these costs more than all of the command line itself; `--help` is to answer within 200 ms."""
    code = f"""
import os, sys
from holdfast.cli import main
for words in {HELPS!r}:
    if not (child := os.fork()):
        sys.argv = ["holdfast", *words, "--help"]
        try:
            main()
        finally:
            print([name for name in {SLOW!r} if name in sys.modules], *words, file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.splitlines() == [" ".join(["[]", *words]) for words in HELPS]
    assert "\n    holdfast run -n 4 -- python train.py\n" in done.stdout


def test_version():
    assert run("--version").stdout == f"holdfast, version {__version__}\n"


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        (["coordinator"], "sqlalchemy", "coordinator"),
        (["agent"], "structlog", "agent"),
        (["run", "--", "true"], "sqlalchemy", "run"),
    ],
)
def test_an_extra_that_is_not_installed(command, missing, extra, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; from holdfast.cli import main; main()"
    arguments = [sys.executable, "-c", code, *command]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert done.stderr.endswith(f"pip install 'holdfast[{extra}]'\n")
    assert len(done.stderr.splitlines()) == 1
