"""Holds k8s/ to a real Kubernetes control plane on loopback: `make kube-check`.

    dev, prod, gpu, monitoring   each overlay is applied, and looked at: what the API server says of it, where the
              scheduler puts its pods, what Services, budgets and policies find, what accounts may, what Pod Security
              makes of it; then nodes are drained, and die
    upgrade   a new version is applied: what is replaced by that, and what waits for a person
    changes   what Kubernetes refuses to change in place, and what the documents have for it
    run       the pods of dev run, as kube_pods.py has it: they train, while they are drained, deleted and replaced.
              As root, with Debian's tini
    lead      so do those of prod, but on a PostgreSQL of this machine: the leader is deleted, the standby leads

etcd, API server, controllers and scheduler are those of the PATH, or of KUBE_BIN. Nodes are objects, and but for the
last parts no container runs: control_plane.py says of pods that they do. Every line with kubectl in the documents is
tried as it is written; what would reach a kubelet gets as far as to one that does not listen. Policies are read: no
network plugin is here.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from control_plane import Kubelets, Object, control_plane, programs, wait
from kube_live import leads, pods_run
from kube_looks import (
    AGENT,
    COMPONENTS,
    CPU_NODES,
    DEV,
    GPU_NODES,
    PROD,
    QUOTA,
    ROOT,
    SPACE,
    Check,
    endpoints,
    evictable,
    identity,
    make_node,
    make_nodes,
    make_volumes,
    secrets_of_prod,
    sound,
)


def dev(check: Check) -> None:
    """As the quickstart says."""
    make_volumes(check)
    check.run("make k8s-secrets")
    check.created(check.documented("kubectl apply -k k8s/overlays/dev"))
    check.documented("kubectl -n holdfast rollout status statefulset/holdfast-coordinator")
    sound(check, "dev", CPU_NODES, DEV, {"agent>storage:9000", "bucket>storage:9000"})
    for line in (
        "port-forward service/holdfast-coordinator 7070",
        "port-forward service/holdfast-gateway 8080:80",
    ):
        check.documented_to_kubelet(f"kubectl -n holdfast {line}", "olga")
    backup = "/var/lib/holdfast/coordinator/backup.db --state-dir /var/lib/holdfast/coordinator"
    for line in (
        f"exec statefulset/holdfast-coordinator -- holdfast backup create {backup}",
        "cp holdfast-coordinator-0:/var/lib/holdfast/coordinator/backup.db backup.db",
    ):
        check.documented_to_kubelet(f"kubectl -n holdfast {line}")
    evictable(check)
    left = {"coordinator": 1, "gateway": 1, "storage": 1}  # a pod that is done may be evicted, too
    check.settled({**left, "agent": 2})
    dies(check)
    check.settled({**left, "agent": 2})


def dies(check: Check) -> None:
    """The machine of the one coordinator dies: that comes to another when a person says that it is dead."""
    for line in (
        "kubectl taint node {} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute",
        "kubectl delete node {}",
    ):
        (pod,) = check.pods("coordinator")
        name = pod["spec"]["nodeName"]
        check.kubelets.dead = {name}
        unknown = {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]}
        check.api.merge(f"/api/v1/nodes/{name}/status", {"status": unknown})
        check.run(line.format(name))

        def elsewhere(lost: Object = pod) -> bool:
            found = [p for p in check.pods("coordinator") if identity(p) != identity(lost)]
            return [p["status"].get("phase") for p in found] == ["Running"]

        check.says(
            f"its machine dies, {line.format(name)}: it runs on another",
            bool(wait("another coordinator", elsewhere)),
        )
        check.run(f"kubectl delete node {name} --ignore-not-found")
        check.kubelets.dead = set()
        make_node(check, name)


def prod(check: Check) -> None:
    """As the page says, in a namespace whose quota refuses pods that don't say what they want."""
    make_volumes(check)
    secrets_of_prod(check)
    check.api.made(f"/api/v1{SPACE}/resourcequotas", QUOTA)
    check.created(check.documented("kubectl apply -k k8s/overlays/prod"))
    sound(check, "prod", CPU_NODES, PROD, set())
    check.kubelets.unready = {"holdfast-coordinator-0"}
    gateways = {pod["metadata"]["name"].removeprefix("holdfast-"): True for pod in check.pods("gateway")}
    endpoints(
        check,
        {
            "holdfast-coordinator": {"coordinator-0": False, "coordinator-1": True},
            "holdfast-gateway": gateways,
        },
    )
    evictable(check)
    check.settled({**PROD, "agent": 2})


