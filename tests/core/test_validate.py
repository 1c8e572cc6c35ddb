"""What a job spec may be, and the sentence for what it may not."""

import math
from dataclasses import replace

import pytest

from holdfast_coordinator.core.jobspec import (
    Action,
    CodeRange,
    DataSet,
    DataShard,
    ExitKind,
    HangAction,
    HangPolicy,
    JobSpec,
    Mode,
    Resources,
    RestartPolicy,
    RetentionPolicy,
    Rule,
    StragglerPolicy,
)
from holdfast_coordinator.core.validate import (
    MAX_DATASETS_BYTES,
    MAX_LIMITS,
    MAX_NAME,
    MAX_SHARDS,
    MAX_WORLD_SIZE,
    Violation,
    pin_violations,
    violations,
)
from tests.core.builders import spec

GOOD = spec(2)


def complaints(**changes):
    """What is said of a good spec with these fields changed."""
    return [(wrong.field, wrong.description) for wrong in violations(replace(GOOD, **changes))]


def fields(**changes):
    return [field for field, _ in complaints(**changes)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"name": "a"},
        {"name": "Llama-3.1_run.7"},
        {"name": "n" * MAX_NAME},
        {"world_size": 1},
        {"world_size": MAX_WORLD_SIZE},
        {"command": ("train", "", "--name=")},
        {"env": {"_A1": "", "PATH": "/bin:\n"}},
        {"working_dir": "/srv", "checkpoint_uri": "/mnt/checkpoints"},
        {"resources": Resources(cpus=0.5, memory_bytes=1, gpus=8)},
        {"restart": RestartPolicy(backoff_ms=0, backoff_cap_ms=0, jitter=1.0, budget=0, window_ms=1)},
        {"restart": RestartPolicy(jitter=0.0)},
        {"stop_grace_ms": 0},
        {"preload": ("numpy", "torch.distributed", "_a.b1"), "spares": 8},
        {
            "hang": HangPolicy(
                HangAction.RESTART, {"setup": 600_000, "step": 1_000, "a b/é": 2_000}, 1.0, 1_000
            )
        },
        {"stragglers": StragglerPolicy(threshold=0.1, strikes=1_000)},
    ],
)
def test_what_is_right(changes):
    assert complaints(**changes) == []


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "a\n", "naïve", "n" * (MAX_NAME + 1)])
def test_a_name_is_safe_in_a_path_and_a_url(name):
    assert fields(name=name) == ["name"]


def test_a_long_name_is_not_repeated_whole():
    ((_, description),) = complaints(name="n" * 1_000)
    assert len(description) < 200


@pytest.mark.parametrize("command", [(), ("",), ("", "train.py"), ("python", "a\0b")])
def test_a_command_can_be_given_to_exec(command):
    assert fields(command=command) == ["command"]


@pytest.mark.parametrize("world_size", [-1, 0, MAX_WORLD_SIZE + 1])
def test_a_world_has_ranks_but_not_too_many(world_size):
    assert complaints(world_size=world_size) == [
        ("world_size", f"{world_size} is not between 1 and {MAX_WORLD_SIZE}")
    ]


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A=B", "A B", "A\n"])
def test_an_environment_has_names(name):
    assert fields(env={name: "x"}) == [f"env.{name}"]


def test_a_value_is_not_repeated():
    """It may be secret."""
    assert complaints(env={"TOKEN": "hunter2\0"}) == [
        ("env.TOKEN", "has a NUL character in its value; remove it")
    ]


@pytest.mark.parametrize("path", ["checkpoints", "./here", "~/here", "s3://bucket/here"])
def test_a_working_directory_is_absolute(path):
    assert complaints(working_dir=path) == [("working_dir", f'"{path}" is not an absolute path')]


@pytest.mark.parametrize("module", ["", "a-b", "a.", ".a", "a..b", "1a", "a b", "a\n", "os; x", "m" * 201])
def test_what_is_preloaded_are_names_of_modules(module):
    assert complaints(preload=("numpy", module)) == [
        ("preload.1", f'"{module[:80]}" is no name of a module; write e.g. numpy')
    ]


def test_what_is_preloaded_is_bounded():
    assert complaints(preload=("numpy",) * 65) == [("preload", "has 65 modules; at most 64 are preloaded")]


