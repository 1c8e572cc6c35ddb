"""`holdfast coordinator` and `holdfast agent`: how they begin, refuse and end."""

import signal
import sys

import pytest
from click.testing import CliRunner

import holdfast_agent.__main__
from holdfast.cli import cli
from holdfast.cli.exits import EXIT
from holdfast_agent.notices import NoticeFile, NoticeUrl
from tests.client import scripted

pytest_plugins = ["tests.client.cli_fixtures"]


async def test_a_coordinator_serves_until_it_is_told_to_end(start_command, holdfast, tmp_path):
    socket = f"unix:{tmp_path}/c.sock"
    command = await start_command("coordinator", "--listen", socket, "--state-dir", str(tmp_path / "c2"))
    while await command.error_line() != f"holdfast coordinator listens on {socket}\n":
        pass  # it logs, too
    assert (await holdfast("job", "list", "-o", "name", "--server", socket)).code == 0
    command.signal(signal.SIGTERM)
    assert (await command.ended()).code == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--listen", "0.0.0.0:0"], "can be reached from other machines"),
        (["--listen", "nonsense"], '"nonsense" is no address; write host:port'),
        (["--listen", "127.0.0.1:0", "--state-dir", "/proc/none"], "/proc/none"),
    ],
)
async def test_a_coordinator_that_cannot_be(holdfast, tmp_path, words, sentence):
    done = await holdfast("coordinator", *words)
    assert done.code == EXIT.FAILED
    assert sentence in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--store", "postgresql://me:hunter2@db/x"], "everyone on this machine can read a command line"),
        (["--store", "postgresql://me@db/x?password=hunter2"], "PGPASSFILE"),
        (["--store", "mysql://hunter2"], "write postgresql://USER@HOST:5432/DATABASE"),
        (["--store-file", "/nonexistent"], "/nonexistent: No such file"),
        (["--store", "postgresql://me@db/x", "--lease", "100ms"], "is shorter than a second"),
    ],
)
def test_a_database_that_cannot_be(words, sentence):
    done = CliRunner().invoke(cli, ["coordinator", *words])
    assert done.exit_code == EXIT.USAGE
    assert sentence in " ".join(done.output.split())
    assert "hunter2" not in done.output


def test_settings_that_are_shown_have_no_password():
    env = {"HOLDFAST_COORDINATOR_STORE": "postgresql://me:hunter2@db/x"}
    done = CliRunner().invoke(cli, ["coordinator", "--show-settings"], env=env)
    assert done.exit_code == 0
    assert "HOLDFAST_COORDINATOR_STORE" in done.output
    assert "hunter2" not in done.output


async def test_a_password_may_be_in_a_file_and_is_shown_to_nobody(start_command, tmp_path):
    """The database is not there: a coordinator waits for it."""
    (tmp_path / "url").write_text(f"postgresql://me:hunter2@/x?host={tmp_path}\n")
    words = ["--listen", f"unix:{tmp_path}/c.sock", "--store-file", f"{tmp_path}/url"]
    command = await start_command("coordinator", *words, "--state-dir", str(tmp_path / "c"))
    said = ""
    while "standing by" not in said:
        said += await command.error_line()
    assert "postgresql://me@/x: connection is bad" in said
    command.signal(signal.SIGTERM)
    done = await command.ended()
    assert done.code == 0
    assert "hunter2" not in said + done.err


async def test_one_coordinator_a_port(holdfast, house, tmp_path):
    done = await holdfast("coordinator", "--listen", house.target, "--state-dir", str(tmp_path / "c2"))
    assert done.code == EXIT.FAILED
    assert f"can't listen on {house.target}" in done.err


async def test_an_agent_joins_and_ends(start_command, client, tmp_path):
    words = ["--coordinator", client.target, "--name", "n7", "--slots", "3", "--label", "gpu=no"]
    command = await start_command("agent", *words, "--state-dir", str(tmp_path / "a"))
    while not (nodes := [node async for node in client.list_nodes()]):
        await command.error_line()  # it logs when it has joined
    assert (nodes[0].name, nodes[0].capacity.slots, dict(nodes[0].labels)) == ("n7", 3, {"gpu": "no"})
    command.signal(signal.SIGTERM)
    assert (await command.ended()).code == 0


@pytest.mark.parametrize("address", ["nohost", "10.0.0.1:http", ":7070"])
async def test_an_agent_of_no_address_does_not_begin(holdfast, tmp_path, address):
    done = await holdfast("agent", "--state-dir", str(tmp_path), "--coordinator", address)
    assert done.code == EXIT.USAGE
    assert f'"{address}" is no address; write host:port' in done.err