def gpu(check: Check) -> None:
    """On nodes with GPUs, when their runtime class is there."""
    make_volumes(check)
    secrets_of_prod(check)
    check.says(
        "the server applies it, and warns of nothing",
        "arning" in check.run("kubectl apply --server-side -k k8s/overlays/gpu"),
        False,
    )

    def refused() -> bool:
        return 'RuntimeClass "nvidia" not found' in check.run(
            "kubectl -n holdfast get events --field-selector reason=FailedCreate"
        )

    check.says(
        "without NVIDIA's runtime class no agent is made, and the events say why",
        bool(wait("events", refused)),
    )
    check.api.made(
        "/apis/node.k8s.io/v1/runtimeclasses", {"metadata": {"name": "nvidia"}, "handler": "nvidia"}
    )
    sound(check, "gpu", GPU_NODES, PROD, set(), "--server-side ")
    wants = {
        c["resources"]["limits"]["nvidia.com/gpu"]
        for pod in check.pods("agent")
        for c in pod["spec"]["containers"]
    }
    check.says("each agent has all eight GPUs", wants, {"8"})
    before = {pod["spec"]["nodeName"]: identity(pod) for pod in check.pods("agent")}
    line = f"kubectl -n holdfast delete pod -l {AGENT} --field-selector spec.nodeName=gpu-7"
    check.documented(line, "olga")
    check.settled({**PROD, "agent": 2})
    after = {pod["spec"]["nodeName"]: identity(pod) for pod in check.pods("agent")}
    check.says(
        "that replaced the agent of gpu-7 alone", {n for n in before if before[n] != after[n]}, {"gpu-7"}
    )
    check.run("kubectl delete runtimeclass nvidia")


def monitoring(check: Check) -> None:
    """And with figures."""
    make_volumes(check)
    secrets_of_prod(check)
    check.says(
        "the server applies it, and warns of nothing",
        "arning" in check.run("kubectl apply --server-side -k k8s/overlays/monitoring"),
        False,
    )
    sound(check, "monitoring", CPU_NODES, PROD, set(), "--server-side ")
    check.run("kubectl create namespace monitoring")
    for line in (
        "create configmap holdfast-alerts --from-file=k8s/alerts.yaml",
        "create configmap holdfast-dashboard --from-file=k8s/grafana-dashboard.json",
        "label configmap holdfast-dashboard grafana_dashboard=1",
    ):
        check.documented(f"kubectl -n monitoring {line}")
    check.run("kubectl delete namespace monitoring")


def new_version(check: Check) -> None:
    """Write another version into the manifests."""
    path = check.scratch / "k8s/base/kustomization.yaml"
    text, number = re.subn(r"(newTag|version): [\d.]+", r"\1: 9.9.9", path.read_text())
    assert number == 3, text
    path.write_text(text)


def replaced(check: Check, component: str, before: list[Object]) -> int:
    """How many pods of a component are not those that were there."""
    return len({identity(p) for p in check.pods(component)} - {identity(p) for p in before})


def upgrade(check: Check) -> None:
    """A new version over the old one, of dev and of prod."""
    kept = shutil.copytree(check.scratch / "k8s", check.scratch / "k8s-before")
    for overlay, wanted in (("dev", DEV), ("prod", PROD)):
        make_volumes(check)
        check.run("make k8s-secrets")
        if overlay == "prod":
            secrets_of_prod(check)
        line = f"kubectl apply -k k8s/overlays/{overlay}"
        check.run(line)
        check.settled({**wanted, "agent": 2})
        before = {name: check.pods(name) for name in COMPONENTS}
        new_version(check)
        check.documented(line)
        check.run("kubectl -n holdfast rollout status deployment/holdfast-gateway")
        if overlay == "dev":
            check.documented("kubectl -n holdfast rollout status statefulset/holdfast-coordinator")
        check.settled({**wanted, "agent": 2})
        found = {name: replaced(check, name, pods) for name, pods in before.items()}
        moved = {"coordinator": 1 if overlay == "dev" else 0, "gateway": wanted["gateway"]}
        check.says(
            f"{overlay}: a new version replaces {moved}, and no agent",
            found,
            {**dict.fromkeys(COMPONENTS, 0), **moved},
        )
        if overlay == "prod":
            by_hand(check)
        check.cleared()
        shutil.rmtree(check.scratch / "k8s")
        shutil.copytree(kept, check.scratch / "k8s")


def changes(check: Check) -> None:
    """What Kubernetes does not change in place, and what the documents have for it."""
    make_volumes(check)
    check.run("make k8s-secrets; kubectl apply -k k8s/overlays/dev")
    check.settled({**DEV, "agent": 2})
    path = check.scratch / "k8s/components/minio/kustomization.yaml"
    before = path.read_text()
    path.write_text(before.replace("S3_BUCKET=holdfast", "S3_BUCKET=another"))
    said = check.run("kubectl apply -k k8s/overlays/dev", ends=1)
    check.says("a bucket's Job of another bucket is refused", "field is immutable" in said)
    check.documented("kubectl -n holdfast delete job holdfast-bucket")
    check.run("kubectl apply -k k8s/overlays/dev")
    check.settled({**DEV, "agent": 2})
    path.write_text(before)
    check.cleared()

    make_volumes(check)
    secrets_of_prod(check)
    path = check.scratch / "k8s/overlays/prod/kustomization.yaml"
    before = path.read_text()
    path.write_text(before.replace(", ../../components/postgresql", ""))
    check.run("kubectl apply -k k8s/overlays/prod")
    check.settled({"coordinator": 1, "gateway": 2, "agent": 2})
    path.write_text(before)
    said = check.run("kubectl apply -k k8s/overlays/prod", ends=1)
    check.says("one coordinator is not made two in place", "updates to statefulset spec" in said)
    check.documented("kubectl -n holdfast delete statefulset holdfast-coordinator")
    check.run("kubectl apply -k k8s/overlays/prod")
    check.settled({**PROD, "agent": 2})


