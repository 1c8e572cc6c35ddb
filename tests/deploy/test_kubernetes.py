"""The manifests of k8s/: what Kubernetes' own schemas, and one object of another, ask of them."""

import functools
import json
import os
import re
import shutil
import subprocess

import pytest
from kubernetes_validate import utils

from holdfast import __version__
from holdfast.cli.node import AGENT_PODS
from holdfast.units import parse_duration
from holdfast_coordinator.app import ALIVE
from tests.deploy.rendering import OVERLAYS, ROOT, named, objects_of, pods_of

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
PROBES = ("startup", "readiness", "liveness")
VERSIONS = ("1.29", "1.31", "1.33", "1.35", "1.37")


@pytest.fixture(params=OVERLAYS)
def objects(request):
    return objects_of(request.param)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_to_this_version_of_kubernetes(version, monkeypatch):
    # It reads and parses a file of a megabyte for every object.
    monkeypatch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
    distinct = {json.dumps(it, sort_keys=True) for overlay in OVERLAYS for it in objects_of(overlay)}
    for text in distinct:
        assert utils.validate(json.loads(text), version, strict=True) == version


def test_names_are_unique_and_in_the_namespace(objects):
    names = [(it["kind"], it["metadata"]["name"]) for it in objects]
    assert len(set(names)) == len(names)
    apart = {it["kind"] for it in objects if it["metadata"].get("namespace") != "holdfast"}
    assert apart == {"Namespace"}


def test_every_object_has_the_recommended_labels(objects):
    for it in objects:
        if it["kind"] in ("ConfigMap", "Secret", "Namespace"):
            continue
        labels = it["metadata"]["labels"]
        wanted = {f"app.kubernetes.io/{name}" for name in ("name", "part-of", "managed-by")}
        assert wanted <= labels.keys(), it["metadata"]["name"]
        assert labels.get("app.kubernetes.io/version", __version__) == __version__


def test_templates_of_claims_do_not_change_with_the_version(objects):
    """Kubernetes refuses a StatefulSet whose volumeClaimTemplates have changed."""
    for it in objects:
        for claim in it.get("spec", {}).get("volumeClaimTemplates", []):
            assert "app.kubernetes.io/version" not in claim["metadata"]["labels"]


def test_our_images_are_of_this_version(objects):
    images = {c["image"] for _, pod in pods_of(objects) for c in pod["containers"]}
    ours = {image for image in images if "minio" not in image}
    assert {image.rpartition("/")[2] for image in ours} == {
        f"holdfast-coordinator:{__version__}",
        f"holdfast-agent:{__version__}",
    }


def pod_labels(objects):
    return [it["spec"]["template"]["metadata"]["labels"] for it, _ in pods_of(objects)]


def chosen(selector, objects):
    def fits(labels):
        wanted = selector.get("matchLabels", {}).items() <= labels.items()
        return wanted and all(
            labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
        )

    return [labels for labels in pod_labels(objects) if fits(labels)]


