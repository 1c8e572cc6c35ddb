"""Every command in the documents is run: here, as its page says, or where tests/deploy/elsewhere.py says."""

import os
import re
import shlex
import signal
import time

import click
import pytest

from tests.deploy import pages
from tests.deploy.elsewhere import COVERED, EXEMPT, exemption
from tests.deploy.pages import PAGES, ROOT, SHELL, commands, parse
from tests.deploy.reader import Reader, missing
from tests.deploy.warm import PATIENCE_S, Warm

pytestmark = pytest.mark.e2e
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TRAINED = "holdfast job submit -n 4 --checkpoint-dir /checkpoints --backoff 10ms --preload numpy,holdfast"
LIVE = (
    "holdfast job submit -n 2 --checkpoint-dir /checkpoints -- python3 examples/plain_worker.py 1000000 0.1"
)
TRAIN = """
import os, signal, sys
import numpy as np
import holdfast

run = holdfast.init()
data = run.dataset(1024, batch_size=64, seed=0, epochs=4)
state = run.restore(default={"w": np.zeros(1024)})
for batch in data:
    state["w"][batch] += 1
    step = run.step(loss=1 / state["w"].sum())
    run.checkpoint(state, every=10)
    print(f"loss={1 / state['w'].sum():.6f}", flush=True)
    if (run.rank, run.attempt, step) == (3, 1, 30):
        os.kill(os.getpid(), signal.SIGKILL)
run.checkpoint(state, wait=True)
"""
"""The program of docs/checkpoints.md, but that it prints, and that a rank dies."""
HANGING = """
command: [python, tests/e2e/hanging.py, "1000000", lock]
world_size: 2
checkpoint_uri: {}/checkpoints
hang: {{limits: {{step: 1s}}}}
"""


@pytest.fixture(scope="module")
def warm():
    warm = Warm()
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def fleet(warm, tmp_path_factory):
    """Coordinator, gateway, two nodes, and a job that has trained, one of whose ranks died on the way."""
    fleet = Reader(warm, tmp_path_factory.mktemp("fleet"))
    other = Reader(warm, tmp_path_factory.mktemp("gpu-7"), fleet)
    try:
        typed(fleet, "holdfast coordinator --lost-after 100s")
        typed(fleet, "holdfast gateway --python true")  # README's trains the digits, and that is enough
        typed(fleet, "holdfast agent --name gpu-1 --slots 4")
        typed(other, "holdfast agent --name gpu-7 --slots 4")
        (fleet.folder / "train.py").write_text(TRAIN)
        submit(
            fleet, "holdfast job submit -n 4 --checkpoint-dir /checkpoints --backoff 10ms -- python train.py"
        )
        typed(fleet, "holdfast job watch ID")
        yield fleet
    finally:
        other.close()
        fleet.close()


def typed(reader, text):
    """Type a command that has to work."""
    done = reader.type(text)
    assert done.code == 0, (text, done)


def submit(reader, text):
    """Make a job the one that the page is about."""
    typed(reader, text)
    reader.job = reader.made


def wait_for(condition):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def block(name, language, part):
    """The first block of a page that has this in it."""
    every = re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    return next(text for text in every if part in text)


# What pages suppose.


def a_live_job(reader):
    submit(reader, LIVE)
    reader.until("holdfast job summary ID", r"committed step +[1-9]")


def a_run_that_was_killed(reader):
    """All of it, when every rank has a checkpoint."""
    pid = reader.start("holdfast run -n 4 --restart-scope rank -- python examples/digits.py")
    wait_for(lambda: len(list(reader.folder.glob(".holdfast/runs/digits/checkpoints/**/LATEST"))) == 4)
    os.kill(pid, signal.SIGKILL)
    assert reader.end(pid) == -signal.SIGKILL


def the_job_file(reader):
    (reader.folder / "job.yaml").write_text(reader.filled(block("docs/quickstart.md", "yaml", "digits.py")))


def the_program(reader):
    (reader.folder / "train.py").write_text(block("docs/checkpoints.md", "python", "run.dataset"))


def the_settings_file(reader):
    (reader.root / "etc/holdfast/holdfast.yaml").write_text(
        reader.filled(block("docs/settings.md", "yaml", "label"))
    )


