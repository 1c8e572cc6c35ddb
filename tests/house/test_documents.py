"""What documents say of the code is what the code says."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from docs.generate import diagrams, grpc_page, job_spec, pages, protos, variables
from holdfast.spec import SpecError, SpecFile
from holdfast_coordinator import codec
from holdfast_coordinator.core.jobspec import DataShard
from holdfast_coordinator.core.validate import violations
from holdfast_gateway.app import description
from tests.client.scripted import run
from tests.house.test_house import PACKAGES, ROOT

OURS = re.compile(
    r"""["']((?:HOLDFAST|S3|TORCHELASTIC|MASTER|OTEL|AWS)_[A-Z0-9_]+|USE_S3|(?:\w+_)?(?:RANK|WORLD_SIZE))["']"""
)
INTERNAL = {"HOLDFAST_ZYGOTE", "HOLDFAST_ROOM"}
"""Between an agent and what it forks; gone before a program begins."""


@pytest.mark.parametrize("page", pages.PAGES)
def test_what_is_generated_is_what_the_code_says(page):
    text = (pages.DOCS / page).read_text()
    assert pages.PAGES[page](text) == text, "run `make docs`"


def test_every_table_has_its_diagram():
    page = (pages.DOCS / "architecture.md").read_text()
    assert [name for name, table in diagrams.TABLES.items() if diagrams.diagram(table) not in page] == []


def test_every_variable_that_the_code_has_is_a_documented_one():
    read = set()
    for top in PACKAGES:
        for path in (ROOT / top).rglob("*.py"):
            if "v1" not in path.parts:
                read.update(OURS.findall(path.read_text()))
    named = {found.name for found in variables.EVERY}
    page = (pages.DOCS / "settings.md").read_text()
    assert [name for name in sorted(read - INTERNAL) if f"`{name}`" not in page] == []
    of_others = ("NO_", "XDG_", "CUDA_", "PYTHON", "OMP_", "TRACEPARENT")
    assert sorted(name for name in named - read if not name.startswith(of_others)) == []


def test_the_file_in_the_settings_page_is_one(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (pages.DOCS / "settings.md").read_text(), re.DOTALL)
    path = tmp_path / "holdfast.yaml"
    path.write_text(text)
    for daemon, line in (("coordinator", 2), ("agent", 8), ("gateway", 10)):
        done = run(daemon, "--config", str(path), "--show-settings")
        assert f"{path}:{line}\n" in done.stdout


def test_everything_that_clients_see_in_the_protos_says_what_it_means():
    silent = []
    for file in protos.read().values():
        silent += [s.name for s in file.services if not s.comment]
        silent += [m.name for s in file.services for m in s.methods if not m.comment]
        for part in file.parts:
            if not part.comment and not part.name.endswith(("Request", "Response", "Message", "Reply")):
                silent.append(part.name)
            if isinstance(part, protos.Message):
                said = {
                    field.name: grpc_page.meaning(field.name, field.of, field.comment)
                    for field in part.fields
                }
            else:
                said = {value.name: value.comment for value in part.values if value.number}
            silent += [f"{part.name}.{name}" for name, meaning in said.items() if not meaning]
    assert silent == [], "write comments, in the proto"


def refused(path, **values):
    """What of a job file with these keys is refused, as the command line and then the coordinator would."""
    try:
        lines = [f"name: {values.pop('name', 'x')}", f"command: {values.pop('command', '[x]')}"]
        for key, value in values.items():
            top, dot, below = key.partition(".")
            start = (
                f"{top}:\n  {'- ' if top == 'rules' else ''}" if f"{top}:" not in "\n".join(lines) else "  "
            )
            start = start if top != "rules" or "- " in start else "    "
            lines.append(f"{start}{below}: {value}" if dot else f"{key}: {value}")
        part = SpecFile(path, "\n".join(lines).encode()).part
    except SpecError as error:
        return str(error)
    datasets = part.datasets
    spec = codec.spec_from_proto(part.to_proto())
    counted = [replace(found, shards=(DataShard("a.npy", 1, 1, ""),)) for found in spec.datasets]
    return violations(replace(spec, datasets=tuple(counted) if datasets else ()))


BESIDE = {
    "spares": {"preload": "[a]"},
    "retention.best": {"retention.metric": "loss"},
    "retention.metric": {"retention.best": "1"},
}
"""What a key is nothing without."""


def test_the_reference_of_the_job_spec_has_each_key_and_a_bound_that_is_one():
    paths = [path for path, _ in job_spec.leaves()]
    assert list(job_spec.KEYS) == paths, "docs/generate/job_spec.py says of each key what only a person knows"
    where = Path("job.yaml")
    for path, part in job_spec.leaves():
        if part is not None:
            continue
        beside = BESIDE.get(path, {})
        if path.startswith("rules.") and path != "rules.action":
            beside = {"rules.action": "fail"}
        key = job_spec.KEYS[path]
        assert not refused(where, **beside, **{path: key.good}), path
        for bad in key.bad:
            assert refused(where, **beside, **{path: bad}), f"{path}: {bad}"
    (text,) = re.findall(r"```yaml\n(.*?)```", (pages.DOCS / "reference/job-spec.md").read_text(), re.DOTALL)
    assert SpecFile(where, text.encode()).part.to_proto().spares == 2


def test_every_route_and_parameter_of_the_gateway_says_what_it_is():
    for path, operations in description()["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], f"{method} {path}"
            for parameter in operation.get("parameters", []):
                assert parameter["in"] == "path" or parameter["description"], f"{path}: {parameter['name']}"
            kinds = operation["responses"][min(operation["responses"])].get("content", {})
            assert len(kinds) < 2, f"{method} {path} gives one form of answer"
