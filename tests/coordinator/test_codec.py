"""What comes in is translated, and bounded."""

from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration

from holdfast.v1 import agent_pb2, job_pb2, worker_pb2
from holdfast_coordinator import codec, rule_codec
from holdfast_coordinator.codec_hangs import LONGEST_EVIDENCE, LONGEST_SECTION
from holdfast_coordinator.codec_values import to_ms
from holdfast_coordinator.core.account import summarize
from holdfast_coordinator.core.effects import (
    AskStop,
    JobOver,
    NoteHang,
    NoteReport,
    StartWorkers,
    StopWorkers,
)
from holdfast_coordinator.core.jobspec import Action, ExitKind, HangAction, HangPolicy, StragglerPolicy
from holdfast_coordinator.core.model import ReportKind, Straggler
from tests.core.builders import T0, hang, key, running


@pytest.mark.parametrize(
    ("said", "read"),
    [(7, 7), (2**63 - 1, codec.MOST_STEPS), (-(2**63), 0)],
    ids=["sound", "huge", "negative"],
)
def test_steps_have_a_bound(said, read):
    assert codec.progress_from_proto(agent_pb2.Progress(steps_done=said)).steps_done == read


def test_nonsense_in_every_heartbeat_page_leaves_a_summary():
    progress = codec.progress_from_proto(agent_pb2.Progress(step=2**63 - 1, steps_done=2**63 - 1))
    assert progress.step == codec.MOST_STEPS
    cluster = running(4)
    workers = cluster.state.workers_of(cluster.job())
    numbers = summarize(
        cluster.job(), [cluster.gang()], workers, dict.fromkeys(range(4), progress), T0 + 1_000
    )
    assert codec.summary_to_proto(cluster.job(), numbers).steps == codec.MOST_STEPS


def test_data_sets_come_out_as_they_went_in_or_not_at_all():
    spec = job_pb2.JobSpec(name="a", command=["x"], world_size=1)
    found = spec.datasets.add(name="train", uri="s3://bucket/train")
    found.shards.add(file="a.npy", samples=3, size_bytes=40, digest="0123456789abcdef")
    found.shards.add(file="b.npy")
    read = codec.spec_from_proto(spec)
    assert codec.spec_to_proto(read).datasets == spec.datasets
    assert not codec.spec_to_proto(read, datasets=False).datasets


def test_warm_starts_come_out_as_they_went_in():
    spec = job_pb2.JobSpec(name="a", command=["x"], world_size=1, preload=["numpy", "a.b"], spares=3)
    read = codec.spec_from_proto(spec)
    assert (read.preload, read.spares) == (("numpy", "a.b"), 3)
    shown = codec.spec_to_proto(read)
    assert (list(shown.preload), shown.spares) == (["numpy", "a.b"], 3)
    assert codec.command_to_proto(JobOver("a"), epoch=7).job_over.job_id == "a"


def test_the_data_sets_of_a_job_are_written_once_for_all_agents(monkeypatch):
    spec = job_pb2.JobSpec(name="a", command=["x"], world_size=2)
    spec.datasets.add(name="train", uri="/train").shards.add(file="a.npy", samples=3)
    jobs = [codec.spec_from_proto(spec) for _ in range(20)]
    written = []
    real = codec._dataset
    monkeypatch.setattr(codec, "_dataset", lambda found: written.append(found) or real(found))
    for job in jobs:
        starts = [StartWorkers("a", job, (), f"10.0.0.{n}", 1, ()) for n in range(3)]
        messages = [codec.command_to_proto(start, epoch=7).start_workers for start in starts]
        assert [message.spec for message in messages] == [codec.spec_to_proto(job)] * 3
        assert [message.master_addr for message in messages] == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]
    assert len(written) == len(jobs)


