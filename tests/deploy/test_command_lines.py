"""Every command line in the manifests and the units is one that holdfast takes; those of documents are run."""

import re
import shlex
import shutil

import pytest

from holdfast.cli import cli
from holdfast.cli.settings import DAEMONS, key_of
from tests.deploy.pages import parse
from tests.deploy.rendering import OVERLAYS, ROOT, objects_of, pods_of

UNITS = sorted((ROOT / "docs/deploy/systemd").glob("*.service"))
VARIABLES = {
    f"{daemon}_{key_of(option)}".upper()
    for daemon in DAEMONS
    for option in cli.get_command(None, daemon).options()
}
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def filled(text, values):
    """Replace $(NAME) as the kubelet does; a name that is not set stays, and is an error."""
    text = re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], text)
    assert "$" not in text
    return text


def kubelet_values(container):
    sample = {"limits.cpu": "4", "spec.nodeName": "gpu-7", "status.podIP": "10.0.0.7"}
    sample["metadata.namespace"] = "holdfast"
    found = {}
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        key = source.get("fieldRef", {}).get("fieldPath") or source.get("resourceFieldRef", {}).get(
            "resource"
        )
        found[variable["name"]] = variable.get("value") or sample.get(key)
    return found


def container_of(overlay, name):
    found = [c for _, pod in pods_of(objects_of(overlay)) for c in pod["containers"] if c["name"] == name]
    (container,) = found
    return container


@needs_kubectl
@pytest.mark.parametrize("name", ["coordinator", "gateway", "agent"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_arguments_of_containers(overlay, name):
    """The images' entry point is `tini -- holdfast`."""
    container = container_of(overlay, name)
    assert "command" not in container
    parameters = parse([filled(argument, kubelet_values(container)) for argument in container["args"]])
    if "listen" in parameters:
        assert parameters["listen"].startswith("0.0.0.0:")
        assert parameters["insecure"], "it is refused to listen there without saying so"
    if name == "agent":
        assert parameters["name"] == "gpu-7"
        assert parameters["address"] == "10.0.0.7"
        assert parameters["slots"] == (8 if overlay == "gpu" else 4)


def lines_of(unit, *keys):
    found = re.findall(rf"^(?:{'|'.join(keys)})=(.*)$", unit.read_text(), re.MULTILINE)
    return [line.replace("%H", "gpu-7") for line in found]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_commands_of_units(unit):
    commands = [shlex.split(line) for line in lines_of(unit, "ExecStart", "ExecStop")]
    ours = [command[1:] for command in commands if command[0] == "/opt/holdfast/bin/holdfast"]
    assert ours
    for arguments in ours:
        parse(arguments)


def test_the_variables_that_units_and_pages_speak_of(monkeypatch):
    """An example is a setting, and what is written for it is possible."""
    example = re.compile(
        r"""\bHOLDFAST_(COORDINATOR|AGENT|GATEWAY)_(\w+)=(?:"([^"]*)"|'([^']*)'|([^\s,`]+))"""
    )
    seen = 0
    for path in [*UNITS, *sorted((ROOT / "docs").rglob("*.md"))]:
        for daemon, key, *values in example.findall(path.read_text()):
            assert f"{daemon}_{key}" in VARIABLES, path.name
            with monkeypatch.context() as patch:
                patch.setenv(f"HOLDFAST_{daemon}_{key}", "".join(values))
                parse([daemon.lower()])
            seen += 1
    assert seen > 10
