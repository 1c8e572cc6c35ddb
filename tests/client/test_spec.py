"""Job files: what they become, and what is said about those that can't be."""

import textwrap
from datetime import timedelta

import pytest

from holdfast.spec import SpecError, SpecFile
from holdfast.units import parse_duration, parse_size
from holdfast.v1 import job_pb2

FULL = """\
name: digits
command: [python, train.py, --lr, 0.10]
world_size: 4
env:
  VERSION: 3.10
  DEBUG: "1"
working_dir: /srv/train
resources:
  cpus: 1.5
  memory: 2GiB
  gpus: 1
restart:
  scope: rank
  backoff: 250ms
  backoff_cap: 1m
  jitter: 0
  budget: 0
  window: 1h
stop_grace: 90s
checkpoint_uri: /shared/checkpoints
labels:
  team: vision
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(text):
        path = tmp_path / "job.yaml"
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        return SpecFile(path.relative_to(tmp_path))

    return read


def refused(read, text):
    with pytest.raises(SpecError) as error:
        read(text)
    return str(error.value)


def test_everything_that_can_be_said(read):
    spec = read(FULL).part.to_proto()
    want = job_pb2.JobSpec(
        name="digits",
        command=["python", "train.py", "--lr", "0.10"],
        world_size=4,
        env={"VERSION": "3.10", "DEBUG": "1"},
        working_dir="/srv/train",
        resources=job_pb2.Resources(cpus=1.5, memory_bytes=2 * 2**30, gpus=1),
        checkpoint_uri="/shared/checkpoints",
        labels={"team": "vision"},
    )
    want.stop_grace.FromSeconds(90)
    want.restart.scope = job_pb2.RESTART_SCOPE_RANK
    want.restart.backoff.FromMilliseconds(250)
    want.restart.backoff_cap.FromSeconds(60)
    want.restart.window.FromSeconds(3600)
    want.restart.jitter = 0
    want.restart.budget = 0
    assert spec == want


def test_what_is_not_said_is_left_to_the_coordinator(read):
    spec = read("command: [train]\n").part.to_proto()
    assert spec == job_pb2.JobSpec(command=["train"], world_size=1)
    assert not spec.restart.HasField("budget")


def test_zero_is_not_nothing(read):
    """A world size of 0 is refused by the coordinator, not taken for the default."""
    assert read("command: [train]\nworld_size: 0\n").part.to_proto().world_size == 0


WRONG = [
    # keys
    ("restart:\n  budgett: 3\n", 'job.yaml:2: restart.budgett: unknown key; did you mean "budget"?'),
    ("comand: [train]\n", 'job.yaml:1: comand: unknown key; did you mean "command"?'),
    ("resources:\n  disk: 1\n", "job.yaml:2: resources.disk: unknown key; known are cpus, memory, gpus"),
    ("name: a\nworld_size: 1\nname: b\n", "job.yaml:3: name: is there twice, first on line 1; remove one"),
    ("env:\n  A: x\n  A: y\n", "job.yaml:3: env.A: is there twice, first on line 2; remove one"),
    # types
    ('world_size: "four"\n', 'job.yaml:1: world_size: "four" is not a whole number; write e.g. 4'),
    ("world_size: 1.5\n", "job.yaml:1: world_size: 1.5 is not a whole number; write e.g. 4"),
    ("world_size: true\n", "job.yaml:1: world_size: True is not a whole number; write e.g. 4"),
    ("restart:\n  jitter: much\n", 'job.yaml:2: restart.jitter: "much" is not a number; write e.g. 1.5'),
    ("name: 7\n", "job.yaml:1: name: 7 is not a string; put it in quotes"),
    ("env:\n  A: yes\n", "job.yaml:2: env.A: True is not a string; put it in quotes"),
    ("env:\n  A: [1]\n", "job.yaml:2: env.A: ['1'] is not a string; put it in quotes"),
    ("restart: rank\n", 'job.yaml:1: restart: "rank" is no mapping; write `key: value` lines below it'),
    ("env: A=b\n", 'job.yaml:1: env: "A=b" is no mapping; write `key: value` lines below it'),
    (
        "restart:\n  scope: all\n",
        'job.yaml:2: restart.scope: "all" is neither gang nor rank',
    ),
    (
        "command: python train.py\n",
        'job.yaml:1: command: is a single string; write it as a list, e.g. ["python", "train.py"]',
    ),
    ("command: {a: b}\n", 'job.yaml:1: command: is no list; write e.g. ["python", "train.py"]'),
    ("command:\n  - train\n  - null\n", "job.yaml:3: command.1: None is not a string; put it in quotes"),
    # units
    (
        "stop_grace: 30\n",
        "job.yaml:1: stop_grace: 30 is no duration; write e.g. 500ms, 30s, 5m or 1h",
    ),
    (
        "restart:\n  backoff: -1s\n",
        'job.yaml:2: restart.backoff: "-1s" is no duration; write e.g. 500ms, 30s, 5m or 1h',
    ),
    (
        "resources:\n  memory: 2GB\n",
        'job.yaml:2: resources.memory: "2GB" is no size; write e.g. 512MiB or 2GiB',
    ),
    # files
    ("", "job.yaml: is empty; write at least command and world_size"),
    ("# nothing\n", "job.yaml: is empty; write at least command and world_size"),
    ("- a\n", "job.yaml:1: is no mapping; write `key: value` lines, e.g. world_size: 4"),
    ("name: a\n  b: c\n", "job.yaml:2: is not YAML: mapping values are not allowed here"),
    ("env: [a\n", "job.yaml:2: is not YAML: expected ',' or ']', but got '<stream end>'"),
    (b"name: \xff\n", "job.yaml: is not text in UTF-8; save it as such"),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_what_is_wrong_is_told_with_line_field_and_remedy(read, text, sentence):
    assert refused(read, text) == sentence


def test_every_mistake_is_told_at_once(read):
    text = "world_size: four\nrestart:\n  budgett: 1\n"
    assert len(refused(read, text).splitlines()) == 2


@pytest.mark.parametrize(
    "text",
    [
        "world_size: 99999999999\n",
        "world_size: .inf\n",
        "resources:\n  memory: 99999999TiB\n",
        "stop_grace: 99999999999h\n",
        "name: 2024-13-45\n",
        "name: !!python/object:os.system x\n",
        "name: !secret x\n",
        "? [a, b]\n: c\n",
        "1: x\n",
        "a: &a\n  b: *a\n",
        "name: a\n---\nname: b\n",
        "name: \x07\n",
        "env: " + "{a: " * 2000 + "}" * 2000,
        "command: [" + ", ".join(["*a"] * 9) + "]\n",
    ],
)
def test_whatever_is_in_the_file_the_answer_is_a_sentence(read, text):
    assert refused(read, text).startswith("job.yaml:")


def test_a_file_that_can_not_be_read(tmp_path):
    with pytest.raises(SpecError, match="nope.yaml: can't be read: No such file or directory"):
        SpecFile(tmp_path / "nope.yaml")
    with pytest.raises(SpecError, match="can't be read: Is a directory"):
        SpecFile(tmp_path)


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("world_size", "job.yaml:3: world_size"),
        ("restart.jitter", "job.yaml:16: restart.jitter"),
        ("resources.memory_bytes", "job.yaml:10: resources.memory"),
        ("env.DEBUG", "job.yaml:6: env.DEBUG"),
        ("env.OTHER", None),
        ("request_id", None),
    ],
)
def test_the_coordinators_fields_are_found_again_in_the_file(read, field, place):
    assert read(FULL).where(field) == place


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("1.5m", 90), ("2h", 7200), ("0", 0), (0, 0)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "30 s", "s", "1d", "-1s", 30, None, True, "1e3s"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 * 2**30), ("1.5KiB", 1536), ("512B", 512), (7, 7), ("1TiB", 2**40)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "2GB", "2 GiB", "GiB", "-1GiB", True, None, 1.5])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)