@pytest.mark.parametrize(
    "policy",
    [
        None,
        job_pb2.RetentionPolicy(),
        job_pb2.RetentionPolicy(keep_last=1, keep_every=9, best=2, metric="x", mode=job_pb2.METRIC_MODE_MAX),
    ],
    ids=str,
)
def test_a_policy_is_read_with_its_defaults_and_shown_with_them(policy):
    spec = codec.spec_from_proto(job_pb2.JobSpec(name="a", retention=policy))
    shown = codec.spec_to_proto(spec)
    assert codec.spec_from_proto(shown) == spec
    assert shown.HasField("retention") is (policy is not None)
    if policy is not None:
        assert shown.retention.keep_last == (policy.keep_last if policy.HasField("keep_last") else 2)
        assert shown.retention.mode in (job_pb2.METRIC_MODE_MIN, job_pb2.METRIC_MODE_MAX)


@pytest.mark.parametrize("logs", [None, job_pb2.LogPolicy(), job_pb2.LogPolicy(keep_bytes=5)], ids=str)
def test_what_is_kept_of_logs_is_read_with_its_default(logs):
    spec = codec.spec_from_proto(job_pb2.JobSpec(name="a", logs=logs, log_metrics={"loss": "(x)"}))
    assert spec.log_bytes == (5 if logs is not None and logs.keep_bytes else 2**30)
    assert spec.log_metrics == {"loss": "(x)"}
    assert codec.spec_from_proto(codec.spec_to_proto(spec)) == spec


def test_metrics_of_a_shard_are_numbers_and_not_too_many():
    said = worker_pb2.Shard(file="f", metrics={f"m{n:03}": 0.5 for n in range(100)}, local_only=True)
    said.metrics["a"], said.metrics["b"] = float("nan"), float("-inf")
    read = codec.shard_from_proto(said)
    assert list(read.metrics) == [f"m{n:03}" for n in range(codec.MOST_METRICS)]
    assert read.local_only


def test_what_a_worker_reports_is_cut():
    report = worker_pb2.Report(kind=worker_pb2.Report.KIND_SAVE_FAILED, step=3, message="no" * 5_000)
    reported = agent_pb2.CheckpointReported(report=report)
    message = agent_pb2.AgentMessage(checkpoint_reported=reported)
    event = codec.event_from_proto(message, node="n", session="s", at=1)
    assert (event.kind, event.step, len(event.message)) == (ReportKind.SAVE_FAILED, 3, codec.LONGEST_MESSAGE)


@pytest.mark.parametrize("kind", ReportKind)
def test_every_kind_of_report_goes_both_ways(kind):
    number = worker_pb2.Report.Kind.Value(f"KIND_{kind.name}")
    reported = agent_pb2.CheckpointReported(report=worker_pb2.Report(kind=number))
    message = agent_pb2.AgentMessage(checkpoint_reported=reported)
    assert codec.event_from_proto(message, node="n", session="s", at=1).kind is kind
    noted = codec.command_to_proto(NoteReport(key(0), kind, 3), epoch=7)
    assert (noted.epoch, noted.note_report.kind, noted.note_report.step) == (7, number, 3)
    assert len(ReportKind) == len(worker_pb2.Report.Kind.values()) - 1


@pytest.mark.parametrize("action", [None, *HangAction])
def test_what_is_done_about_hangs_and_stragglers_is_read_with_defaults_and_shown_with_them(action):
    asked = job_pb2.JobSpec(name="a")
    if action is not None:
        asked.hang.action = job_pb2.HangAction.Value(f"HANG_ACTION_{action.name}")
        asked.hang.factor, asked.stragglers.threshold, asked.stragglers.strikes = 2.0, 1.5, 4
        asked.hang.limits["step"].FromMilliseconds(1_500)
        asked.hang.floor.FromMilliseconds(9_000)
    spec = codec.spec_from_proto(asked)
    shown = codec.spec_to_proto(spec)
    assert codec.spec_from_proto(shown) == spec
    if action is None:
        assert (spec.hang, spec.stragglers) == (HangPolicy(), StragglerPolicy())
    else:
        assert spec.hang == HangPolicy(action, {"step": 1_500}, 2.0, 9_000)
        assert spec.stragglers == StragglerPolicy(1.5, 4)
    assert shown.hang.HasField("factor")
    assert shown.hang.HasField("floor")
    assert shown.hang.action


