# ruff: noqa: F401, F811  fixtures are imported by name
"""Contexts: which coordinator is meant, the file that they are in, and `holdfast context`."""

import json
import multiprocessing
import os

import pytest

from holdfast import contexts
from holdfast.cli.exits import EXIT
from holdfast.config_files import ConfigError
from holdfast.contexts import Config, Server, read_config, resolve
from tests.client.scripted import coordinator, make_job, run

GOOD = "current: lab\ncontexts:\n  lab:\n    server: 10.0.0.1:7070\n  here: {server: 'unix:/run/c.sock'}\n"


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The config file of a user; there is none yet."""
    monkeypatch.delenv("HOLDFAST_SERVER", raising=False)
    monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "holdfast" / "config.yaml"))
    return tmp_path / "holdfast" / "config.yaml"


@pytest.fixture
def good(path):
    path.parent.mkdir()
    path.write_text(GOOD)
    return path


def test_where_the_file_lies():
    assert str(contexts.config_path({"HOME": "/h"})) == "/h/.config/holdfast/config.yaml"
    assert str(contexts.config_path({"HOME": "/h", "XDG_CONFIG_HOME": "/x"})) == "/x/holdfast/config.yaml"
    assert str(contexts.config_path({"XDG_CONFIG_HOME": "/x", "HOLDFAST_CONFIG": "/c"})) == "/c"


def test_who_wins(good):
    env = {"HOLDFAST_CONFIG": str(good), "HOLDFAST_SERVER": "s:1", "HOLDFAST_CONTEXT": "here"}
    assert resolve("f:1", env) == Server("f:1", "of --server")
    assert resolve(None, env) == Server("s:1", "of HOLDFAST_SERVER")
    del env["HOLDFAST_SERVER"]
    assert resolve(None, env) == Server("unix:/run/c.sock", 'context "here" of HOLDFAST_CONTEXT')
    del env["HOLDFAST_CONTEXT"]
    assert resolve(None, env) == Server("10.0.0.1:7070", f'context "lab" of {good}')
    good.write_text("contexts: {}\n")
    assert resolve(None, env) == Server("127.0.0.1:7070", "the default")
    good.unlink()
    assert resolve(None, env) == Server("127.0.0.1:7070", "the default")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("curent: lab\n", ':1: unknown field "curent"; there are current and contexts'),
        ("contexts:\n  lab:\n    sever: a:1\n", ':3: contexts.lab: unknown field "sever"; there is server'),
        ("contexts:\n  lab:\n    server: x\n", ':3: contexts.lab.server: "x" is no address; write host:port'),
        ("contexts:\n  lab:\n    server: a:70700\n", ':3: contexts.lab.server: "a:70700" is no address'),
        (
            "contexts:\n  lab:\n    server: 10.0.0.1:7070,b:7070\n",
            ':3: contexts.lab.server: "b:7070" is no IP address with a port',
        ),
        (
            "contexts:\n  lab:\n    server: 10.0.0.1:1,10.0.0.2\n",
            ':3: contexts.lab.server: "10.0.0.2" is no IP address with a port',
        ),
        ("contexts:\n  lab: {}\n", ":2: contexts.lab: has no server; add e.g."),
        ("contexts:\n  a b: {server: 'a:1'}\n", ':2: "a b" is no name of a context'),
        ("contexts: [lab]\n", ":1: contexts: is not of the form NAME: VALUE"),
        ("current: lab\n", ':1: current: there is no context "lab" below contexts'),
        ("current: [lab]\n", ":1: current: is no text"),
        ("contexts:\ncontexts:\n", ":1: contexts: is not of the form"),
        ("current: ''\ncurrent: ''\n", ':2: "current" stands in line 1 already'),
        ("agent:\n", ':1: unknown field "agent"; a daemon\'s settings are named by its --config'),
        ("a: [\n", ":2: is no YAML: "),
        ("- lab\n", ":1: the file: is not of the form NAME: VALUE"),
    ],
)
def test_what_cannot_be_is_told_with_its_line(good, text, sentence):
    good.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_config(good)
    assert str(error.value).startswith(f"{good}{sentence}")


def test_the_whole_way(path):
    assert run("context", "list", "-o", "json").stdout == '{\n  "contexts": []\n}\n'
    assert run("context", "set", "lab", "--server", "10.0.0.1:7070").exit_code == EXIT.OK
    assert run("context", "get", "-o", "json").stdout.count("the default") == 1
    assert run("context", "set", "here", "--server", "unix:/c", "--use").exit_code == EXIT.OK
    assert run("context", "list").stdout == (
        "CURRENT  NAME  SERVER\n         lab   10.0.0.1:7070\n*        here  unix:/c\n"
    )
    assert run("context", "use", "lab").exit_code == EXIT.OK
    assert run("context", "list", "-o", "name").stdout == "lab\nhere\n"
    assert json.loads(run("context", "get", "-o", "json").stdout) == {
        "server": "10.0.0.1:7070",
        "source": f'context "lab" of {path}',
    }
    assert run("context", "get", "here", "-o", "name").stdout == "unix:/c\n"
    assert run("context", "delete", "lab").stderr == "context lab deleted; none is the current one now\n"
    assert read_config(path) == Config({"here": "unix:/c"})
    assert os.listdir(path.parent) == ["config.yaml"]


@pytest.mark.parametrize("verb", ["get", "use", "delete"])
def test_a_context_that_is_not_there(good, verb):
    done = run("context", verb, "nope")
    assert done.exit_code == EXIT.NOT_FOUND
    assert done.stderr == (
        f'Error: there is no context "nope": {good} has lab, here; '
        "add it with `holdfast context set nope --server HOST:PORT`\n"
    )
    assert good.read_text() == GOOD


@pytest.mark.parametrize("words", [["a b", "--server", "a:1"], ["a", "--server", "a"], ["a"]])
def test_a_context_that_cannot_be(path, words):
    assert run("context", "set", *words).exit_code == EXIT.USAGE
    assert not path.exists()


def test_commands_talk_to_the_current_context(coordinator, path):
    coordinator.add_job(make_job())
    run("context", "set", "fake", "--server", coordinator.target, "--use")
    assert run("job", "list", "-o", "name").stdout == "k7m2p9xq4w\n"


def test_errors_say_where_an_address_is_from(path, tmp_path):
    gone = f"unix:{tmp_path}/gone"
    run("context", "set", "gone", "--server", gone, "--use")
    done = run("job", "list")
    assert done.exit_code == EXIT.UNREACHABLE
    assert done.stderr.startswith(
        f'Error: the coordinator at {gone} (context "gone" of {path}) is not reachable; start one with '
    )


def test_a_file_that_cannot_be_read_ends_a_command_with_its_line(good):
    good.write_text("contexts: 1\n")
    done = run("job", "list")
    assert (done.exit_code, done.stdout) == (EXIT.USAGE, "")
    assert done.stderr == f"Error: {good}:1: contexts: is not of the form NAME: VALUE\n"


def test_a_file_that_cannot_be_written_stays_as_it_was(good, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(contexts.os, "fsync", full)
    done = run("context", "use", "here")
    assert done.exit_code == EXIT.USAGE
    assert done.stderr == f"Error: {good}: can't be written: No space left on device\n"
    assert good.read_text() == GOOD
    assert os.listdir(good.parent) == ["config.yaml"]


def test_a_link_to_the_file_stays_one(path, tmp_path):
    path.parent.mkdir()
    path.symlink_to(tmp_path / "dotfiles.yaml")
    run("context", "set", "lab", "--server", "a:1")
    assert path.is_symlink()
    assert read_config(tmp_path / "dotfiles.yaml").servers == {"lab": "a:1"}


def add(path, name):
    with contexts.changing(path) as config:
        config.servers[name] = "a:1"


def test_who_changes_it_at_the_same_time_loses_nothing(path):
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=add, args=(path, f"c{n}")) for n in range(8)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert sorted(read_config(path).servers) == [f"c{n}" for n in range(8)]
