# ruff: noqa: F401, F811  fixtures are imported by name
"""`holdfast job`: what it asks the coordinator, and what it prints."""

import json
import textwrap

import pytest
import yaml
from google.protobuf.json_format import ParseDict
from google.rpc import code_pb2

from holdfast.cli.exits import EXIT
from holdfast.v1 import job_pb2
from tests.client.fake_coordinator import status
from tests.client.scripted import ago, coordinator, holdfast, make_job

JOB = "k7m2p9xq4w"
SUCCEEDED = make_job(state=job_pb2.JOB_STATE_SUCCEEDED, reason="every rank exited with code 0")
FAILED = make_job(state=job_pb2.JOB_STATE_FAILED, reason="rank 1 on node n2: exit code 3")
STOPPED = make_job(state=job_pb2.JOB_STATE_STOPPED, reason="a user asked for it")


def lines(text):
    return textwrap.dedent(text).lstrip("\n")


def submitted(coordinator):
    (request,) = coordinator.asked("CreateJob")
    return request.spec


# submit


@pytest.fixture
def accepting(coordinator):
    coordinator.add_job(make_job())
    return coordinator


def test_submit_prints_the_id_and_nothing_else(accepting, holdfast):
    result = holdfast("job", "submit", "--", "true")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{JOB}\n", "")


def test_flags_say_everything(accepting, holdfast, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = (  # noqa: SIM905  as one types it
        "--name digits -n 4 --env A=b --env C=d=e --working-dir sub --restart-scope rank --backoff 250ms "
        "--backoff-cap 1m --restart-budget 0 --no-progress-limit 7 "
        "--restart-grace 9s --stop-grace 90s --cpus 1.5 --memory 2GiB --gpus 1 "
        "--checkpoint-dir ckpt --label team=vision --resume-from ./old --keep-last 3 --keep-every 100 "
        "--preload numpy,torch --preload a.b --spares 2 "
        r"--log-metric step=step=(\d+)"
    ).split()
    assert holdfast("job", "submit", *flags, "--", "python", "train.py", "--lr", "0.10").exit_code == 0
    want = job_pb2.JobSpec(
        name="digits",
        command=["python", "train.py", "--lr", "0.10"],
        world_size=4,
        env={"A": "b", "C": "d=e"},
        working_dir=str(tmp_path / "sub"),
        resources=job_pb2.Resources(cpus=1.5, memory_bytes=2 * 2**30, gpus=1),
        checkpoint_uri=str(tmp_path / "ckpt"),
        labels={"team": "vision"},
        resume_from=str(tmp_path / "old"),
        retention=job_pb2.RetentionPolicy(keep_last=3, keep_every=100),
        preload=["numpy", "torch", "a.b"],
        spares=2,
        log_metrics={"step": r"step=(\d+)"},
    )
    want.stop_grace.FromSeconds(90)
    want.restart.scope = job_pb2.RESTART_SCOPE_RANK
    want.restart.backoff.FromMilliseconds(250)
    want.restart.backoff_cap.FromSeconds(60)
    want.restart.budget = 0
    want.restart.no_progress_limit = 7
    want.restart.grace.FromSeconds(9)
    assert submitted(accepting) == want


def test_a_value_that_nobody_is_to_read_on_a_command_line(accepting, holdfast, monkeypatch):
    monkeypatch.setenv("TOKEN", "se=cret")
    assert holdfast("job", "submit", "--env", "TOKEN", "--env", "A=", "train").exit_code == 0
    assert dict(submitted(accepting).env) == {"TOKEN": "se=cret", "A": ""}


def test_without_flags_the_defaults_are_the_coordinators(accepting, holdfast, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    holdfast("job", "submit", "--", "python", "-m", "train")
    assert submitted(accepting) == job_pb2.JobSpec(
        name="python", command=["python", "-m", "train"], world_size=1, working_dir=str(tmp_path)
    )


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python", "/x/train.py"], "train"),
        (["./my job.sh"], "my-job"),
        (["/usr/bin/true"], "true"),
        (["..."], "job"),
    ],
)
def test_a_job_without_a_name_is_named_after_its_program(accepting, holdfast, command, name):
    holdfast("job", "submit", "--", *command)
    assert submitted(accepting).name == name


