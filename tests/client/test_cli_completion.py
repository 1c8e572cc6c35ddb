# ruff: noqa: F401, F811  fixtures are imported by name
"""What Tab gives: in this process, and in the shells that are on this machine."""

import os
import subprocess

import pytest
from click.shell_completion import ShellComplete

from holdfast.cli import cli
from holdfast.v1 import job_pb2, node_pb2
from tests.client.scripted import coordinator, holdfast, make_job, run
from tests.needs import need, search_path

JOBS = [
    make_job("k7aaaaaaaa"),
    make_job("k7bbbbbbbb", job_pb2.JOB_STATE_FAILED),
    make_job("m2cccccccc"),
]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A machine that is slow now loses no completions."""
    monkeypatch.setenv("HOLDFAST_COMPLETION_TIMEOUT", "60s")


@pytest.fixture
def full(coordinator, holdfast):
    for job in JOBS:
        coordinator.add_job(job)
    coordinator.nodes = [
        node_pb2.Node(name="gpu-1"),
        node_pb2.Node(name="gpu-2", state=node_pb2.NODE_STATE_LOST),
        node_pb2.Node(name="cpu-1"),
    ]
    coordinator.checkpoints = [job_pb2.Checkpoint(step=step) for step in (300, 200, 100)]
    return coordinator


def tab(*words):
    """What the words may go on with; the last one is not finished."""
    shell = ShellComplete(cli, {}, "holdfast", "_HOLDFAST_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["co"], ["coordinator", "context", "completion"]),
        (["job", "su"], ["submit", "summary"]),
        (["job", "get", "--out"], ["--output"]),
        (["job", "get", "-o", "j"], ["json"]),
        (["job", "get", ""], ["k7aaaaaaaa", "k7bbbbbbbb", "m2cccccccc"]),
        (["job", "why", "k7"], ["k7aaaaaaaa", "k7bbbbbbbb"]),
        (["job", "stop", "k7"], ["k7aaaaaaaa"]),
        (["events", "m"], ["m2cccccccc"]),
        (["job", "logs", "k7aaaaaaaa", "--rank", ""], ["0", "1"]),
        (["job", "logs", "k7aaaaaaaa", "--rank", "0,"], ["0,0", "0,1"]),
        (["job", "logs", "--rank", ""], []),
        (["checkpoint", "get", "k7aaaaaaaa", "3"], ["300"]),
        (["checkpoint", "verify", "k7aaaaaaaa", "--step", ""], ["300", "200", "100"]),
        (["node", "drain", "gpu"], ["gpu-1", "gpu-2"]),
        (["node", "forget", "gpu"], ["gpu-2"]),
    ],
    ids=" ".join,
)
def test_what_a_line_may_go_on_with(full, words, expected):
    assert tab(*words) == expected


def test_contexts(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "c.yaml"))
    for name in ("lab", "lake", "prod"):
        run("context", "set", name, "--server", "a:1")
    assert tab("context", "use", "la") == ["lab", "lake"]
    (tmp_path / "c.yaml").write_text("[")
    assert tab("context", "use", "la") == []


def test_the_server_of_the_line_is_asked(full, monkeypatch):
    target = full.target
    monkeypatch.setenv("HOLDFAST_SERVER", "unix:/nobody")
    assert tab("job", "get", "m") == []
    assert tab("job", "get", "--server", target, "m") == ["m2cccccccc"]


def test_a_coordinator_that_does_not_answer_is_not_waited_for(full, monkeypatch, capfd):
    monkeypatch.setenv("HOLDFAST_COMPLETION_TIMEOUT", "50ms")
    full.hold.clear()
    full.silent.add("ListJobs")
    assert tab("job", "get", "") == []
    assert capfd.readouterr() == ("", "")


def test_nothing_is_said_when_something_is_wrong(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("HOLDFAST_SERVER", raising=False)
    (tmp_path / "c.yaml").write_text("[")
    monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "c.yaml"))
    assert tab("job", "get", "") == []
    assert capfd.readouterr() == ("", "")


def in_shell(name, script, **env):
    """Run a script in a real shell, which finds holdfast and this coordinator."""
    shell = "bash" if name == "bash" else need(name)
    flag = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[name]
    done = subprocess.run(
        [shell, flag, "-c", script],
        env=os.environ | {"PATH": search_path(), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


BASH = """
eval "$(holdfast completion bash)"
tab() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _holdfast_completion holdfast
    echo "${COMPREPLY[@]}"
}
tab holdfast job get k
tab holdfast node cordon g
complete -p holdfast | grep -c _holdfast_completion
"""

# What is between the shell and its menu: the words that the function would offer.
ZSH = """
autoload -U compinit && compinit -u -D
eval "$(holdfast completion zsh)"
_describe() { local -a given=("${(@P)3}"); print -rl -- "${(@)given%%:*}" }
words=(holdfast job get k); CURRENT=4
_holdfast_completion
words=(holdfast node cordon g)
_holdfast_completion
print -r -- ${+_comps[holdfast]}
"""

FISH = """
holdfast completion fish | source
complete --do-complete "holdfast job get k" | string replace -r "\\t.*" ""
complete --do-complete "holdfast node cordon g" | string replace -r "\\t.*" ""
complete --command holdfast | grep -c _holdfast_completion
"""


@pytest.mark.parametrize(("shell", "script"), [("bash", BASH), ("zsh", ZSH), ("fish", FISH)])
def test_in_a_real_shell(full, tmp_path, shell, script):
    offered = in_shell(shell, script, HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
    assert offered == ["k7aaaaaaaa", "k7bbbbbbbb", "gpu-1", "gpu-2", "1"]
