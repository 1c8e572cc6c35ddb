"""A test that needs a program which is not there is skipped, or fails where it has to run: see tests/needs.py."""

import pytest

from tests.needs import NAMES, VARIABLE, need


@pytest.fixture(params=NAMES)
def program(request, tmp_path, monkeypatch):
    """One that is looked for where only a test puts something."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.delenv(VARIABLE, raising=False)
    return request.param


def put(folder, name, version="v20.1.0"):
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return str(path)


def test_what_is_found_is_named(program, tmp_path):
    put(tmp_path, "npm")
    path = put(tmp_path, program)
    assert need(program) == path


def test_what_is_not_found_skips(program):
    with pytest.raises(pytest.skip.Exception, match=f"{program} is not found: install "):
        need(program)


def test_what_has_to_run_fails(program, monkeypatch):
    monkeypatch.setenv(VARIABLE, ", ".join(NAMES))
    with pytest.raises(pytest.fail.Exception, match=f"{program} is not found"):
        need(program)


def test_node_has_npm_and_is_not_old(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    put(tmp_path, "node", "v16.20.2")
    with pytest.raises(pytest.skip.Exception, match="npm is not found"):
        need("node")
    put(tmp_path, "npm")
    with pytest.raises(pytest.skip.Exception, match=r"node is v16\.20\.2"):
        need("node")


def test_a_name_that_nothing_has_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "nodejs")
    with pytest.raises(ValueError, match="names nodejs; there is node, chromium"):
        need("node")
