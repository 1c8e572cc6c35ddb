"""What a coordinator tells Prometheus: what it counts, and that its series are bounded; what is written about it."""

import json
import re
from pathlib import Path

import pytest
import yaml

import holdfast_agent.metrics
from holdfast.exposition import render
from holdfast_coordinator import metrics
from holdfast_coordinator.clock import Clock
from holdfast_coordinator.core.effects import Append, Delete, Put
from holdfast_coordinator.core.jobspec import JobSpec
from holdfast_coordinator.core.model import (
    Commit,
    Desired,
    Entry,
    Gang,
    Job,
    JobState,
    Prepared,
    Worker,
    WorkerState,
)
from holdfast_coordinator.core.state import Settings, State
from holdfast_coordinator.engine import Engine
from holdfast_coordinator.measures import Measures
from holdfast_coordinator.recorder import Recorder
from holdfast_coordinator.store.memory import MemoryStore
from holdfast_coordinator.store.sqlite_points import SqlitePoints
from tests import promtool
from tests.core.builders import shard

ROOT = Path(__file__).parents[2]
ALL = {each.name: each for each in (*metrics.ALL, *holdfast_agent.metrics.ALL)}


@pytest.fixture
async def exporter(tmp_path):
    """Of an engine that does not run."""
    engine = Engine(MemoryStore(), Settings(), Clock())
    return metrics.Exporter(engine, Recorder(engine, SqlitePoints(tmp_path)))


def fleet_of(live, over):
    state = State()
    for number in range(live + over):
        is_live = number < live
        job_state = JobState.RUNNING if is_live else JobState.SUCCEEDED
        worker_state = WorkerState.RUNNING if is_live else WorkerState.SUCCEEDED
        job_id, spec = f"j{number}", JobSpec(f"name-{number}", ("train",), 1)
        state.put(Job(job_id, "", spec, Desired.RUNNING, job_state, "", created_ms=number))
        state.put(Gang(job_id, 0))
        state.put(Worker(job_id, 0, 0, worker_state))
    return state


async def test_ten_thousand_jobs_have_a_bounded_number_of_series(exporter, monkeypatch):
    monkeypatch.setattr(metrics, "MOST_JOBS", 100)  # a test reads more slowly than Prometheus
    found = exporter._own() + exporter._of_state(fleet_of(1_000, 9_000))
    families = promtool.check(render(found).decode())
    assert set(families) >= {each.name for each in metrics.ALL}
    for name, family in families.items():
        bound = metrics.MOST_JOBS if name.startswith("holdfast_job_") else 100
        assert len(family.samples) <= bound, name
    states = {sample.labels["state"]: sample.value for sample in families["holdfast_jobs"].samples}
    assert (states["running"], states["succeeded"]) == (1_000, 9_000)
    (workers,) = (s for s in families["holdfast_workers"].samples if s.labels["state"] == "succeeded")
    assert workers.value == 0  # of live jobs alone
    assert families["holdfast_jobs_left_out"].samples[0].value == 900
    shown = {sample.labels["job_id"] for sample in families["holdfast_job_info"].samples}
    assert shown == {f"j{number}" for number in range(metrics.MOST_JOBS)}  # the oldest keep theirs


async def test_a_new_leader_counts_no_steps_before_it_knows_them(exporter):
    """A sum without a rank that runs would look like a counter that begins anew."""
    found = dict(exporter._of_state(fleet_of(1, 0)))
    assert found[metrics.JOB_STEPS] == {}
    assert found[metrics.JOB_RESTARTS] == {("j0",): 0}


async def test_while_the_engine_does_not_answer_its_own_counts_are_told(exporter):
    families = promtool.check(render(await exporter.collect()).decode())
    assert families["holdfast_coordinator_leading"].samples[0].value == 0
    assert "holdfast_jobs" not in families


