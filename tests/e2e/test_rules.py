"""What is done about an exit, with real programs that end in their own ways."""

import json
import subprocess
import sys

import pytest

from holdfast.cli.exits import EXIT
from holdfast.v1 import job_pb2
from tests.e2e.fleet import HOLDFAST, PATIENCE_S

pytestmark = pytest.mark.e2e

PORTS = """
import os, pathlib, socket, sys, time
mine, folder = int(os.environ["MASTER_PORT"]), pathlib.Path(sys.argv[1])
attempt, rank = os.environ["HOLDFAST_ATTEMPT"], os.environ["RANK"]
for old in folder.glob("port-*"):
    if old.name == f"port-{attempt}":
        continue
    port = int(old.read_text())
    with socket.socket() as probe:
        if port == mine or probe.connect_ex(("127.0.0.1", port)) == 0:
            (folder / "wrong").write_text(f"{port} in attempt {attempt}")
if rank == "0":
    listening = socket.create_server(("127.0.0.1", mine))
    (folder / f"making-{attempt}").write_text(str(mine))
    (folder / f"making-{attempt}").rename(folder / f"port-{attempt}")
    if attempt == "4":
        sys.exit(0)
    time.sleep(1000)
else:
    while not (folder / f"port-{attempt}").exists():
        time.sleep(0.01)
    sys.exit(0 if attempt == "4" else 10 + int(attempt))
"""

PICKY = """
import os, sys
if "/node-a/" in os.environ["HOLDFAST_HEARTBEAT_FILE"]:
    sys.exit("CUDA error: uncorrectable ECC error encountered")
"""


def run(folder, *arguments):
    """`holdfast run`: its exit code, and the lines of its stderr."""
    done = subprocess.run(
        [HOLDFAST, "run", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()


def test_an_import_that_fails_ends_the_job_at_once(tmp_path):
    (tmp_path / "train.py").write_text("import foo\n")
    code, err = run(tmp_path, "-n", "2", "--", sys.executable, "train.py")
    assert code == EXIT.FAILED
    assert "exit code 1: ModuleNotFoundError: No module named 'foo'; the program can't start" in err[-1]
    assert "  restarts  0" in err


def test_a_program_that_is_not_there_ends_it_too(tmp_path):
    code, err = run(tmp_path, "--", sys.executable, "nowhere.py")
    assert code == EXIT.FAILED
    assert "can't open file" in err[-1]
    assert "  restarts  0" in err


def test_the_same_crash_three_times_ends_it(tmp_path):
    (tmp_path / "train.py").write_text(
        "import holdfast, os, signal\n"
        "run = holdfast.init()\n"
        "for _ in range(5):\n    run.step()\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    code, err = run(tmp_path, "--backoff", "0", "--", sys.executable, "train.py")
    assert code == EXIT.FAILED
    assert err[-1].endswith(
        "killed by SIGSEGV at step 5; it ended so 3 times in a row without progress (built-in rule no_progress)"
    )
    assert "  restarts      2" in err


async def test_a_node_that_a_rule_excludes_is_left(fleet):
    rules = [job_pb2.Rule(log="uncorrectable ECC", action=job_pb2.RULE_ACTION_EXCLUDE_NODE)]
    job_id = await fleet.submit_command([sys.executable, "-c", PICKY], 2, rules=rules)
    job = await fleet.until(job_id, lambda job: "excluded" in job.reason)
    waits = (
        "waits for room: no other node is ready; 1 node is excluded (node-a: rule 1 of the spec, exit code 1)"
    )
    assert job.reason == waits
    fleet.start_agent("node-b", slots=2)
    job = await fleet.succeeded(job_id)
    assert [worker.node for worker in job.workers] == ["node-b", "node-b"]
    assert len(await fleet.events(job_id, "NodeExcluded")) == 1
    tails = [e.evidence async for e in fleet.client.list_events(job_id) if e.kind == "WorkerExited"]
    assert "CUDA error: uncorrectable ECC error encountered" in tails[0]


async def test_every_attempt_meets_at_a_port_of_its_own_and_nobody_is_left_at_the_old(fleet, tmp_path):
    folder = tmp_path / "ports"
    folder.mkdir()
    await fleet.succeeded(await fleet.submit_command([sys.executable, "-c", PORTS, str(folder)], 2))
    assert not (folder / "wrong").exists(), (folder / "wrong").read_text()
    assert len({path.read_text() for path in folder.glob("port-*")}) == 4


def test_rules_that_cannot_be_are_refused_with_their_line(tmp_path):
    fleet_file = tmp_path / "job.yaml"
    fleet_file.write_text(f"command: {json.dumps(['true'])}\nrules:\n- action: fail\n  log: 'a('\n")
    socket = f"unix:{tmp_path}/c.sock"
    coordinator = subprocess.Popen(
        [HOLDFAST, "coordinator", "--listen", socket, "--state-dir", str(tmp_path / "c")],
        stderr=subprocess.PIPE,
    )
    try:
        while b"listens on" not in coordinator.stderr.readline():
            pass
        done = subprocess.run(
            [HOLDFAST, "job", "submit", "-f", str(fleet_file), "--server", socket],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    finally:
        coordinator.kill()
        coordinator.communicate()
    assert done.returncode == EXIT.USAGE
    assert f"{fleet_file}:4: rules.0.log: is no regular expression: missing )" in done.stderr