async def test_a_coordinator_that_would_lose_every_node_at_once_does_not_begin(holdfast, tmp_path):
    done = await holdfast("coordinator", "--state-dir", str(tmp_path), "--lost-after", "10ms")
    assert done.code == EXIT.USAGE
    assert '"10ms" is too short: an agent is heard from once a second; give 2s or more' in done.err


async def test_an_agent_whose_directory_cannot_be(holdfast):
    done = await holdfast("agent", "--state-dir", "/proc/none")
    assert done.code == EXIT.FAILED
    assert "/proc/none" in done.err
    assert "Traceback" not in done.err


def test_an_agent_finds_out_where_others_reach_it(monkeypatch, tmp_path):
    """Loopback would be right on one machine alone, and MASTER_ADDR of every gang."""
    started = []

    async def serve(config, **_):
        started.append(config)

    monkeypatch.setattr(holdfast_agent.__main__, "serve", serve)
    for given in ([], ["--address", "10.0.0.9"]):
        assert scripted.run("agent", "--state-dir", str(tmp_path), *given).exit_code == 0
    assert [config.address for config in started] == ["", "10.0.0.9"]


def test_an_agent_takes_what_its_operator_decides(monkeypatch, tmp_path):
    started = []

    async def serve(config, **given):
        started.append(config)

    monkeypatch.setattr(holdfast_agent.__main__, "serve", serve)
    words = "--cgroup off --limit-memory --stop-after-disconnect 90s --orphaned-after 2h".split()  # noqa: SIM905
    words.append("--workers-end-with-agent")
    for given in ([], words):
        assert scripted.run("agent", "--state-dir", str(tmp_path), *given).exit_code == 0
    decided = [(c.cgroup, c.limit_memory, c.stop_after_disconnect_s, c.orphaned_after_s) for c in started]
    assert decided == [("auto", False, 0, 0), ("off", True, 90, 7200)]
    assert [config.foreground for config in started] == [False, True]
    assert all(config.archive_logs for config in started)


def test_an_agent_that_cannot_be_so(tmp_path):
    wrong = scripted.run("agent", "--state-dir", str(tmp_path), "--orphaned-after", "soon")
    assert wrong.exit_code == EXIT.USAGE
    assert "'--orphaned-after': \"soon\" is no duration" in wrong.stderr
    wrong = scripted.run("agent", "--state-dir", str(tmp_path), "--cgroup", "/proc/none")
    assert wrong.exit_code == EXIT.FAILED
    assert "/proc/none is no control group" in wrong.stderr


def test_an_agent_is_told_where_notices_are(monkeypatch, tmp_path):
    started = []

    async def serve(config, **given):
        started.append((config.notices, given["drain_s"]))

    monkeypatch.setattr(holdfast_agent.__main__, "serve", serve)
    words = ["agent", "--state-dir", str(tmp_path), "--notice-deadline", "30s"]
    places = ["--notice-file", str(tmp_path / "n"), "--notice-url", "http://metadata/preempted"]
    headers = ["--notice-header", "Metadata-Flavor: Google"]
    assert scripted.run(*words, *places, *headers).exit_code == 0
    assert scripted.run(*words, "--drain-on-term").exit_code == 0
    file = NoticeFile(tmp_path / "n", 30)
    url = NoticeUrl("http://metadata/preempted", 30, {"Metadata-Flavor": "Google"})
    assert started == [((file, url), None), ((), 30)]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--notice-url", "file:///etc/passwd"], "file:///etc/passwd is no http:// or https:// address"),
        (["--notice-header", "Metadata"], '"Metadata" is not of the form NAME: VALUE'),
        (["--notice-deadline", "soon"], "is no duration; write e.g."),
    ],
)
def test_notices_that_can_not_be(tmp_path, words, sentence):
    done = scripted.run("agent", "--state-dir", str(tmp_path), *words)
    assert done.exit_code == EXIT.USAGE
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["coordinator"], "coordinator"),
        (["agent"], "agent"),
        (["gateway"], "gateway"),
        (["run", "--", "true"], "run"),
    ],
)
def test_where_an_extra_is_missing_a_sentence_says_which(monkeypatch, tmp_path, command, extra):
    for name in ("structlog", "holdfast_coordinator", "holdfast_agent", "holdfast_gateway"):
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "structlog", None)
    monkeypatch.chdir(tmp_path)
    done = scripted.run(*command)
    assert done.exit_code == EXIT.FAILED
    (sentence,) = done.stderr.splitlines()
    assert sentence.endswith(f"is not installed here (structlog): pip install 'holdfast[{extra}]'")
    assert list(tmp_path.iterdir()) == []