def test_restarts_are_told_apart():
    measures, state = Measures(), State()
    state.put(Gang("old", 0, restarts=5, streak=(1,)))
    measures.begin(state)
    measures.note([Put(Gang("old", 0, restarts=5, streak=(1,)))], 0)
    assert dict(measures.restarts) == {"charged": 0, "free": 0}
    measures.note([Put(Gang("old", 0, restarts=6, streak=(1, 2))), Put(Gang("new", 0))], 0)
    measures.note([Put(Gang("old", 0, restarts=7, streak=(1, 2)))], 0)
    measures.note([Put(Gang("old", 0, restarts=8, streak=()))], 0)
    measures.note([Put(Gang("new", 0, restarts=1, streak=(3,)))], 0)
    assert dict(measures.restarts) == {"charged": 2, "free": 2}


def test_commits_and_how_long_they_took():
    measures = Measures()
    first, second = (Prepared("a", 0, rank, 1, 10, shard(rank)) for rank in range(2))
    measures.note([Put(first)], 1_000)
    measures.note([Put(second)], 2_000)
    commit = Commit("a", 0, 10, 1, 2_500, None, 2, (shard(0), shard(1)))
    measures.note([Append(commit), Append(Entry(1, 2_500, "CheckpointCommitted", ""))], 2_500)
    assert (measures.commits, measures.checkpoint_s.sum, sum(measures.checkpoint_s.counts)) == (1, 1.5, 1)
    assert measures.events == {"CheckpointCommitted": 1}
    measures.note([Put(first), Delete(Gang("a", 0))], 3_000)
    assert measures._preparing == {}


def test_the_page_lists_every_metric():
    page = (ROOT / "docs/metrics.md").read_text()
    written = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) \| (.*) \|$", page, re.MULTILINE)
    described = [(each.name, each.kind, ", ".join(each.labels), each.text) for each in ALL.values()]
    assert written == described
    told = set(re.findall(r"`(process_\w+)`", page))
    assert told == {name for name in promtool.check(render([]).decode()) if name.startswith("process_")}


def unknown(expression):
    """Names in a PromQL expression that no metric or label of ours has."""
    names = set(re.findall(r"\b(?:holdfast|process)_\w+", expression))
    histograms = {name for name, each in ALL.items() if each.kind == "histogram"}
    wrong = {
        name
        for name in names
        if name not in ALL
        and re.sub("_(bucket|sum|count)$", "", name) not in histograms
        and not name.startswith("process_")
    }
    labels = set(re.findall(r"[{,]\s*(\w+)\s*[=!]", expression))
    labels |= {
        one
        for group in re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", expression)
        for one in group.split(", ")
    }
    known = {label for each in ALL.values() for label in each.labels} | {"le", "instance"}
    return wrong | (labels - known)


def test_the_dashboard_shows_what_there_is():
    board = json.loads((ROOT / "k8s/grafana-dashboard.json").read_text())
    targets = [target for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(targets) > 20
    assert {target["expr"]: found for target in targets if (found := unknown(target["expr"]))} == {}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    shown = {name for target in targets for name in re.findall(r"\bholdfast_\w+", target["expr"])}
    assert {name for name in shown if name.startswith("holdfast_job_")}


def test_alerts_are_about_what_there_is():
    groups = yaml.safe_load((ROOT / "k8s/alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["alert"]: found for rule in rules if (found := unknown(rule["expr"]))} == {}
    assert len({rule["alert"] for rule in rules}) == len(rules)
    remedies = (ROOT / "docs/operations.md").read_text()
    for rule in rules:
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert f"\n### {rule['alert']}\n\n" in remedies
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        text = f"{rule['annotations']}"
        used = set(re.findall(r"\$labels\.(\w+)", text))
        names = re.findall(r"\bholdfast_\w+", rule["expr"])
        assert used <= {
            "instance",
            *(label for name in names for label in ALL[re.sub("_bucket$", "", name)].labels),
        }


def test_a_wrong_name_is_found():
    assert unknown('rate(holdfast_job_stepz_total{jobid="a"}[1m])') == {"holdfast_job_stepz_total", "jobid"}