def test_what_an_agent_says_of_a_hang_is_read_and_bounded():
    said = agent_pb2.WorkerHung(
        since_ns=7, section="s" * 99, step=2**50, learned=True, stopped=True, where="w" * 5_000
    )
    said.silent.FromMilliseconds(73_000)
    said.limit.FromMilliseconds(60_000)
    said.evidence = "é" * LONGEST_EVIDENCE
    event = codec.event_from_proto(
        agent_pb2.AgentMessage(worker_hung=said), node="n", session="s", at=100_000
    )
    read = event.hang
    assert (read.since_ms, read.silent_ms, read.limit_ms, read.learned, read.stopped) == (
        27_000,
        73_000,
        60_000,
        True,
        True,
    )
    assert (len(read.section), read.step, len(read.where)) == (LONGEST_SECTION, codec.MOST_STEPS, 1_000)
    assert len(event.evidence.encode()) == LONGEST_EVIDENCE
    said.since_ns = 2**63
    with pytest.raises(ValueError, match="since boot can't be"):
        codec.event_from_proto(agent_pb2.AgentMessage(worker_hung=said), node="n", session="s", at=1)
    noted = codec.command_to_proto(NoteHang(key(0), 7, over=True), epoch=7).note_hang
    assert (noted.key, noted.since_ns, noted.over) == (codec.key_to_proto(key(0)), 7, True)


def test_who_hangs_and_who_is_slow_is_shown():
    cluster = running(2)
    cluster.hung(key(1), hang(where="wait", stopped=True))
    workers = cluster.state.workers_of(cluster.job())
    workers[0] = replace(workers[0], straggler=Straggler(4.5, 2))
    first, second = codec.job_to_proto(cluster.job(), [cluster.gang()], workers, {}).workers
    assert (first.HasField("hang"), first.straggler_score, first.strikes) == (False, 4.5, 2)
    assert (second.hang.section, second.hang.since.ToMilliseconds(), second.hang.limit.seconds) == (
        "step",
        T0,
        60,
    )
    assert (second.hang.where, second.hang.stopped, second.HasField("straggler_score")) == (
        "wait",
        True,
        False,
    )


RULES = [
    job_pb2.Rule(action=job_pb2.RULE_ACTION_FAIL),
    job_pb2.Rule(
        exit_codes=[job_pb2.CodeRange(first=3, last=9)],
        signals=[9, 11],
        kinds=[job_pb2.EXIT_KIND_OUT_OF_MEMORY],
        log="x+",
        section="eval",
        before_first_step=False,
        action=job_pb2.RULE_ACTION_EXCLUDE_NODE,
    ),
]


def test_rules_come_out_as_they_went_in():
    spec = codec.spec_from_proto(job_pb2.JobSpec(name="a", rules=RULES))
    assert list(codec.spec_to_proto(spec).rules) == RULES
    assert spec.rules[0].before_first_step is None
    assert spec.rules[1].before_first_step is False


def test_a_rule_without_an_action_tries_again():
    assert rule_codec.rule_from_proto(job_pb2.Rule()).action is Action.RETRY


def test_every_kind_and_action_has_its_number():
    assert len(ExitKind) == len(job_pb2.ExitKind.values()) - 1
    assert len(Action) == len(job_pb2.RuleAction.values()) - 1


@pytest.mark.parametrize(
    ("restart_ms", "stop_ms", "read"),
    [(None, None, 5_000), (None, 2_000, 2_000), (9_000, 2_000, 9_000), (0, None, 0)],
)
def test_the_grace_of_a_restart_is_no_longer_than_that_of_a_stop_unless_somebody_says_so(
    restart_ms, stop_ms, read
):
    spec = job_pb2.JobSpec(name="a")
    if restart_ms is not None:
        spec.restart.grace.FromMilliseconds(restart_ms)
    if stop_ms is not None:
        spec.stop_grace.FromMilliseconds(stop_ms)
    assert codec.spec_from_proto(spec).restart.grace_ms == read


