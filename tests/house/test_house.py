"""The house style that no linter knows."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import __version__
from holdfast.spec import SpecFile

ROOT = Path(__file__).parents[2]
PACKAGES = ("client", "coordinator", "agent", "gateway")
SOURCES = sorted(
    path
    for top in (*PACKAGES, "examples", "benchmarks", "docs", "scripts")
    for path in (ROOT / top).rglob("*.py")
    if ROOT / "client/holdfast/v1" not in path.parents
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FUNCTION_LINES = 70
FILE_LINES = 600
LEFT = re.compile("# *(todo|fixme|xxx)", re.IGNORECASE)


@pytest.fixture(scope="module")
def texts():
    """Every file in Python, by its path."""
    return {str(path.relative_to(ROOT)): path.read_text() for path in (*SOURCES, *TESTS)}


# One test for a rule, not one for each of hundreds of files: these would take longer to begin than to run.


def test_files_are_short(texts):
    assert len(texts) > 400
    assert not [path for path, text in texts.items() if len(text.splitlines()) >= FILE_LINES]


def functions(node):
    """All below a node, at whatever depth. Expressions, which are most of a tree, have none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        if not isinstance(child, ast.expr):
            yield from functions(child)


def test_functions_are_short(texts):
    long = []
    for path, text in texts.items():
        for function in functions(ast.parse(text)):
            lines = function.end_lineno - function.lineno + 1
            if lines >= FUNCTION_LINES:
                long.append(f"{path}: {function.name} has {lines} lines")
    assert not long


@pytest.mark.parametrize("directory", ["proto", "client", "coordinator", "agent", "gateway"])
def test_directories_that_hold_packages_are_none(directory):
    assert not (ROOT / directory / "__init__.py").exists()


def test_what_is_left_to_do_has_an_issue(texts):
    assert not [
        f"{path}:{number} names no issue: {line.strip()}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if LEFT.search(line) and not re.search(r"issue \d+", line)
    ]


SPELL_THE_VERSION = {
    "client/holdfast/__init__.py": "the one place",
    "CHANGELOG.md": "by its headings",
    "k8s/base/kustomization.yaml": "which can take it from nowhere; tests/deploy holds it to the one place",
}


def test_the_version_is_spelled_in_one_place():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name and not name.endswith("lock.json")]
    spelled = re.compile(rf"(?<![\d.]){re.escape(__version__)}(?![\d.]*\d)".encode())
    found = {n for n in names if (ROOT / n).is_file() and spelled.search((ROOT / n).read_bytes())}
    assert found == set(SPELL_THE_VERSION)


def test_the_changelog_begins_with_this_version():
    newest = re.search(r"^## (\S+?)(?:,.*)?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == __version__


def script(path):
    """One that is in no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


README_NEEDS = """
import numpy as np
arrays = np.ones((640, 4)), np.ones(640)
def make_state():
    return {"sum": np.zeros(4)}
def train(state, x, y):
    state["sum"] += x.sum(axis=0)
    return y.mean()
"""


def test_the_program_in_the_readme_runs(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", README_NEEDS + program], cwd=tmp_path, check=True)
    (latest,) = tmp_path.rglob("LATEST")
    assert latest.read_text() == "step-0000000100\n"


def test_the_job_file_in_the_quickstart_is_one(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/quickstart.md").read_text(), re.DOTALL)
    (tmp_path / "job.yaml").write_text(text)
    assert SpecFile(tmp_path / "job.yaml").part.to_proto().world_size == 4


def test_the_blocking_client_is_what_the_asyncio_one_says():
    blocking = script("scripts/blocking.py")
    assert blocking.MADE.read_text() == blocking.generated(), "run `make client`"


def test_generated_code_is_what_the_protos_say(tmp_path):
    """The command is that of `make proto`."""
    scripts = Path(sys.executable).parent
    protos = sorted(ROOT.glob("proto/holdfast/v1/*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    plugins = [f"--plugin=protoc-gen-{name}={scripts}/protoc-gen-{name}" for name in ("mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", *plugins, *outputs]
    command += [str(proto.relative_to(ROOT)) for proto in protos]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*_pb2*")}
    committed = ROOT / "client"
    there = {path.relative_to(committed): path.read_bytes() for path in committed.rglob("*_pb2*.py*")}
    there = {path: content for path, content in there.items() if path.suffix in (".py", ".pyi")}
    assert sorted(made) == sorted(there)
    differ = [str(path) for path in made if made[path] != there[path]]
    assert not differ, f"run `make proto`: {differ}"