@pytest.mark.parametrize("spares", [-1, 1_001])
def test_spares_are_bounded(spares):
    assert complaints(preload=("numpy",), spares=spares) == [
        ("spares", f"{spares} is not between 0 and 1000")
    ]


def test_spares_have_something_to_import():
    assert complaints(spares=2) == [("spares", "2 have nothing to import; name modules in preload")]


PLACES = ["checkpoint_uri", "resume_from"]


@pytest.mark.parametrize("field", PLACES)
@pytest.mark.parametrize(
    "uri", ["/here", "s3://bucket", "s3://bucket/here/", "gs://b/x", "file:///here", "hdfs://n:1/x"]
)
def test_checkpoints_lie_below_a_path_or_a_uri(field, uri):
    assert complaints(**{field: uri}) == []


@pytest.mark.parametrize("field", PLACES)
@pytest.mark.parametrize("uri", ["checkpoints", "./here", "~/here", "s3:bucket", "://bucket"])
def test_a_place_that_is_relative_is_refused(field, uri):
    neither = "is neither an absolute path nor a URI; write e.g. /shared/checkpoints or s3://bucket/prefix"
    assert complaints(**{field: uri}) == [(field, f'"{uri}" {neither}')]


@pytest.mark.parametrize("uri", ["s3://", "s3:///here", "gs://", "file:///"])
def test_a_uri_names_a_place(uri):
    assert complaints(checkpoint_uri=uri) == [
        ("checkpoint_uri", f'"{uri}" names no place; write e.g. s3://bucket/prefix')
    ]


def test_a_place_has_no_nul_in_it():
    assert complaints(checkpoint_uri="/a\0b") == [("checkpoint_uri", "has a NUL character in it; remove it")]


@pytest.mark.parametrize(
    ("policy", "field", "complaint"),
    [
        ({"keep_last": 0}, "keep_last", "0 is not between 1 and 1000"),
        ({"keep_last": 1_001}, "keep_last", "1001 is not between 1 and 1000"),
        ({"best": -1, "metric": "loss"}, "best", "-1 is not between 0 and 1000"),
        ({"keep_every": -5}, "keep_every", "-5 steps is negative; give 0 or more"),
        ({"best": 2}, "metric", "is empty; name the metric that the best have, e.g. loss"),
        ({"metric": "loss"}, "best", "is 0; say how many of the best by loss to keep"),
    ],
)
def test_what_retention_cannot_be(policy, field, complaint):
    assert complaints(retention=RetentionPolicy(**policy)) == [(f"retention.{field}", complaint)]


def test_what_retention_can_be():
    policy = RetentionPolicy(keep_last=1, keep_every=100, best=3, metric="loss", mode=Mode.MAX)
    assert complaints(retention=policy) == []


@pytest.mark.parametrize("kept", [0, 2**20 - 1, 2**50 + 1, -1])
def test_how_much_of_the_logs_cannot_be_kept(kept):
    found = complaints(log_bytes=kept)
    assert found == [("logs.keep_bytes", f"{kept} bytes is not between 1 MiB and 1 PiB")]


@pytest.mark.parametrize(
    ("name", "pattern", "complaint"),
    [
        (
            "loss",
            "loss (",
            '"loss (" is no regular expression: missing ), unterminated subpattern at position 5',
        ),
        ("loss", "loss .*", '"loss .*" has 0 groups; put the number, and nothing else, into one'),
        ("loss", "(loss) (.*)", '"(loss) (.*)" has 2 groups; put the number, and nothing else, into one'),
        ("loss", "(x)" + "y" * 500, "has 503 characters; write a pattern of no more than 500"),
        ("a b", "(x)", "is no name of a metric; use up to 40 letters and digits"),
    ],
)
def test_what_log_metrics_cannot_be(name, pattern, complaint):
    ((field, said),) = complaints(log_metrics={name: pattern})
    assert field == f"log_metrics.{name}"
    assert said.startswith(complaint)


def test_what_log_metrics_can_be():
    assert complaints(log_metrics={"loss": r"loss[= ](\S+)", "step": r"^(?:epoch \d+, )?step (\d+)"}) == []
    assert complaints(log_metrics={f"m{n}": "(x)" for n in range(33)}) == [
        ("log_metrics", "are 33; give no more than 32")
    ]