def test_no_limit_is_not_the_default_limit():
    spec = job_pb2.JobSpec(name="a")
    assert codec.spec_from_proto(spec).restart.no_progress_limit == 3
    spec.restart.no_progress_limit = 0
    assert codec.spec_from_proto(spec).restart.no_progress_limit == 0


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"code": 1}, ExitKind.EXITED),
        ({"code": -1, "signal": 9}, ExitKind.SIGNALLED),
        ({"code": -1, "kind": job_pb2.EXIT_KIND_DISK_FULL}, ExitKind.DISK_FULL),
        ({"code": 1, "kind": 99}, ExitKind.EXITED),
    ],
)
def test_an_exit_is_read_also_from_an_agent_of_another_version(said, kind):
    assert rule_codec.exit_from_proto(agent_pb2.Exit(status=job_pb2.ExitStatus(**said))).kind is kind


def test_what_an_agent_says_of_an_exit_is_cut():
    said = agent_pb2.Exit(tail="x" * 20_000, matched_rules=range(1_000), ended_ns=2**62)
    said.status.line = "y" * 5_000
    ended, output = rule_codec.exit_from_proto(said), rule_codec.output_from_proto(said)
    assert (len(ended.line), ended.ended_ns) == (rule_codec.LONGEST_LINE, 0)
    assert (len(output.tail), len(output.matched)) == (rule_codec.LONGEST_TAIL, rule_codec.MOST_MATCHED)


def test_a_machines_clock_is_set_against_ours():
    hello = agent_pb2.Hello(node="a", monotonic_ns=700)
    assert codec.joined_from_proto(hello, session="s", at=1, at_ns=1_000_900).clock_offset_ns == 1_000_200
    assert codec.joined_from_proto(agent_pb2.Hello(), session="s", at=1).clock_offset_ns == 0
    assert codec.joined_from_proto(agent_pb2.Hello(monotonic_ns=-5), session="s", at=1).clock_offset_ns == 0


@pytest.mark.parametrize("restart", [True, False])
def test_survivors_are_told_that_it_is_a_restart(restart):
    message = codec.command_to_proto(
        StopWorkers((key(0),), force=False, reason="x", restart=restart), epoch=7
    )
    assert message.stop_workers.restart is restart


@pytest.mark.parametrize("at_step", [None, 0, 7])
def test_a_request_to_stop_is_written(at_step):
    asked = codec.command_to_proto(AskStop((key(0), key(1)), "job stop", 1_500, at_step), epoch=7).ask_stop
    assert [k.rank for k in asked.keys] == [0, 1]
    assert (asked.notice.reason, asked.notice.within_ms) == ("job stop", 1_500)
    assert (asked.notice.at_step if asked.notice.HasField("at_step") else None) == at_step


def said(**what):
    return codec.event_from_proto(agent_pb2.AgentMessage(**what), node="n", session="s", at=1)


def test_an_answer_is_read_and_the_want_of_one():
    which = codec.key_to_proto(key(0))
    answer = worker_pb2.StopAnswer(step=7, leaves=True)
    event = said(stop_answered=agent_pb2.StopAnswered(key=which, answer=answer))
    assert (event.key, event.step, event.leaves) == (key(0), 7, True)
    event = said(stop_answered=agent_pb2.StopAnswered(key=which))
    assert (event.step, event.leaves) == (None, False)
    huge = worker_pb2.StopAnswer(step=2**62)
    assert said(stop_answered=agent_pb2.StopAnswered(key=which, answer=huge)).step == codec.MOST_STEPS


def test_a_notice_is_read_alone_and_with_a_hello():
    notice = agent_pb2.NodeNotice(reason="spot notice" * 100)
    notice.within.FromMilliseconds(1_500)
    read = said(node_notice=notice).notice
    assert (len(read.reason), read.within_ms) == (codec.LONGEST_REASON, 1_500)
    hello = agent_pb2.Hello(node="n", instance_id="i")
    assert codec.joined_from_proto(hello, session="s", at=1).notice is None
    hello.notice.CopyFrom(notice)
    assert codec.joined_from_proto(hello, session="s", at=1).notice == read


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(0, 0), (3, 999_999_999), (315_576_000_000, 1), (-1, -999_999), (0, -1)]
)
def test_durations_are_read_as_protobuf_reads_them(seconds, nanos):
    duration = Duration(seconds=seconds, nanos=nanos)
    assert to_ms(duration) == duration.ToMilliseconds()
