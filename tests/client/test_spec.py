"""Job files: what they become, and what is said about those that can't be."""

from datetime import timedelta

import pytest

from holdfast.spec import SpecError, SpecFile
from holdfast.units import parse_duration, parse_size
from holdfast.v1 import job_pb2

WHOLE = """\
name: digits
command: [python, train.py, --lr, 1.50]
world_size: 4
env:
  LR: 0.10
  MODE: 0777
  DAY: 2024-01-02
working_dir: /data
resources:
  cpus: 1.5
  memory: 2GiB
  gpus: 1
restart:
  scope: rank
  backoff: 0
  backoff_cap: 1m
  jitter: 0
  budget: 0
  window: 1h
  no_progress_limit: 0
  grace: 7s
stop_grace: 500ms
checkpoint_uri: /shared
labels: {team: vision}
retention:
  keep_last: 3
  keep_every: 1000
  best: 2
  metric: accuracy
  mode: max
resume_from: s3://bucket/old/k7m2p9xq4w
datasets:
  train: s3://bucket/train/
preload: [numpy, torch.distributed]
spares: 2
logs: {keep: 64MiB}
log_metrics:
  loss: 'loss[= ]([0-9.eE+-]+)'
  step: 'step (\\d+)'
hang:
  action: off
  limits: {setup: 10m, step: 60s, a.b: 5s}
  factor: 5
  floor: 2m
stragglers: {threshold: 2.5, strikes: 3}
rules:
  - log: "CUDA error: uncorrectable ECC"
    action: exclude_node
  - exit_codes: [3, 10-20]
    kind: [out_of_memory, disk_full]
    section: eval
    before_first_step: false
    action: fail
  - signals: [SIGSEGV, bus, 4]
    action: retry
"""