def test_services_find_pods_with_the_port(objects):
    for service in (it for it in objects if it["kind"] == "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        assert len(chosen(selector, objects)) == 1
        (pod,) = [
            pod
            for it, pod in pods_of(objects)
            if it["spec"]["template"]["metadata"]["labels"] in chosen(selector, objects)
        ]
        ports = {port["name"] for container in pod["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_budgets_and_policies_are_about_pods_that_there_are(objects):
    for it in objects:
        if it["kind"] == "PodDisruptionBudget":
            assert len(chosen(it["spec"]["selector"], objects)) == 1
        if it["kind"] == "NetworkPolicy":
            assert chosen(it["spec"]["podSelector"], objects)


def may_come(objects, to, port):
    """The components of this namespace that a component lets in on a port."""
    found = set()
    for policy in (it["spec"] for it in objects if it["kind"] == "NetworkPolicy"):
        if not any(
            labels["app.kubernetes.io/component"] == to for labels in chosen(policy["podSelector"], objects)
        ):
            continue
        for rule in policy.get("ingress", []):
            if port in [p["port"] for p in rule.get("ports", [{"port": port}])]:
                inside = [
                    peer["podSelector"]
                    for peer in rule["from"]
                    if "podSelector" in peer and "namespaceSelector" not in peer
                ]
                found |= {
                    labels["app.kubernetes.io/component"] for one in inside for labels in chosen(one, objects)
                }
    return found


def test_who_may_talk_to_whom(objects):
    deny = named(objects, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert may_come(objects, "coordinator", 7070) == {"agent", "gateway"}
    assert may_come(objects, "gateway", 8080) == set()
    assert may_come(objects, "agent", 29500) == {"agent"}
    if any(it["kind"] == "StatefulSet" and it["metadata"]["name"] == "holdfast-minio" for it in objects):
        assert may_come(objects, "storage", 9000) == {"agent", "bucket"}


def test_nobody_has_a_token_or_rights(objects):
    assert [it["kind"] for it in objects if it["kind"].endswith("RoleBinding")] == []
    for it in objects:
        if it["kind"] == "ServiceAccount":
            assert it["automountServiceAccountToken"] is False
    for _, pod in pods_of(objects):
        assert pod["automountServiceAccountToken"] is False
        assert named(objects, "ServiceAccount", pod["serviceAccountName"])


def exceptions_to_restricted(pod):
    """What the Pod Security Standard "restricted" would refuse, as (container or volume, what)."""
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    for volume in pod["volumes"]:
        if not volume.keys() - {"name"} <= allowed:
            yield volume["name"], "volume"
    if pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}:
        yield "pod", "host"
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod.get("initContainers", []), *pod["containers"]):
        name, own = container["name"], container["securityContext"]
        context = pod["securityContext"] | own
        assert context["readOnlyRootFilesystem"] is True
        if context["runAsNonRoot"] is not True or context["runAsUser"] == 0:
            yield name, "root"
        if context["allowPrivilegeEscalation"] is not False or context.get("privileged"):
            yield name, "privileges"
        if context["capabilities"] != {"drop": ["ALL"]}:
            yield name, context["capabilities"].get("add")


def test_all_is_restricted_but_what_is_explained(objects):
    """The exceptions are those that docs/deploy/kubernetes.md has a table of."""
    for it, pod in pods_of(objects):
        found = list(exceptions_to_restricted(pod))
        if it["kind"] == "DaemonSet":
            init = "own-directories"
            assert found == [
                ("state", "volume"),
                ("checkpoints", "volume"),
                (init, "root"),
                (init, ["CHOWN"]),
            ]
        else:
            assert found == []


def test_agents_have_time_for_a_checkpoint_and_are_replaced_by_hand(objects):
    agent = named(objects, "DaemonSet", "holdfast-agent")
    assert agent["spec"]["updateStrategy"] == {"type": "OnDelete"}
    pod = agent["spec"]["template"]["spec"]
    arguments = pod["containers"][0]["args"]
    assert "--drain-on-term" in arguments
    (deadline,) = [a.partition("=")[2] for a in arguments if a.startswith("--notice-deadline=")]
    assert pod["terminationGracePeriodSeconds"] >= parse_duration(deadline).total_seconds() + 30
    assert "livenessProbe" not in pod["containers"][0]
    labels = dict(pair.split("=") for pair in AGENT_PODS.split(","))
    assert labels.items() <= agent["spec"]["template"]["metadata"]["labels"].items()


def test_of_two_coordinators_one_leads_and_nothing_waits_for_the_other(objects):
    """A standby is not ready: that must neither end it, nor hold up a rollout, a start or a drain."""
    coordinator = named(objects, "StatefulSet", "holdfast-coordinator")["spec"]
    pod = coordinator["template"]["spec"]
    (container,) = pod["containers"]
    probes = {name: container[f"{name}Probe"]["grpc"].get("service", "") for name in PROBES}
    assert probes == {"startup": ALIVE, "readiness": "", "liveness": ALIVE}
    shared = [each for each in container["args"] if each.startswith("--store")]
    assert coordinator["replicas"] == (2 if shared else 1)
    if not shared:
        return
    assert (coordinator["podManagementPolicy"], coordinator["updateStrategy"]) == (
        "Parallel",
        {"type": "OnDelete"},
    )
    budget = named(objects, "PodDisruptionBudget", "holdfast-coordinator")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (2, "AlwaysAllow")
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "postgresql"]
    assert shared == [f"--store-file={mount['mountPath']}/url"]
    assert {"postgresql": {"secretName": "holdfast-postgresql", "defaultMode": 0o440}}.items() <= {
        volume["name"]: volume.get("secret") for volume in pod["volumes"]
    }.items()
    (egress,) = named(objects, "NetworkPolicy", "to-postgresql")["spec"]["egress"]
    assert egress["ports"] == [{"protocol": "TCP", "port": 5432}]


def test_ports_are_those_that_are_listened_on(objects):
    for _, pod in pods_of(objects):
        for container in pod["containers"]:
            listened = {
                int(port) for port in re.findall(r"--(?:listen|metrics)=[\d.]+:(\d+)", str(container["args"]))
            }
            if listened:
                assert {port["containerPort"] for port in container["ports"]} == listened
    service = named(objects, "Service", "holdfast-coordinator")["spec"]["ports"]
    assert [port["port"] for port in service] == [7070]


def test_secrets_are_made_and_none_is_committed(tmp_path):
    tracked = subprocess.run(
        ["git", "ls-files", "k8s"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert not [name for name in tracked.stdout.split() if name.endswith(".env")]
    for path in (ROOT / "k8s").rglob("*.yaml"):
        assert not re.search("^kind: Secret$", path.read_text(), re.MULTILINE), path
    shutil.copytree(
        ROOT / "k8s", tmp_path / "k8s", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.env")
    )
    made = tmp_path / "k8s/overlays/dev/s3.env"
    for _ in range(2):
        subprocess.run([tmp_path / "k8s/make-secrets"], check=True, timeout=60)
        text = made.read_text()
    assert re.fullmatch(r"AWS_ACCESS_KEY_ID=holdfast\nAWS_SECRET_ACCESS_KEY=[0-9a-f]{48}\n", text)
    assert made.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="root alone may change owners")
def test_directories_of_the_host_become_the_agents(tmp_path):
    pod = named(objects_of("dev"), "DaemonSet", "holdfast-agent")["spec"]["template"]["spec"]
    (init,) = pod["initContainers"]
    for name in ("agent", "checkpoints"):
        (tmp_path / name).mkdir()
    script = [text.replace("/var/lib/holdfast", str(tmp_path)) for text in (*init["command"], *init["args"])]
    subprocess.run(script, check=True, timeout=60)
    assert {path.stat().st_uid for path in tmp_path.iterdir()} == {65532}
    # Where they are its own already, as on a file system that forbids root this, it changes nothing.
    (tmp_path / "chown").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "chown").chmod(0o755)
    search = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(script, check=True, timeout=60, env=search)
