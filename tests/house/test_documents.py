"""What documents say of the code is what the code says."""

import re

import pytest

from docs.generate import diagrams, pages, variables
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
