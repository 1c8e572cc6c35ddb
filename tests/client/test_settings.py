"""Settings of the daemons: by options, by the environment, by a file, in this order."""

import os

import pytest

import holdfast_agent.__main__
from holdfast.cli import cli
from holdfast.cli.exits import EXIT
from holdfast.cli.settings import DAEMONS, key_of
from holdfast_agent.notices import NoticeUrl
from tests.client.scripted import run

FILE = """\
coordinator:
  listen: 10.0.0.1:7070
  lost_after: 20s
agent:
  slots: 8
  label: [rack=a, "why=for tests"]
  limit_memory: true
  drain_on_term: off
  notice_header: ["Authorization: Bearer s3cret"]
gateway:
  server: file:1
"""


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in os.environ:
        if name.startswith("HOLDFAST_") and name != "HOLDFAST_CONFIG":
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "holdfast.yaml"
    path.write_text(FILE)
    return path


def shown(daemon, *words):
    """What the settings come to, and where each is from."""
    done = run(daemon, *words, "--show-settings")
    assert (done.exit_code, done.stderr) == (0, "")
    head, *lines = done.stdout.splitlines()
    at, origin = head.index("VALUE"), head.index("FROM")
    return {line[:at].strip(): (line[at:origin].strip(), line[origin:]) for line in lines}


def test_an_option_wins_over_the_environment_and_that_over_the_file(file, monkeypatch):
    found = shown("coordinator", "--config", str(file))
    assert found["listen"] == ("10.0.0.1:7070", f"{file}:2")
    assert found["lost_after"] == ("20s", f"{file}:3")
    assert found["metrics"] == ("-", "default")
    monkeypatch.setenv("HOLDFAST_COORDINATOR_LOST_AFTER", "30s")
    assert shown("coordinator", "--config", str(file))["lost_after"] == (
        "30s",
        "HOLDFAST_COORDINATOR_LOST_AFTER",
    )
    found = shown("coordinator", "--config", str(file), "--lost-after", "40s")
    assert found["lost_after"] == ("40s", "--lost-after")


def test_lists_and_truths(file, monkeypatch):
    monkeypatch.setenv("HOLDFAST_AGENT_CONFIG", str(file))
    found = shown("agent")
    assert found["label"] == ("rack=a 'why=for tests'", f"{file}:6")
    assert found["limit_memory"] == ("true", f"{file}:7")
    assert found["drain_on_term"] == ("false", f"{file}:8")
    monkeypatch.setenv("HOLDFAST_AGENT_LABEL", "a=b 'c=d e'")
    monkeypatch.setenv("HOLDFAST_AGENT_DRAIN_ON_TERM", "1")
    monkeypatch.setenv("HOLDFAST_AGENT_NOTICE_FILE", "/a:b '/c d'")
    found = shown("agent")
    assert found["label"] == ("a=b 'c=d e'", "HOLDFAST_AGENT_LABEL")
    assert found["drain_on_term"] == ("true", "HOLDFAST_AGENT_DRAIN_ON_TERM")
    assert found["notice_file"] == ("/a:b '/c d'", "HOLDFAST_AGENT_NOTICE_FILE")
    assert found["notice_header"] == ("(not shown)", f"{file}:9")


def test_settings_reach_the_daemon(file, monkeypatch, tmp_path):
    started = []

    async def serve(config, **given):
        started.append((config, given))

    monkeypatch.setattr(holdfast_agent.__main__, "serve", serve)
    monkeypatch.setenv("HOLDFAST_AGENT_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("HOLDFAST_AGENT_NOTICE_URL", "http://metadata/preempted")
    assert run("agent", "--config", str(file), "--name", "n7").exit_code == 0
    ((config, given),) = started
    assert (config.name, config.slots, config.limit_memory) == ("n7", 8, True)
    assert (config.state_dir, config.labels) == (tmp_path, {"rack": "a", "why": "for tests"})
    assert config.notices == (
        NoticeUrl("http://metadata/preempted", 120, {"Authorization": "Bearer s3cret"}),
    )
    assert given["drain_s"] is None


@pytest.mark.parametrize(("daemon", "key"), [("agent", "coordinator"), ("gateway", "server")])
def test_which_coordinator(file, monkeypatch, daemon, key):
    assert shown(daemon)[key] == ("127.0.0.1:7070", "default")
    monkeypatch.setenv("HOLDFAST_SERVER", "all:1")
    assert shown(daemon, "--config", str(file))[key] == ("all:1", "HOLDFAST_SERVER")
    own = f"HOLDFAST_{daemon}_{key}".upper()
    monkeypatch.setenv(own, "own:1")
    assert shown(daemon)[key] == ("own:1", own)


def test_a_gateway_follows_the_context_where_nothing_else_says_it(tmp_path, monkeypatch, file):
    monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "contexts.yaml"))
    assert run("context", "set", "lab", "--server", "lab:1", "--use").exit_code == 0
    assert shown("gateway")["server"] == ("lab:1", "default")
    assert shown("gateway", "--config", str(file))["server"] == ("file:1", f"{file}:11")