def by_hand(check: Check) -> None:
    """The rest of prod's upgrade, as an operator without other rights does it."""
    check.run("kubectl -n holdfast create rolebinding operators --role=holdfast-operator --user=olga")
    before = {name: check.pods(name) for name in COMPONENTS}
    said = check.documented("kubectl -n holdfast get pods -l app.kubernetes.io/component=coordinator", "olga")
    shown = {line.split()[0]: line.split()[1] for line in said.splitlines()[1:]}
    check.says(
        "the standby is the one that is 0/1",
        shown,
        {"holdfast-coordinator-0": "1/1", "holdfast-coordinator-1": "0/1"},
    )
    check.documented("kubectl -n holdfast delete pod holdfast-coordinator-1", "olga")
    check.documented(
        "kubectl -n holdfast wait --for=jsonpath='{.status.phase}'=Running pod/holdfast-coordinator-1", "olga"
    )
    check.kubelets.unready = {"holdfast-coordinator-0"}  # it gives its lease back
    check.documented("kubectl -n holdfast delete pod holdfast-coordinator-0", "olga")
    more = {"agents": AGENT, "node": "cpu-1"}
    check.documented(
        'kubectl -n holdfast delete pod -l "$agents" --field-selector "spec.nodeName=$node"', "olga", **more
    )
    ready = 'wait --for=condition=Ready pod -l "$agents" --field-selector "spec.nodeName=$node"'
    check.documented(f"until kubectl -n holdfast {ready}; do sleep 1; done", "olga", **more)
    check.settled({**PROD, "agent": 2})
    found = {name: replaced(check, name, pods) for name, pods in before.items()}
    wanted = {**dict.fromkeys(COMPONENTS, 0), "coordinator": 2, "agent": 1}
    check.says("both coordinators and the agent of cpu-1 are replaced, by hand", found, wanted)
    images = {
        pod["spec"]["nodeName"]: pod["spec"]["containers"][0]["image"].rpartition(":")[2]
        for pod in check.pods("agent")
    }
    check.says("the agent of cpu-2 waits with the old image", images["cpu-1"] == "9.9.9" != images["cpu-2"])
    check.documented_to_kubelet("kubectl -n holdfast logs holdfast-coordinator-0", "olga")
    check.documented("kubectl -n holdfast get pod holdfast-coordinator-0", "olga")
    said = check.documented("kubectl -n holdfast describe pod", "olga")
    check.says("what an operator sees of a pod has its events", "Successfully assigned" in said)


def apart() -> None:
    """The same in a network and a process tree of its own, with which all that was started is gone."""
    own = ["setpriv", "--pdeathsig=KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    own += ["--mount-proc", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, *sys.argv]
    with tempfile.TemporaryDirectory(prefix="holdfast-kube-") as name:
        Path(name).chmod(0o755)
        env = {**os.environ, "KUBE_CHECK_APART": "1", "TMPDIR": name}
        code = subprocess.run(own, check=False, env=env).returncode
    sys.exit(code)


def main() -> None:
    """Start all, and run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}  [default: all]")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        sys.exit(f"there is no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # by way of what cleans up
    if os.getuid() == 0 and "KUBE_CHECK_APART" not in os.environ:
        apart()
    found = programs(os.environ.get("KUBE_BIN", ""))
    with tempfile.TemporaryDirectory(prefix="holdfast-kube-") as name:
        scratch = Path(name)
        shutil.copytree(ROOT / "k8s", scratch / "k8s", ignore=shutil.ignore_patterns("*.env"))
        shutil.copy(ROOT / "Makefile", scratch)
        with control_plane(scratch, found) as plane:
            kubelets = Kubelets(plane.api)
            kubelets.start()
            check = Check(plane, scratch, kubelets)
            print(f"Kubernetes {plane.api.call('GET', '/version')['gitVersion']}", flush=True)
            make_nodes(check)
            for part in options.parts or PARTS:
                print(f"== {part}", flush=True)
                try:
                    PARTS[part](check)
                except AssertionError as error:
                    check.failures += 1
                    print(f"FAILED  {part}: {error}", flush=True)
                check.cleared()
            if not options.parts:
                left = [f"{page}: {line}" for line, page in check.lines.items() if line not in check.tried]
                check.says("every line with kubectl in the documents was tried", left, [])
            kubelets.ended.set()
            kubelets.join()
    if check.failures:
        sys.exit(f"{check.failures} things are not as they should be")


PARTS: dict[str, Callable[[Check], None]] = {
    "dev": dev,
    "prod": prod,
    "gpu": gpu,
    "monitoring": monitoring,
    "upgrade": upgrade,
    "changes": changes,
    "run": pods_run,
    "lead": leads,
}

if __name__ == "__main__":
    main()