WRONG = [
    ("", "job.yaml: is empty; write at least command and world_size"),
    ("# nothing\n", "job.yaml: is empty; write at least command and world_size"),
    ("- a", "job.yaml:1: is no mapping; write `key: value` lines, e.g. world_size: 4"),
    ("name: a\n\nworld_size: four", 'job.yaml:3: world_size: "four" is not a whole number; write e.g. 4'),
    ("world_size: 4.0", "job.yaml:1: world_size: 4.0 is not a whole number; write e.g. 4"),
    ("world_size: yes", "job.yaml:1: world_size: True is not a whole number; write e.g. 4"),
    (
        "world_size: 99999999999",
        "job.yaml:1: world_size: 99999999999 is too large; write a number below 2,147,483,648",
    ),
    ("restart:\n  budgett: 3", 'job.yaml:2: restart.budgett: unknown key; did you mean "budget"?'),
    ("wrold_size: 3", 'job.yaml:1: wrold_size: unknown key; did you mean "world_size"?'),
    ("resources: {x: 1}", "job.yaml:1: resources.x: unknown key; known are cpus, memory, gpus"),
    ("restart: 3", "job.yaml:1: restart: 3 is no mapping; write `key: value` lines below it"),
    ("name: x\nname: y", "job.yaml:2: name: is there twice, first on line 1; remove one"),
    ("env:\n  A: 1\n  A: 2", "job.yaml:3: env.A: is there twice, first on line 2; remove one"),
    ("env:\n  B: yes", "job.yaml:2: env.B: True is not a string; put it in quotes"),
    ("env:\n  B:", "job.yaml:2: env.B: None is not a string; put it in quotes"),
    (
        "command: python train.py",
        'job.yaml:1: command: is a single string; write it as a list, e.g. ["python", "train.py"]',
    ),
    ("command:\n- a\n- true", "job.yaml:3: command.1: True is not a string; put it in quotes"),
    ("command: {a: b}", "is no list; write e.g."),
    ("name: 3", "job.yaml:1: name: 3 is not a string; put it in quotes"),
    ("stop_grace: 30", "job.yaml:1: stop_grace: 30 is no duration; write e.g. 500ms, 30s, 5m or 1h"),
    ("stop_grace: 99999999999h", "is longer than a hundred years; write less"),
    ("resources: {memory: 2GB}", 'resources.memory: "2GB" is no size; write e.g. 512MiB or 2GiB'),
    ("resources: {cpus: x}", 'resources.cpus: "x" is not a number; write e.g. 1.5'),
    ("restart: {scope: all}", 'restart.scope: "all" is neither gang nor rank'),
    ("retention: {mode: best}", 'retention.mode: "best" is neither min nor max'),
    ("retention: {keep_lats: 3}", 'retention.keep_lats: unknown key; did you mean "keep_last"?'),
    ("retention: {keep_last: some}", 'retention.keep_last: "some" is not a whole number; write e.g. 4'),
    ("preload: numpy", "job.yaml:1: preload: is no list; write e.g. [numpy, torch]"),
    ("preload:\n- numpy\n- 3", "job.yaml:3: preload.1: 3 is not a string; put it in quotes"),
    ("spares: some", 'job.yaml:1: spares: "some" is not a whole number; write e.g. 4'),
    ("logs: {keep: much}", 'logs.keep: "much" is no size; write e.g. 512MiB or 2GiB'),
    ("logs: {kepe: 1GiB}", 'logs.kepe: unknown key; did you mean "keep"?'),
    ("log_metrics: {loss: 3}", "log_metrics.loss: 3 is not a string; put it in quotes"),
    ("hang: {action: kill}", 'hang.action: "kill" is neither notify nor restart nor off'),
    ("hang: {action: yes}", "hang.action: True is neither notify nor restart nor off"),
    ("hang: {limit: {}}", 'hang.limit: unknown key; did you mean "limits"?'),
    ("hang:\n  limits:\n    step: 60", "job.yaml:3: hang.limits.step: 60 is no duration; write e.g. 500ms"),
    ("stragglers: {strikes: few}", 'stragglers.strikes: "few" is not a whole number; write e.g. 4'),
    ("rules: 3", "job.yaml:1: rules: 3 is no list; write `- key: value` lines below it"),
    ("rules:\n- 3", "job.yaml:2: rules.0: 3 is no mapping; write `key: value` lines below it"),
    ("rules:\n- log: x", "job.yaml:2: rules.0.action: is missing; write e.g. action: retry"),
    (
        "rules:\n- action: stop",
        'rules.0.action: "stop" is none of retry, fail, exclude_node, ignore, restart_gang',
    ),
    (
        "rules:\n- action: fail\n  exit_codes: [3, x]",
        'job.yaml:3: rules.0.exit_codes: "x" is no exit code; write e.g. 3, or "10-20"',
    ),
    (
        "rules:\n- action: fail\n- action: fail\n  signals: SIGFOO",
        'job.yaml:4: rules.1.signals: "SIGFOO" is no signal; write e.g. SIGSEGV, or 11',
    ),
    (
        "rules:\n- action: fail\n  kind: lost",
        'rules.0.kind: "lost" is none of exited, signalled, out_of_memory',
    ),
    ("rules:\n- action: fail\n  lgo: x", 'job.yaml:3: rules.0.lgo: unknown key; did you mean "log"?'),
    ("rules:\n- action: fail\n  before_first_step: 1", "before_first_step: 1 is neither true nor false"),
    (
        "rules:\n- action: fail\n  signals: []",
        "job.yaml:3: rules.0.signals: is empty, and would match nothing",
    ),
    ("rules:\n- action: fail\n  log: ''", "job.yaml:3: rules.0.log: is empty, and would match everything"),
    ("a: [", "job.yaml:1: is not YAML: "),
    ("a: b\n---\nc: d", "job.yaml:2: is not YAML: "),
    ("name: \x01", "job.yaml: is not YAML: "),
    ("name: 2024-13-45", "job.yaml: is not YAML: month must be in 1..12"),
    ("name: !!python/name:os.system ''", "job.yaml:1: is not YAML: could not determine a constructor"),
    ("command: &x\n- *x", "job.yaml:1: command: goes too deep; flatten it"),
    ("1: b", "job.yaml:1: a key has to be a name; put it in quotes if it is one"),
    ("? [a]\n: b", "job.yaml:1: a key has to be a name; put it in quotes if it is one"),
]


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(text):
        from pathlib import Path

        path = Path("job.yaml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return SpecFile(path)

    return read


def test_every_key_arrives(read):
    spec = read(WHOLE).part.to_proto()
    expected = job_pb2.JobSpec(
        name="digits",
        command=["python", "train.py", "--lr", "1.50"],
        world_size=4,
        env={"LR": "0.10", "MODE": "0777", "DAY": "2024-01-02"},
        working_dir="/data",
        resources=job_pb2.Resources(cpus=1.5, memory_bytes=2 * 2**30, gpus=1),
        checkpoint_uri="/shared",
        labels={"team": "vision"},
        resume_from="s3://bucket/old/k7m2p9xq4w",
        retention=job_pb2.RetentionPolicy(
            keep_last=3, keep_every=1000, best=2, metric="accuracy", mode=job_pb2.METRIC_MODE_MAX
        ),
        datasets=[job_pb2.DataSet(name="train", uri="s3://bucket/train/")],
        preload=["numpy", "torch.distributed"],
        spares=2,
        logs=job_pb2.LogPolicy(keep_bytes=64 * 2**20),
        log_metrics={"loss": "loss[= ]([0-9.eE+-]+)", "step": r"step (\d+)"},
        hang=job_pb2.HangPolicy(action=job_pb2.HANG_ACTION_OFF, factor=5),
        stragglers=job_pb2.StragglerPolicy(threshold=2.5, strikes=3),
    )
    for section, seconds in (("setup", 600), ("step", 60), ("a.b", 5)):
        expected.hang.limits[section].FromTimedelta(timedelta(seconds=seconds))
    expected.hang.floor.FromTimedelta(timedelta(minutes=2))
    expected.restart.CopyFrom(
        job_pb2.RestartPolicy(scope=job_pb2.RESTART_SCOPE_RANK, jitter=0, budget=0, no_progress_limit=0)
    )
    expected.restart.grace.FromTimedelta(timedelta(seconds=7))
    expected.rules.add(log="CUDA error: uncorrectable ECC", action=job_pb2.RULE_ACTION_EXCLUDE_NODE)
    expected.rules.add(
        exit_codes=[job_pb2.CodeRange(first=3, last=3), job_pb2.CodeRange(first=10, last=20)],
        kinds=[job_pb2.EXIT_KIND_OUT_OF_MEMORY, job_pb2.EXIT_KIND_DISK_FULL],
        section="eval",
        before_first_step=False,
        action=job_pb2.RULE_ACTION_FAIL,
    )
    expected.rules.add(signals=[11, 7, 4], action=job_pb2.RULE_ACTION_RETRY)
    expected.restart.backoff.FromTimedelta(timedelta(0))
    expected.restart.backoff_cap.FromTimedelta(timedelta(minutes=1))
    expected.restart.window.FromTimedelta(timedelta(hours=1))
    expected.stop_grace.FromTimedelta(timedelta(milliseconds=500))
    assert spec == expected


def test_zero_is_not_absent(read):
    spec = read("restart: {budget: 0, backoff: 0s, jitter: 0}\nworld_size: 0").part.to_proto()
    assert spec.restart.HasField("budget")
    assert spec.restart.HasField("backoff")
    assert spec.restart.HasField("jitter")
    assert spec.world_size == 0  # for the coordinator to refuse


def test_what_is_absent_is_left_to_the_coordinator_but_for_the_world_size(read):
    assert read("command: [a]").part.to_proto() == job_pb2.JobSpec(command=["a"], world_size=1)


@pytest.mark.parametrize(("text", "sentence"), WRONG, ids=[repr(text)[:40] for text, _ in WRONG])
def test_what_is_said(read, text, sentence):
    with pytest.raises(SpecError) as wrong:
        read(text)
    said = str(wrong.value)
    assert said.startswith("job.yaml:")
    assert "\n" not in said
    assert sentence in said


def test_every_mistake_is_told(read):
    with pytest.raises(SpecError) as wrong:
        read("world_size: x\nrestart:\n  budgett: 3\n")
    assert [line.split(": ")[0:2] for line in str(wrong.value).splitlines()] == [
        ["job.yaml:1", "world_size"],
        ["job.yaml:3", "restart.budgett"],
    ]


def test_files_that_cannot_be_read(read, tmp_path):
    with pytest.raises(SpecError, match=r"nowhere.yaml: can't be read: No such file"):
        SpecFile(tmp_path / "nowhere.yaml")
    with pytest.raises(SpecError, match="can't be read: Is a directory"):
        SpecFile(tmp_path)
    with pytest.raises(SpecError, match="is not text in UTF-8"):
        read(b"name: \xff\xfe")
    with pytest.raises(SpecError, match="larger than a mebibyte"):
        read(b"#" * (2**20 + 1))


def test_a_byte_order_mark_is_no_part_of_the_first_key(read):
    assert read(b"\xef\xbb\xbfname: a").part.name == "a"


def test_where_a_field_stands(read):
    found = read(WHOLE)
    assert found.where("world_size") == "job.yaml:3: world_size"
    assert found.where("restart.backoff_cap") == "job.yaml:16: restart.backoff_cap"
    assert found.where("resources.memory_bytes") == "job.yaml:11: resources.memory"
    assert found.where("env.LR") == "job.yaml:5: env.LR"
    assert found.where("hang.limits.step") == "job.yaml:42: hang.limits.step"
    assert found.where("hang.limits.a.b") == "job.yaml:42: hang.limits.a.b"
    assert found.where("hang.factor") == "job.yaml:43: hang.factor"
    assert found.where("hang.limits") == "job.yaml:42: hang.limits"
    assert found.where("env.NONE") is None
    assert found.where("request_id") is None
    assert (
        found.where("rules.1.exit_codes")
        == f"job.yaml:{WHOLE[: WHOLE.index('- exit')].count(chr(10)) + 1}: rules.1.exit_codes"
    )
    assert found.where("rules.0") == f"job.yaml:{WHOLE[: WHOLE.index('- log')].count(chr(10)) + 1}: rules.0"
    assert found.where("rules.7.log") is None


def test_a_dot_in_a_label_is_part_of_its_name(read):
    assert read("labels:\n  a.b: c").where("labels.a.b") == "job.yaml:2: labels.a.b"


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("0", 0), (0, 0), ("0s", 0), ("500ms", 500), ("1.5s", 1500), ("5m", 300_000), ("1h", 3_600_000)],
)
def test_durations(text, milliseconds):
    assert parse_duration(text) == timedelta(milliseconds=milliseconds)


@pytest.mark.parametrize("text", ["", "5", "-1s", "1 s", "1w", "s", 5, 1.5, None, False, ["1s"]])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


def test_sizes():
    assert parse_size("2GiB") == 2 * 2**30
    assert parse_size("1.5KiB") == 1536
    assert parse_size(4096) == 4096
    for text in ("2GB", "4096", "", "-1MiB", None, True):
        with pytest.raises(ValueError, match="is no size"):
            parse_size(text)
    with pytest.raises(ValueError, match="more than an exbibyte"):
        parse_size("9999999TiB")