@pytest.mark.parametrize("name", ["two words", "-x", "x" * 64, "a/b", "\x1b[31m"])
def test_a_pin_has_a_name_that_can_be_shown(name):
    (wrong,) = pin_violations(name)
    assert wrong.field == "name"
    assert "is no name of a pin; use up to 63 letters" in wrong.description


@pytest.mark.parametrize("name", ["", "before-the-spike", "v1.0"])
def test_a_pin_may_be_called(name):
    assert list(pin_violations(name)) == []


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"resources": Resources(cpus=-0.5)}, "resources.cpus", "-0.5"),
        ({"resources": Resources(cpus=float("nan"))}, "resources.cpus", "nan"),
        ({"resources": Resources(memory_bytes=-1)}, "resources.memory_bytes", "-1"),
        ({"resources": Resources(gpus=-1)}, "resources.gpus", "-1"),
        ({"restart": RestartPolicy(budget=-1)}, "restart.budget", "-1"),
        ({"restart": RestartPolicy(backoff_ms=-1)}, "restart.backoff", "-1 ms"),
        ({"restart": RestartPolicy(backoff_cap_ms=-1)}, "restart.backoff_cap", "-1 ms"),
        ({"restart": RestartPolicy(window_ms=-1)}, "restart.window", "-1 ms"),
        ({"restart": RestartPolicy(no_progress_limit=-1)}, "restart.no_progress_limit", "-1"),
        ({"restart": RestartPolicy(grace_ms=-1)}, "restart.grace", "-1 ms"),
        ({"stop_grace_ms": -1}, "stop_grace", "-1 ms"),
    ],
)
def test_numbers_are_not_negative(changes, field, value):
    assert complaints(**changes) == [(field, f"{value} is negative; give 0 or more")]


