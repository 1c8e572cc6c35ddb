"""The Dockerfiles and docker-compose.yaml, as far as can be seen without building: `make images-check` does that."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from holdfast.units import parse_duration
from tests.deploy.pages import parse
from tests.deploy.rendering import ROOT

NAMES = ("coordinator", "agent")
PAGES = ("images.md", "compose.md")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DAEMONS = {"coordinator": "coordinator", "gateway": "coordinator", "agent-a": "agent", "agent-b": "agent"}
"""Those that run what the entry point of the images runs, and from which image."""


def dockerfile(name):
    """Instructions with their arguments, a line each."""
    text = re.sub("^ *#.*\n", "", (ROOT / f"Dockerfile.{name}").read_text(), flags=re.MULTILINE)
    return [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line]


def the(name, instruction):
    (found,) = [arguments for word, arguments in dockerfile(name) if word == instruction]
    return found


def checked(words):
    """The parameters of a health check, which is a command of ours."""
    assert words[:2] == ["CMD", "holdfast"]
    return parse(words[2:])


def test_both_images_have_one_wheel():
    """The stages that make it are the same, so a builder with a cache makes it once."""
    parts = [(ROOT / f"Dockerfile.{name}").read_text().split("ARG BASE", 1)[1] for name in NAMES]
    first, second = [part[: part.index("# ", part.index(" AS wheel"))] for part in parts]
    assert first == second
    assert "pip wheel" in first


@pytest.mark.parametrize("name", NAMES)
def test_what_an_image_runs(name):
    assert json.loads(the(name, "ENTRYPOINT")) == ["tini", "--", "holdfast"]
    assert the(name, "USER") == "65532:65532"
    arguments = json.loads(the(name, "CMD"))
    assert arguments[0] == name
    parameters = parse(arguments)
    assert str(parameters["state_dir"]) == f"/var/lib/holdfast/{name}"
    assert not parameters.get("insecure"), "whoever opens it to others says so"
    health = checked(["CMD", *json.loads(the(name, "HEALTHCHECK").partition("CMD ")[2])])
    assert health.get("place", parameters["state_dir"]) == parameters["state_dir"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_copied_is_in_the_context(name):
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [arguments.split()[:-1] for word, arguments in dockerfile(name) if word == "COPY"]
    for path in {path for paths in copied for path in paths if not paths[0].startswith("--from")}:
        assert path in kept | {"examples"}, path
        assert (ROOT / path).exists()


@pytest.mark.parametrize("name", DAEMONS)
def test_the_commands_of_services(name):
    service = SERVICES[name]
    assert "entrypoint" not in service
    assert service["image"].startswith(f"holdfast-{DAEMONS[name]}:")
    parameters, health = parse(service["command"]), checked(service["healthcheck"]["test"])
    if "listen" in parameters:
        port = parameters["listen"].removeprefix("0.0.0.0:")
        assert parameters["insecure"], "it is refused to listen there without saying so"
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"], "nobody else reaches it"
        assert health.get("url", f"http://127.0.0.1:{port}") == f"http://127.0.0.1:{port}"
        assert health.get("server", f"127.0.0.1:{port}") == f"127.0.0.1:{port}"
    else:
        assert health["place"] == parameters["state_dir"]
        assert any(volume == f"{name}:{parameters['state_dir']}" for volume in service["volumes"])
        grace = parse_duration(service["stop_grace_period"]).total_seconds()
        assert grace >= parameters["notice_deadline"] + 30
    for of in ("coordinator", "server"):
        assert parameters.get(of, "coordinator:7070") == "coordinator:7070"


def test_the_job_of_the_documents_finds_room_on_one_agent():
    """So that it goes on when the other one dies."""
    for name in ("agent-a", "agent-b"):
        assert parse(SERVICES[name]["command"])["slots"] >= 4


def test_services_wait_for_what_can_be_waited_for():
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            needed = SERVICES[name]
            if how == {"condition": "service_healthy"}:
                assert needed["healthcheck"]["test"]
            else:
                assert how == {"condition": "service_completed_successfully"}
                assert needed["restart"] in ("no", "on-failure")


def test_each_image_is_built_by_one_service():
    built = {it["image"]: it["build"]["dockerfile"] for it in SERVICES.values() if "build" in it}
    assert len(built) == sum("build" in it for it in SERVICES.values())
    others = {it["image"] for it in SERVICES.values()} - built.keys()
    assert all((ROOT / file).is_file() for file in built.values())
    manifest = (ROOT / "k8s/components/minio/minio.yaml").read_text()
    assert others == set(re.findall(r"image: (\S+/minio/minio:\S+)", manifest)), "the one of k8s/"


def test_services_have_no_rights_and_no_secrets():
    for name, service in SERVICES.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        for variable, value in service.get("environment", {}).items():
            if re.search("KEY|PASSWORD|CREDENTIALS", variable):
                assert value.startswith("/credentials/"), "a file of the volume, made by the first start"
        used = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert used <= COMPOSE["volumes"].keys()


def test_credentials_are_made_once(tmp_path):
    service = SERVICES["credentials"]
    (script,) = service["command"]
    script = script.replace("$$", "$").replace("/var/lib/holdfast/agent", str(tmp_path))
    for _ in range(2):
        subprocess.run([*service["entrypoint"], script], check=True, timeout=60)
        made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made["user"] == "holdfast"
    assert re.fullmatch("[0-9a-f]{48}", made["password"])
    lines = ["[default]", "aws_access_key_id = holdfast", f"aws_secret_access_key = {made['password']}", ""]
    assert made["aws"].split("\n") == lines
    assert len(made) == 3
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_the_bucket_is_made_once():
    """With the credentials that boto3 finds by itself."""
    service = SERVICES["bucket"]
    assert service["entrypoint"] == ["python", "-c"]
    compile(service["command"][0], "bucket", "exec")


def test_the_example_reads_the_data_of_the_image(tmp_path, monkeypatch):
    """Which has them beside it, and no scikit-learn."""
    data = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets/data/digits.csv.gz"
    example = shutil.copy(ROOT / "examples/digits.py", tmp_path)
    spec = importlib.util.spec_from_file_location("digits", example)
    digits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digits)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="install it: pip install scikit-learn"):
        digits.load_digits()
    shutil.copy(data, tmp_path)
    images, labels = digits.load_digits()
    assert images.shape == (1797, 64)
    assert set(labels) == set(range(10))


def containers_of(page):
    """The commands in a page that run in a container: (image or service, arguments)."""
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs/deploy" / page).read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["docker", "run"]:
                at = next(i for i, word in enumerate(words) if re.match(r"holdfast-\w+:", word))
                yield words[at].partition(":")[0].removeprefix("holdfast-"), words[at + 1 :]
            if words[:3] == ["docker", "compose", "exec"]:
                assert words[4] == "holdfast"
                yield DAEMONS[words[3]], words[5:]
            if words[:2] == ["docker", "compose"]:
                services = [word for word in words[3:4] if words[2] in ("exec", "stop", "kill", "logs")]
                assert set(services) <= SERVICES.keys()


def test_the_override_of_the_document():
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/deploy/compose.md").read_text(), re.DOTALL)
    services = yaml.safe_load(text)["services"]
    assert services.keys() == {"agent-a", "agent-b"}
    assert len({service["image"] for service in services.values()}) == 1
    assert sum("build" in service for service in services.values()) == 1


@pytest.mark.parametrize("page", PAGES)
def test_the_containers_of_documents(page):
    found = list(containers_of(page))
    assert found
    for image, arguments in found:
        assert image in NAMES
        parse(arguments)