def test_the_commands_own_flags_are_left_alone(accepting, holdfast):
    """With or without the two dashes, as under torchrun."""
    holdfast("job", "submit", "-n", "2", "train", "-n", "7", "--wait")
    spec = submitted(accepting)
    assert (spec.world_size, list(spec.command)) == (2, ["train", "-n", "7", "--wait"])


def test_flags_win_over_the_file(accepting, holdfast, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("name: a\ncommand: [train]\nworld_size: 2\nenv: {A: file, B: file}\nstop_grace: 5s\n")
    holdfast("job", "submit", "-f", str(file), "-n", "8", "--env", "A=flag")
    spec = submitted(accepting)
    assert (spec.name, list(spec.command), spec.world_size) == ("a", ["train"], 8)
    assert dict(spec.env) == {"A": "flag", "B": "file"}
    assert spec.stop_grace.seconds == 5


def test_a_file_that_can_not_be_is_refused_before_anybody_is_asked(
    coordinator, holdfast, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text("command: [train]\nrestart:\n  budgett: 3\n")
    result = holdfast("job", "submit", "-f", "job.yaml")
    assert result.exit_code == EXIT.USAGE
    assert result.stderr == 'Error: job.yaml:3: restart.budgett: unknown key; did you mean "budget"?\n'
    assert coordinator.requests == []


def test_a_job_file_that_is_given_as_a_command_is_none(coordinator, holdfast):
    result = holdfast("job", "submit", "job.yaml")
    assert result.exit_code == EXIT.USAGE
    assert result.stderr == "Error: job.yaml is a job file and no command; write -f job.yaml\n"
    assert coordinator.requests == []


def test_what_the_coordinator_refuses_is_told_beside_its_line_or_flag(
    coordinator, holdfast, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(
        "command: [train]\nworld_size: 0\nenv:\n  A-B: x\nrestart:\n  jitter: 7\n"
    )
    wrong = [
        ("world_size", "0 is not between 1 and 100000"),
        ("env.A-B", "is no name of an environment variable"),
        ("env.C-D", "is no name of an environment variable"),
        ("restart.jitter", "7 is not between 0 and 1"),
        ("resources.memory_bytes", "-1 is negative; give 0 or more"),
    ]
    refused = status(code_pb2.INVALID_ARGUMENT, "the job can't be", violations=wrong)
    coordinator.fail("CreateJob", refused, refused)
    result = holdfast("job", "submit", "-f", "job.yaml", "--env", "C-D=x")
    assert result.exit_code == EXIT.USAGE
    assert result.stderr == lines("""
        Error: job.yaml:2: world_size: 0 is not between 1 and 100000
        job.yaml:4: env.A-B: is no name of an environment variable
        --env C-D: is no name of an environment variable
        job.yaml:6: restart.jitter: 7 is not between 0 and 1
        --memory: -1 is negative; give 0 or more
    """)
    result = holdfast("job", "submit", "-f", "job.yaml", "-n", "0")
    assert "Error: --world-size: 0 is not between 1 and 100000\n" in result.stderr


def test_a_module_that_is_refused_is_told_beside_its_line_or_flag(coordinator, holdfast, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("command: [train]\npreload:\n- numpy\n- 1x\n")
    refused = status(code_pb2.INVALID_ARGUMENT, "", violations=[("preload.1", "is no name of a module")])
    coordinator.fail("CreateJob", refused, refused)
    told = holdfast("job", "submit", "-f", str(job)).stderr
    assert told == f"Error: {job}:4: preload.1: is no name of a module\n"
    told = holdfast("job", "submit", "--preload", "numpy,1x", "--", "train").stderr
    assert told == "Error: --preload: is no name of a module\n"


@pytest.mark.parametrize(
    ("ended", "code"), [(SUCCEEDED, EXIT.OK), (FAILED, EXIT.FAILED), (STOPPED, EXIT.STOPPED)]
)
def test_submit_and_wait(accepting, holdfast, ended, code):
    accepting.watched = [make_job(), ended]
    result = holdfast("job", "submit", "--wait", "--", "true")
    assert result.exit_code == code
    assert result.stdout == f"{JOB}\n"
    assert ended.reason in result.stderr


def test_waiting_ends_when_the_time_is_over(accepting, holdfast):
    accepting.watched = [make_job()]
    accepting.hold.clear()
    result = holdfast("job", "submit", "--wait", "--timeout", "200ms", "--", "true")
    assert result.exit_code == EXIT.TIMEOUT
    assert result.stderr == f"Error: job {JOB} has not ended within the timeout; it goes on\n"


# list, get, summary


TWO_JOBS = (make_job(), make_job("aa", job_pb2.JOB_STATE_SUCCEEDED, reason="every rank exited with code 0"))


def test_list_as_a_table(coordinator, holdfast):
    for job in TWO_JOBS:
        coordinator.add_job(job)
    assert holdfast("job", "list").stdout == lines("""
        JOB         NAME    STATE      WORKERS  RESTARTS  COMMITTED  AGE
        k7m2p9xq4w  digits  running    2        1         200        5h
        aa          digits  succeeded  2        1         200        5h
    """)


def test_list_as_a_wide_table(coordinator, holdfast):
    for job in TWO_JOBS:
        coordinator.add_job(job)
    assert holdfast("job", "list", "-o", "wide").stdout == lines("""
        JOB         NAME    STATE      WORKERS  RESTARTS  COMMITTED  AGE  SCOPE  REASON
        k7m2p9xq4w  digits  running    2        1         200        5h   rank   2 of 2 workers are up
        aa          digits  succeeded  2        1         200        5h   rank   every rank exited with code 0
    """)


def test_list_as_names(coordinator, holdfast):
    for job in TWO_JOBS:
        coordinator.add_job(job)
    assert holdfast("job", "list", "-o", "name").stdout == "k7m2p9xq4w\naa\n"


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_list_as_data_is_the_protos_own_form(coordinator, holdfast, form, load):
    for job in TWO_JOBS:
        coordinator.add_job(job)
    data = load(holdfast("job", "list", "-o", form).stdout)
    assert ParseDict(data, job_pb2.ListJobsResponse()).jobs == list(TWO_JOBS)


def test_an_empty_list(coordinator, holdfast):
    assert holdfast("job", "list", "-o", "json").stdout == '{\n  "jobs": []\n}\n'
    assert holdfast("job", "list", "-o", "name").stdout == ""
    assert holdfast("job", "list").stdout == "JOB  NAME  STATE  WORKERS  RESTARTS  COMMITTED  AGE\n"


def test_list_filters(coordinator, holdfast):
    holdfast("job", "list", "--state", "failed", "--state", "stopped", "--name", "digits")
    (request,) = coordinator.asked("ListJobs")
    states = [job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_STOPPED]
    assert request.filter == job_pb2.JobFilter(states=states, name="digits")


def test_get_as_a_table(coordinator, holdfast):
    coordinator.add_job(make_job())
    assert holdfast("job", "get", JOB).stdout == lines("""
        k7m2p9xq4w  digits  running: 2 of 2 workers are up
        restarts 1, last committed step 200, created 5h ago

        RANK  STATE    NODE  PID   ATTEMPT  STEP  LAST EXIT
        0     running  n1    4001  1        212   -
        1     running  n2    4102  2        -     killed by SIGKILL
    """)


def test_get_as_a_wide_table(coordinator, holdfast):
    coordinator.add_job(make_job())
    assert holdfast("job", "get", JOB, "-o", "wide").stdout.endswith(
        lines("""
        RANK  STATE    NODE  PID   ATTEMPT  STEP  SECTION  HANGS  SLOW  METRICS    LAST EXIT
        0     running  n1    4001  1        212   step     -      -     loss=0.25  -
        1     running  n2    4102  2        -     setup    -      -     -          killed by SIGKILL
        """)
    )


def test_who_hangs_and_who_is_slow_is_shown(coordinator, holdfast):
    job = make_job()
    job.workers[0].hang.MergeFrom(
        job_pb2.Hang(section="step", since=ago(3 * 60), where="wait (x.py:3)", stopped=True)
    )
    job.workers[0].strikes = 2
    job.workers[1].straggler_score = 4.25
    job.workers[1].strikes = 1
    coordinator.add_job(job)
    assert "0     running, hangs  n1" in holdfast("job", "get", JOB).stdout
    wide = holdfast("job", "get", JOB, "-o", "wide").stdout
    assert "step for 3m, in wait (x.py:3), stopped by a signal  - (2 strikes)   loss" in wide
    assert "4.2 (1 strike)" in wide


def test_get_as_json_shows_each_worker(coordinator, holdfast):
    job = coordinator.add_job(make_job())
    data = json.loads(holdfast("job", "get", JOB, "-o", "json").stdout)
    assert ParseDict(data, job_pb2.Job()) == job
    assert data["state"] == "JOB_STATE_RUNNING"
    assert (data["restarts"], data["lastCommittedStep"]) == (1, "200")
    first, second = data["workers"]
    assert {"rank", "node", "pid", "state", "attempt", "step"} <= first.keys()
    assert first["rank"] == 0  # zeros are written too
    assert "step" not in second  # what is absent is not


def test_what_programs_wrote_does_not_steer_the_terminal(coordinator, holdfast):
    coordinator.add_job(make_job(reason="\x1b[2J\x1b]0;title\x07rank 1: \x9bboo\x08"))
    out = holdfast("job", "get", JOB).stdout
    assert "running: rank 1: boo\n" in out
    assert "\x1b" not in out


SUMMARY = job_pb2.JobSummary(
    job_id=JOB,
    name="digits",
    state=job_pb2.JOB_STATE_SUCCEEDED,
    reason="every rank exited with code 0",
    world_size=4,
    restarts=1,
    steps=800,
    last_committed_step=800,
    steps_redone=12,
    steps_per_second=431.25,
    goodput=0.915,
    time_seconds={"kept": 7.7, "setup": 0.5, "redone": 0.2, "waiting": 0.01},
    total_steps=1_000,
    metrics={"loss": 0.125},
)
SUMMARY.elapsed.FromMilliseconds(8_400)
SUMMARY.time_left.FromSeconds(600)


def test_summary_as_a_table(coordinator, holdfast):
    coordinator.summary = SUMMARY
    assert [line.rstrip() for line in holdfast("job", "summary", JOB).stdout.splitlines() if line] == [
        "state               succeeded",
        "why                 every rank exited with code 0",
        "workers             4",
        "steps               800 of 1000",
        "steps/s, all ranks  431.2",
        "restarts            1",
        "steps redone        12",
        "committed step      800",
        "elapsed             8.4 s",
        "time left           10m",
        "goodput             91.5%",
        "time went into      kept 91.6%, setup 5.9%, redone 2.4%",
        "metrics             loss=0.125",
    ]


def test_summary_of_a_job_that_reports_no_steps(coordinator, holdfast):
    coordinator.summary = job_pb2.JobSummary(job_id=JOB, state=job_pb2.JOB_STATE_RUNNING)
    out = holdfast("job", "summary", JOB).stdout
    for name in ("steps", "steps/s, all ranks", "committed step", "goodput"):
        assert f"\n{name.ljust(18)}  -\n" in out


def test_summary_as_data(coordinator, holdfast):
    coordinator.summary = SUMMARY
    data = json.loads(holdfast("job", "summary", JOB, "-o", "json").stdout)
    assert ParseDict(data, job_pb2.JobSummary()) == SUMMARY


# watch, stop, delete


@pytest.mark.parametrize(
    ("ended", "code"), [(SUCCEEDED, EXIT.OK), (FAILED, EXIT.FAILED), (STOPPED, EXIT.STOPPED)]
)
def test_watch_prints_what_changes_and_ends_with_the_job(coordinator, holdfast, ended, code):
    coordinator.add_job(make_job())
    pending = make_job(state=job_pb2.JOB_STATE_PENDING, reason="waits for room: 2 slots of 4")
    coordinator.watched = [pending, make_job(), make_job(restarts=2), ended]
    result = holdfast("job", "watch", JOB)
    assert result.exit_code == code
    *before, last = result.stdout.splitlines()
    assert before == ["pending: waits for room: 2 slots of 4", "running: 2 of 2 workers are up"]
    assert last.endswith(ended.reason)


def test_watch_for_a_while(coordinator, holdfast):
    coordinator.add_job(make_job())
    coordinator.watched = [make_job()]
    coordinator.hold.clear()
    assert holdfast("job", "watch", JOB, "--timeout", "200ms").exit_code == EXIT.TIMEOUT


@pytest.mark.parametrize("force", [False, True])
def test_stop(coordinator, holdfast, force):
    coordinator.add_job(make_job(state=job_pb2.JOB_STATE_STOPPING))
    result = holdfast("job", "stop", JOB, *(["--force"] if force else []))
    assert (result.exit_code, result.stdout) == (0, "")
    assert coordinator.asked("StopJob") == [job_pb2.StopJobRequest(job_id=JOB, force=force)]


@pytest.mark.parametrize(("ended", "code"), [(STOPPED, EXIT.OK), (SUCCEEDED, EXIT.OK), (FAILED, EXIT.FAILED)])
def test_stop_and_wait(coordinator, holdfast, ended, code):
    coordinator.add_job(make_job())
    coordinator.watched = [ended]
    assert holdfast("job", "stop", "--wait", JOB).exit_code == code


def test_delete(coordinator, holdfast):
    coordinator.add_job(make_job("aa"))
    coordinator.add_job(make_job("bb"))
    assert holdfast("job", "delete", "aa", "bb").exit_code == 0
    assert sorted(request.job_id for request in coordinator.asked("DeleteJob")) == ["aa", "bb"]


def test_what_is_not_deleted_is_told(coordinator, holdfast):
    coordinator.add_job(make_job("aa"))
    running = status(code_pb2.FAILED_PRECONDITION, "job aa is running", remedy="stop it first")
    coordinator.fail("DeleteJob", running)
    result = holdfast("job", "delete", "aa")
    assert result.exit_code == EXIT.FAILED
    assert result.stderr == "Error: job aa is running; stop it first\n"


@pytest.mark.parametrize("command", ["get", "watch", "logs", "stop", "delete"])
def test_no_such_job(coordinator, holdfast, command):
    result = holdfast("job", command, "nope")
    assert result.exit_code == EXIT.NOT_FOUND
    assert result.stderr == "Error: there is no job nope; list the jobs to see their ids\n"


def test_a_degraded_job_says_so_wherever_it_is_looked_at(coordinator, holdfast):
    coordinator.add_job(make_job(degraded=True))
    shown = holdfast("job", "get", JOB).stdout
    assert "degraded: files of the newest checkpoint lie on their nodes alone" in shown
    coordinator.summary = job_pb2.JobSummary(degraded_commits=3, degraded=True)
    rows = holdfast("job", "summary", JOB).stdout.splitlines()
    assert "degraded checkpoints  3, the newest still is" in [row.rstrip() for row in rows]
    over = make_job(state=job_pb2.JOB_STATE_SUCCEEDED, reason="every rank exited with code 0", degraded=True)
    coordinator.watched = [over]
    assert holdfast("job", "watch", JOB).stdout == "succeeded, degraded: every rank exited with code 0\n"


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("table", ["running: 2 of 2 workers are up", "succeeded: all done"]),
        ("name", ["running", "succeeded"]),
    ],
)
def test_watching_in_each_form(coordinator, holdfast, form, shown):
    coordinator.add_job(make_job())
    coordinator.watched = [make_job(), make_job(state=job_pb2.JOB_STATE_SUCCEEDED, reason="all done")]
    assert holdfast("job", "watch", JOB, "-o", form).stdout.splitlines() == shown


@pytest.mark.parametrize("verb", [["watch"], ["get", "--watch"], ["summary", "--watch"]])
def test_every_change_is_a_line_of_json_or_a_document_of_yaml(coordinator, holdfast, verb):
    coordinator.add_job(make_job())
    coordinator.watched = [make_job(), make_job(state=job_pb2.JOB_STATE_SUCCEEDED)]
    coordinator.summary = job_pb2.JobSummary(job_id=JOB, state=job_pb2.JOB_STATE_RUNNING)
    found = [json.loads(line) for line in holdfast("job", *verb, JOB, "-o", "json").stdout.splitlines()]
    assert [each["state"] for each in found].count("JOB_STATE_RUNNING") >= 1
    assert len(found) == 2
    assert list(yaml.safe_load_all(holdfast("job", *verb, JOB, "-o", "yaml").stdout)) == found


@pytest.mark.parametrize("verb", ["get", "summary"])
def test_watching_prints_tables_one_after_the_other_where_there_is_no_terminal(coordinator, holdfast, verb):
    coordinator.add_job(make_job())
    coordinator.watched = [make_job(), make_job(state=job_pb2.JOB_STATE_SUCCEEDED)]
    once = holdfast("job", verb, JOB).stdout
    done = holdfast("job", verb, JOB, "--watch")
    assert done.exit_code == EXIT.OK
    assert "\x1b" not in done.stdout
    if verb == "summary":
        assert done.stdout == f"{once}\n{once}"
    else:
        assert done.stdout.startswith(f"{once}\n")