@pytest.mark.parametrize("jitter", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_jitter_is_a_part_of_one(jitter):
    assert complaints(restart=RestartPolicy(jitter=jitter)) == [
        ("restart.jitter", f"{jitter:g} is not between 0 and 1")
    ]


def test_everything_that_is_wrong_is_said_at_once():
    wrong = JobSpec("", (), 0, resources=Resources(gpus=-1), restart=RestartPolicy(jitter=2.0))
    assert [each.field for each in violations(wrong)] == [
        "name",
        "command",
        "world_size",
        "resources.gpus",
        "restart.jitter",
    ]
    assert all(isinstance(each, Violation) for each in violations(wrong))


SHARD = DataShard("a.npy", 3, 40, "0123456789abcdef")


def data_set(*shards, name="train", uri="s3://bucket/train"):
    return DataSet(name, uri, shards)


@pytest.mark.parametrize(
    "datasets",
    [
        (data_set(SHARD),),
        (
            data_set(SHARD, replace(SHARD, file="below/b.npy", samples=0)),
            data_set(SHARD, name="val", uri="/data"),
        ),
    ],
)
def test_data_sets_that_are_counted(datasets):
    assert complaints(datasets=datasets) == []


@pytest.mark.parametrize(
    ("datasets", "field", "sentence"),
    [
        ((data_set(SHARD, name="a/b"),), "datasets.a/b", "no name of a data set"),
        ((data_set(SHARD), data_set(SHARD)), "datasets.train", "is there twice"),
        (
            (data_set(SHARD, uri="data/train"),),
            "datasets.train",
            '"data/train" is neither an absolute path nor',
        ),
        ((data_set(),), "datasets.train", "has no samples; count its shards"),
        ((data_set(replace(SHARD, samples=0)),), "datasets.train", "has no samples; count its shards"),
        ((data_set(SHARD, SHARD),), "datasets.train", "has a shard twice"),
        ((data_set(SHARD, replace(SHARD, file="../a")),), "datasets.train", '"../a", which is no path below'),
        ((data_set(SHARD, replace(SHARD, file="/a")),), "datasets.train", '"/a", which is no path below'),
        ((data_set(SHARD, replace(SHARD, file="b", samples=-1)),), "datasets.train", '"b" of -1 samples'),
    ],
)
def test_data_sets_that_cannot_be(datasets, field, sentence):
    ((found, description),) = complaints(datasets=datasets)
    assert found == field
    assert sentence in description


def test_data_sets_go_into_a_message():
    many = tuple(replace(SHARD, file=f"{n}.npy") for n in range(MAX_SHARDS))
    assert complaints(datasets=(data_set(*many),)) == []
    assert fields(datasets=(data_set(*many), data_set(SHARD, name="val"))) == ["datasets"]
    assert fields(datasets=(data_set(replace(SHARD, file="n" * MAX_DATASETS_BYTES)),)) == ["datasets"]


@pytest.mark.parametrize(
    ("policy", "field", "description"),
    [
        ({"limits_ms": {"step": 999}}, "hang.limits.step", "999 ms is too short to be told; give 1s or more"),
        ({"limits_ms": {"step": -1}}, "hang.limits.step", "-1 ms is too short to be told; give 1s or more"),
        (
            {"limits_ms": {"x" * 33: 5_000}},
            f"hang.limits.{'x' * 33}",
            "is no name of a section; use 1 to 32 printable bytes",
        ),
        ({"limits_ms": {"": 5_000}}, "hang.limits.", "is no name of a section; use 1 to 32 printable bytes"),
        (
            {"limits_ms": {"a\n": 5_000}},
            "hang.limits.a\n",
            "is no name of a section; use 1 to 32 printable bytes",
        ),
        (
            {"limits_ms": {f"s{n}": 5_000 for n in range(MAX_LIMITS + 1)}},
            "hang.limits",
            "are 65; give at most 64",
        ),
        ({"factor": 0.5}, "hang.factor", "0.5 is not a number of 1 or more"),
        ({"factor": math.nan}, "hang.factor", "nan is not a number of 1 or more"),
        ({"factor": math.inf}, "hang.factor", "inf is not a number of 1 or more"),
        ({"floor_ms": 0}, "hang.floor", "0 ms is too short to be told; give 1s or more"),
    ],
)
def test_a_limit_can_be_held_to(policy, field, description):
    assert complaints(hang=HangPolicy(**policy)) == [(field, description)]


@pytest.mark.parametrize(
    ("policy", "field", "description"),
    [
        ({"threshold": 0.0}, "stragglers.threshold", "0 is not a number above 0"),
        ({"threshold": math.nan}, "stragglers.threshold", "nan is not a number above 0"),
        ({"strikes": -1}, "stragglers.strikes", "-1 is not between 0 and 1000"),
        ({"strikes": 1_001}, "stragglers.strikes", "1001 is not between 0 and 1000"),
    ],
)
def test_a_straggler_is_above_its_peers(policy, field, description):
    assert complaints(stragglers=StragglerPolicy(**policy)) == [(field, description)]


def rule(**conditions):
    return Rule(Action.FAIL, **conditions)


@pytest.mark.parametrize(
    "given",
    [
        rule(),
        rule(exit_codes=(CodeRange(1, 255), CodeRange(3, 3))),
        rule(signals=(1, 64), kinds=(ExitKind.OUT_OF_MEMORY,), section="eval", before_first_step=False),
        rule(log=r"CUDA error: (un)?correctable ECC"),
        rule(log="[[:alpha:]]"),  # Python has a warning for it, which is nobody's here
    ],
)
def test_rules_that_can_be(given):
    assert complaints(rules=(given,)) == []


@pytest.mark.parametrize(
    ("given", "field", "sentence"),
    [
        (
            rule(exit_codes=(CodeRange(0, 0),)),
            "rules.1.exit_codes",
            "0 is not within 1 to 255; code 0 is success",
        ),
        (rule(exit_codes=(CodeRange(9, 3),)), "rules.1.exit_codes", "9-3 goes down; write 3-9"),
        (rule(exit_codes=(CodeRange(3, 256),)), "rules.1.exit_codes", "3-256 is not within 1 to 255"),
        (rule(signals=(0,)), "rules.1.signals", "0 is no signal; write e.g. SIGSEGV, or 11"),
        (rule(exit_codes=(CodeRange(1, 1),), signals=(9,)), "rules.1", "no exit has both; make two rules"),
        (rule(kinds=(ExitKind.LOST,)), "rules.1.kind", "lost is not the program's doing"),
        (rule(log="a(b"), "rules.1.log", "is no regular expression: missing ), unterminated subpattern"),
        (rule(log="a" * 501), "rules.1.log", "has 501 characters; write a pattern of no more than 500"),
    ],
)
def test_rules_that_cannot_be(given, field, sentence):
    ((found, description),) = complaints(rules=(rule(), given))
    assert found == field
    assert sentence in description


def test_rules_have_a_number():
    assert complaints(rules=(rule(),) * 64) == []
    assert fields(rules=(rule(),) * 65) == ["rules"]