def a_fleet_to_operate(reader):
    """Whose coordinator is where the page has it."""
    typed(reader, "holdfast coordinator --lost-after 100s --state-dir /var/lib/holdfast/coordinator")
    typed(reader, "holdfast agent --name gpu-1 --slots 4 --state-dir /data/agent")
    reader.node = "gpu-1"
    a_live_job(reader)


def a_job_that_was_stopped(reader):
    reader.until("holdfast job get ID -o json", "JOB_STATE_STOPPED")


def a_coordinator_whose_disk_is_gone(reader):
    reader.kill("coordinator")
    (reader.root / "var/lib/holdfast/coordinator").rename(reader.root / "aside")


def a_job_that_hangs(reader):
    (reader.folder / "hanging.yaml").write_text(HANGING.format(reader.root))
    submit(reader, "holdfast job submit -f hanging.yaml")
    reader.until("holdfast events ID", "WorkerHung")


def a_node_that_is_lost(reader):
    """That of a pod, whose workers end with it, so that it is known at once."""
    with_it = Reader(reader.warm, reader.folder / "gpu-7", reader)
    typed(with_it, "holdfast agent --name gpu-7 --workers-end-with-agent")
    with_it.kill("agent")
    with_it.close()
    reader.until("holdfast node get gpu-7", "lost")


SUPPOSED = {
    ("docs/checkpoints.md", ""): the_program,
    ("docs/migrating-from-torchrun.md", "holdfast job stop JOB --wait"): a_live_job,
    ("docs/operations.md", ""): a_fleet_to_operate,
    (
        "docs/operations.md",
        "holdfast backup restore /backups/holdfast-monday.db",
    ): a_coordinator_whose_disk_is_gone,
    ("docs/operations.md", "holdfast job get JOB -o wide"): a_job_that_hangs,
    ("docs/operations.md", "holdfast node forget gpu-7"): a_node_that_is_lost,
    ("docs/quickstart.md", ""): the_job_file,
    ("docs/quickstart.md", "holdfast run --resume"): a_run_that_was_killed,
    ("docs/settings.md", ""): the_settings_file,
    ("docs/stopping.md", ""): a_live_job,
    ("docs/stopping.md", "holdfast job restart ID"): a_job_that_was_stopped,
}
"""What is made so at the beginning of a page, or before the first that begins like this in it."""
OF_ITS_OWN = {"docs/operations.md"}
"""Pages that are not about a fleet that others use, too."""
OF_ITS_JOB = {"README.md", "docs/quickstart.md"}
"""Pages whose ID is that of the job that they submit; with others it is that of one that has trained."""
INSTEAD = {("docs/quickstart.md", "holdfast run -n 4 --restart-scope rank -- python examples/digits.py")}
"""What is typed by what the page supposes later on."""
EXPECTED = {
    "holdfast doctor": {0, 1},
    "holdfast doctor --state-dir DIR": {0, 1},
    "holdfast node forget NODE": {1},
}
"""Other exit codes than 0: of a machine where something would keep holdfast from working, of a node that is there."""


def mentioned(text):
    """Whether prose speaks of a command without what it needs. What there is of it is one all the same."""
    words = shlex.split(text)[1:]
    if words[0] == "--version" or words[-1] == "--help":
        return False
    try:
        parse(words)
    except (click.MissingParameter, click.BadOptionUsage):
        return True
    bare = len(words) == 1 and words[0] in ("coordinator", "agent", "gateway")
    without_program = (words[0] == "run" or words[:2] == ["job", "submit"]) and not {"--", "-f"} & set(words)
    return bare or without_program or "…" in text


def follow(reader, found):
    """Do what a page says, from its beginning to its end. Returns what is not as it says."""
    wrong, supposed = [], dict(SUPPOSED)
    for command in found:
        if (command.page, command.language) in COVERED or (command.page, command.text) in INSTEAD:
            continue
        if exempt := exemption(command):
            exempt.check(command)
            continue
        if command.language == "prose" and mentioned(reader.filled(command.text)):
            continue
        for page, start in tuple(supposed):
            if page == command.page and start and command.text.startswith(start):
                supposed.pop((page, start))(reader)
        done = reader.try_out(command.text) if command.language == "prose" else reader.type(command.text)
        if command.page in OF_ITS_JOB and reader.made:
            reader.job = reader.made
        if done.code not in EXPECTED.get(re.sub(r"\s+#.*", "", command.text), {0}):
            wrong.append(f"{command}: {done}")
        wrong += [f"{command}: `{line}` is not in {done}" for line in missing(command, done, reader.root)]
    return wrong


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_says_to_type(name, warm, fleet, tmp_path, monkeypatch):
    found = commands(ROOT / name)
    if all(map(exemption, found)):
        follow(None, found)
        return
    reader = Reader(warm, tmp_path / "checkout", None if name in OF_ITS_OWN else fleet)
    monkeypatch.chdir(reader.folder)
    try:
        SUPPOSED.get((name, ""), lambda _: None)(reader)
        assert follow(reader, found) == []
    finally:
        reader.close()