def test_every_setting_can_be_in_a_file_and_in_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "all.yaml"
    for daemon in DAEMONS:
        options = list(cli.get_command(None, daemon).settings())
        values = {key_of(option): option for option in options}
        assert len(values) == len(options) > 4
        text = {
            "slots": "3",
            "coordinator": "a:1",
            "label": "a=b",
            "notice_header": "a: b",
            "notice_url": "http://a",
        }
        lines = [f"{daemon}:"]
        for key, option in values.items():
            value = "true" if option.is_flag else text.get(key, "7s")
            monkeypatch.setenv(f"HOLDFAST_{daemon}_{key}".upper(), f"'{value}'" if option.multiple else value)
            lines.append(f"  {key}: {[value] if option.multiple else value}")
        path.write_text("\n".join(lines) + "\n")
        of_environment = shown(daemon, "--config", str(path))
        for key in values:
            monkeypatch.delenv(f"HOLDFAST_{daemon}_{key}".upper())
        of_file = shown(daemon, "--config", str(path))
        assert [value for value, _ in of_file.values()] == [value for value, _ in of_environment.values()]
        assert {where.startswith("HOLDFAST_") for _, where in of_environment.values()} == {True}
        assert [where for _, where in of_file.values()] == [f"{path}:{n + 2}" for n in range(len(values))]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("agent:\n  slot: 8\n", ':2: agent: unknown key "slot"; did you mean "slots"?'),
        ("agent:\n  qqq: 8\n", ':2: agent: unknown key "qqq"; there are coordinator, name, state_dir, '),
        ("agent:\n  config: 8\n", ':2: agent: unknown key "config"; '),
        ("agents:\n", ':1: unknown section "agents"; there are coordinator, agent, gateway'),
        ("contexts:\n", ':1: unknown section "contexts"; a file of contexts is named by HOLDFAST_CONFIG, '),
        ("agent:\n  slots: many\n", ":2: agent.slots: 'many' is no whole number; write e.g. 4"),
        ("agent:\n  slots: -3\n", ":2: agent.slots: -3 is not in the range x>=0."),
        ("agent:\n  slots:\n", ":2: agent.slots: has no value; write one, or remove the line"),
        ("agent:\n  slots: [1]\n", ":2: agent.slots: is no text"),
        ("agent:\n  slots: 1\n  slots: 2\n", ':3: "slots" stands in line 2 already'),
        ("agent:\n  label: a=b\n", ":2: agent.label: is no list; write e.g. label: [A, B]"),
        ("agent:\n  label: [a]\n", ':2: agent.label: "a" is not of the form NAME=VALUE'),
        ("agent:\n  limit_memory: 1\n", ':2: agent.limit_memory: "1" is neither true nor false'),
        ("agent:\n  notice_deadline: 25\n", ':2: agent.notice_deadline: "25" is no duration; write e.g.'),
        ("agent: 1\n", ":1: agent: is not of the form NAME: VALUE"),
        ("a: [\n", ":2: is no YAML: "),
    ],
)
def test_a_file_that_cannot_be(file, text, sentence):
    file.write_text(text)
    done = run("agent", "--config", str(file), "--show-settings")
    assert (done.exit_code, done.stdout) == (EXIT.USAGE, "")
    assert done.stderr.startswith(f"Error: {file}{sentence}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("SLOTS", "many", "HOLDFAST_AGENT_SLOTS: 'many' is no whole number; write e.g. 4"),
        ("LIMIT_MEMORY", "maybe", "HOLDFAST_AGENT_LIMIT_MEMORY: is neither true nor false"),
        ("LABEL", "rack", 'HOLDFAST_AGENT_LABEL: "rack" is not of the form NAME=VALUE'),
        ("LABEL", "'rack=a", "HOLDFAST_AGENT_LABEL: No closing quotation; quote values as for a shell"),
        ("ORPHANED_AFTER", "soon", 'HOLDFAST_AGENT_ORPHANED_AFTER: "soon" is no duration'),
        ("CONFIG", "/none/there", "/none/there: is not there; write it, or leave --config away"),
        ("SLOT", "8", "HOLDFAST_AGENT_SLOT is no setting; did you mean HOLDFAST_AGENT_SLOTS?"),
    ],
)
def test_an_environment_that_cannot_be(monkeypatch, variable, value, sentence):
    monkeypatch.setenv(f"HOLDFAST_AGENT_{variable}", value)
    done = run("agent", "--show-settings")
    assert (done.exit_code, done.stdout) == (EXIT.USAGE, "")
    assert done.stderr.startswith(f"Error: {sentence}")


def test_what_kubernetes_sets_is_no_slip(monkeypatch):
    for end in ("PORT", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8080_TCP_ADDR"):
        monkeypatch.setenv(f"HOLDFAST_GATEWAY_{end}", "10.0.0.1")
    assert shown("gateway")["listen"] == ("127.0.0.1:8080", "default")