def test_no_line_of_a_block_is_left_out():
    """Counted in another way: lines between fences, but for comments."""
    counted = found = 0
    for page in PAGES:
        language = None
        for line in page.read_text().splitlines():
            if fence := re.match(r" *```(\w*)", line):
                language = fence[1] if language is None else None
            elif language in SHELL:
                counted += bool(line.split("#")[0].strip())
            elif language == "console":
                counted += line.startswith("$ ")
        found += sum(
            command.text.count("\n") + 1 for command in commands(page) if command.language != "prose"
        )
    assert found == counted > 150


PLANTED = """
# A page

Type `holdfast job list`, or
`holdfast  node
list`; a `--flag` is none, nor is `holdfast` alone.

```sh
holdfast job frobnicate              # no such command
one=1 holdfast job list \\
  -o json
for i in 1 2; do
  true
done
```

   ```console
   $ holdfast job list -o name
   nothing
   $ false
   ```
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Reads the commands of a page that is not one of ours."""
    monkeypatch.setattr(pages, "ROOT", tmp_path)

    def plant(text):
        (tmp_path / "page.md").write_text(text)
        return commands(tmp_path / "page.md")

    return plant


def test_what_is_planted_is_found(planted):
    found = planted(PLANTED)
    assert [(command.language, command.text.split("\n")[0]) for command in found] == [
        ("prose", "holdfast job list"),
        ("prose", "holdfast node list"),
        ("sh", "holdfast job frobnicate              # no such command"),
        ("sh", "one=1 holdfast job list \\"),
        ("sh", "for i in 1 2; do"),
        ("console", "holdfast job list -o name"),
        ("console", "false"),
    ]


def test_what_is_wrong_is_told(planted, warm, fleet, tmp_path):
    reader = Reader(warm, tmp_path / "checkout", fleet)
    wrong = follow(reader, planted(PLANTED))
    reader.close()
    assert [sentence.split(":")[1].split("  ")[0] for sentence in wrong] == [
        " holdfast job frobnicate",
        " holdfast job list -o name",
        " false",
    ]
    assert "No such command 'frobnicate'" in wrong[0]
    assert "`nothing` is not in" in wrong[1]


@pytest.mark.parametrize(
    "text",
    [
        "```\nholdfast job list\n```\n",
        "```text\nholdfast job list\n```\n",
        "```console\nholdfast job list\n```\n",
        "```fortran\nend\n```\n",
        "```sh\nholdfast job list\n",
        "```sh\necho 'not closed\n```\n",
        "    holdfast job list\n",
    ],
)
def test_what_could_be_overlooked_is_no_page(planted, text):
    with pytest.raises(ValueError, match=r"^page\.md: "):
        planted(text)


def test_the_tables_have_nothing_that_is_gone():
    every = [command for page in PAGES for command in commands(page)]
    used = {exempt.pattern for command in every if (exempt := exemption(command))}
    assert [exempt.pattern for exempt in EXEMPT if exempt.pattern not in used] == []
    assert COVERED.keys() <= {(command.page, command.language) for command in every}
    texts = {re.sub(r"\s+#.*", "", command.text) for command in every}
    assert EXPECTED.keys() <= texts
    assert {text for _, text in INSTEAD} <= texts
    for page, start in SUPPOSED:
        assert any(command.page == page and command.text.startswith(start) for command in every)


def test_what_runs_the_others_is_there():
    for where in COVERED.values():
        file, *names = where.split("::")
        text = (ROOT / file).read_text()
        assert all(re.search(rf"(def|class) {name}\b", text) for name in names), where
