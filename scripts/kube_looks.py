"""What is looked at in a cluster that k8s/ was applied to: a line for each thing, and whether it is as it should be."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from control_plane import ControlPlane, Kubelets, Object, node, wait

ROOT = Path(__file__).resolve().parents[1]
NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
SPACE = "/namespaces/holdfast"
COMPONENTS = ("coordinator", "gateway", "agent", "storage", "bucket")
DEV = {"coordinator": 1, "gateway": 1, "storage": 1, "bucket": 1}
PROD = {"coordinator": 2, "gateway": 2}
CPU_NODES, GPU_NODES = {"cpu-1", "cpu-2"}, {"gpu-7", "gpu-8"}
GPUS = {"cpu": "96", "memory": "1Ti", "nvidia.com/gpu": "8"}
NODES: dict[str, tuple[dict[str, str], dict[str, str], list[str]]] = {
    "control": ({}, {}, ["node-role.kubernetes.io/control-plane"]),
    "windows": ({"kubernetes.io/os": "windows"}, {}, []),
    "cpu": ({}, {}, []),
    "gpu": ({"nvidia.com/gpu.present": "true"}, GPUS, ["nvidia.com/gpu"]),
}
QUOTA = {
    "metadata": {"name": "all-say-what-they-want"},
    "spec": {
        "hard": {"requests.cpu": "1k", "requests.memory": "10Ti", "limits.cpu": "1k", "limits.memory": "10Ti"}
    },
}
OPERATOR = {
    ("services", "get list"),
    ("events", "list"),
    ("pods", "delete get list watch"),
    ("pods/log", "get"),
    ("pods/portforward", "create"),
}
AGENT = f"{NAME}=holdfast,{COMPONENT}=agent"
NOT_REACHED = re.compile(r"dial tcp 127\.0\.0\.1:\d+: connect: connection refused")


def documented_lines() -> dict[str, str]:
    """Every line with kubectl in the documents, and its page; comments and `&` at the end are left off."""
    found = {}
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text()
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        shell = [block for language, block in blocks if language in ("", "sh", "bash")]
        lines = [line for block in shell for line in block.replace("\\\n", " ").splitlines()]
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        lines += re.findall(r"`(kubectl [^`]+)`", prose)
        for each in lines:
            line = " ".join(re.sub(r"\s{2,}#.*|&\s*$", "", each).split())
            if re.search(r"\bkubectl ", line):
                found.setdefault(line, str(page.relative_to(ROOT)))
    return found


class Check:
    """What is said of what was looked at, and the means to look."""

    def __init__(self, plane: ControlPlane, scratch: Path, kubelets: Kubelets) -> None:
        self.plane, self.api, self.scratch, self.kubelets = plane, plane.api, scratch, kubelets
        self.failures = 0
        self.lines = documented_lines()
        self.tried: set[str] = set()
        path = f"{Path(plane.found['kubectl']).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = {**os.environ, "PATH": path}

    def says(self, what: str, found: object, wanted: object = True) -> None:
        """One line: whether that is so."""
        if found == wanted:
            print(f"ok      {what}", flush=True)
            return
        self.failures += 1
        print(f"FAILED  {what}\n        wanted {wanted}\n        found  {found}", flush=True)

    def comes_to(self, what: str, look: Callable[[], object], wanted: object = True) -> None:
        """The same of what takes a while."""
        with suppress(AssertionError):
            wait(what, lambda: look() == wanted)
        self.says(what, look(), wanted)

    def run(self, line: str, user: str = "admin", ends: int | None = 0, **more: str) -> str:
        """Run a line of a shell as a user of the cluster, and give all that it says."""
        self.tried |= {each for each in self.lines if line.startswith(each)}
        env = {**self.env, "KUBECONFIG": str(self.plane.kubeconfig(user)), **more}
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.scratch,
            env=env,
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if ends is not None and done.returncode != ends:
            raise AssertionError(f"`{line}` ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def documented(self, line: str, user: str = "admin", ends: int | None = 0, **more: str) -> str:
        """Run a line of the documents, as it is there."""
        if line not in self.lines:
            raise AssertionError(f"no document has the line any more: {line}")
        said = self.run(line, user, ends, **more)
        if ends is not None:
            print(f"ok      {self.lines[line]}: {line}", flush=True)
        return said

    def documented_to_kubelet(self, line: str, user: str = "admin") -> None:
        """Run one that a kubelet would have to answer."""
        said = self.documented(line, user, ends=None)
        self.says(
            f"{self.lines[line]}: {line}: is let through to the kubelet",
            bool(NOT_REACHED.search(said)) or said,
        )

    def created(self, said: str) -> None:
        """Say whether an apply was the first, and had nothing to warn of."""
        left = [line for line in said.splitlines() if not line.endswith(" created")]
        self.says(
            "all is created, without a warning", [x for x in left if x != "namespace/holdfast configured"], []
        )

    def pods(self, component: str = "") -> list[Object]:
        """The pods that there are and that are not going, by their names."""
        selector = f"?labelSelector={COMPONENT}%3D{component}" if component else ""
        found = self.api.items(f"/api/v1{SPACE}/pods{selector}")
        return sorted(
            (pod for pod in found if "deletionTimestamp" not in pod["metadata"]),
            key=lambda p: str(p["metadata"]["name"]),
        )

    def settled(self, wanted: dict[str, int]) -> None:
        """Wait until as many pods of each component are there as it should be, and said to run."""

        def there() -> bool:
            pods = [p for p in self.pods() if p["status"].get("phase") in ("Running", "Succeeded")]
            running = Counter(p["metadata"]["labels"][COMPONENT] for p in pods)
            return {name: running[name] for name in wanted} == wanted and len(self.pods()) == len(pods)

        try:
            wait(f"{wanted} run", there)
        except AssertionError as error:
            events = self.run(
                "kubectl -n holdfast get pods -o wide; kubectl -n holdfast get events --field-selector type=Warning"
            )
            raise AssertionError(f"{error}\n{events}") from None

    def cleared(self) -> None:
        """Take all away that an overlay and its volumes have left."""
        self.run(
            "kubectl delete namespace holdfast --ignore-not-found --wait; kubectl delete pv --all --wait"
        )
        self.kubelets.unready.clear()


def identity(pod: Object) -> tuple[str, str]:
    """What tells a pod from the one that replaced it."""
    return str(pod["metadata"]["name"]), str(pod["metadata"]["uid"])


def make_node(check: Check, name: str) -> None:
    """One node, of the kind that its name says."""
    labels, capacity, taints = NODES[name.partition("-")[0]]
    made = node(
        name,
        check.plane.ports["kubelet"],
        labels,
        capacity,
        [{"key": key, "effect": "NoSchedule"} for key in taints],
    )
    check.api.made("/api/v1/nodes", made)
    check.api.merge(f"/api/v1/nodes/{name}/status", {"status": made["status"]})


def make_nodes(check: Check) -> None:
    """Nodes of several kinds, a storage class whose volumes are there, and what a GPU operator sets up."""
    for name in ("control-1", "windows-1", *sorted(CPU_NODES), *sorted(GPU_NODES)):
        make_node(check, name)
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    storage = {
        "metadata": {"name": "standard", "annotations": default},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    check.api.made("/apis/storage.k8s.io/v1/storageclasses", storage)

    def well() -> bool:
        taints = [
            t["key"] for each in check.api.items("/api/v1/nodes") for t in each["spec"].get("taints", [])
        ]
        return not any("not-ready" in key for key in taints)

    wait("nodes are ready", well)


def make_volumes(check: Check) -> None:
    """As many as an overlay claims."""
    for number in range(3):
        spec = {
            "capacity": {"storage": "100Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "standard",
            "hostPath": {"path": f"/nowhere/{number}"},
        }
        check.api.made("/api/v1/persistentvolumes", {"metadata": {"generateName": "check-"}, "spec": spec})


def secrets_of_prod(check: Check, url: str = "postgresql://holdfast@db.example.com/holdfast") -> None:
    """What a person makes before."""
    (check.scratch / "s3.env").write_text("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n")
    (check.scratch / "postgresql.url").write_text(f"{url}\n")
    check.kubelets.unready.add("holdfast-coordinator-1")
    check.documented("kubectl create namespace holdfast --save-config")
    check.documented("kubectl -n holdfast create secret generic holdfast-s3 --from-env-file=s3.env")
    check.documented(
        "kubectl -n holdfast create secret generic holdfast-postgresql --from-file=url=postgresql.url"
    )


# What is the same for all overlays.


def applied_twice(check: Check, overlay: str, how: str) -> None:
    """To apply what is applied changes nothing."""
    kinds = "statefulsets,deployments,daemonsets,jobs,services,networkpolicies,poddisruptionbudgets,roles"

    def written() -> dict[str, tuple[object, ...]]:
        found = json.loads(check.run(f"kubectl -n holdfast get {kinds},configmaps,secrets -o json"))["items"]
        keys = ("generation", "labels", "annotations")
        return {
            f"{o['kind']}/{o['metadata']['name']}": (o.get("spec"), *(o["metadata"].get(key) for key in keys))
            for o in found
        }

    before = written()
    said = check.run(f"kubectl apply {how}-k k8s/overlays/{overlay}").splitlines()
    check.says("applied once more, nothing changes", written() == before)
    if not how:
        changed = {line.split("/")[0] for line in said if not line.endswith(" unchanged")}
        # kubectl sends it their claims and selectors whole each time, since the server has filled them in.
        wanted = {"statefulset.apps", "poddisruptionbudget.policy"}
        check.says(
            f"kubectl calls no more than {', '.join(sorted(wanted))} configured", changed <= wanted or said
        )
    check.says("kubectl diff finds nothing", check.run(f"kubectl diff {how}-k k8s/overlays/{overlay}"), "")


def placement(check: Check, agents: set[str], wanted: dict[str, int]) -> None:
    """Where the scheduler puts what."""
    where = {name: [pod["spec"]["nodeName"] for pod in check.pods(name)] for name in COMPONENTS}
    check.says(f"agents are on {', '.join(sorted(agents))} alone", sorted(where.pop("agent")), sorted(agents))
    for name, nodes in where.items():
        if name in wanted:
            found = (len(nodes), len(set(nodes)), set(nodes) <= CPU_NODES)
            check.says(
                f"{name}: {wanted[name]}, on as many nodes without taints",
                found,
                (wanted[name], wanted[name], True),
            )


def endpoints(check: Check, wanted: dict[str, dict[str, bool]]) -> None:
    """Which pods are behind which Service, and whether something is sent there."""

    def found() -> dict[str, dict[str, bool]]:
        services: dict[str, dict[str, bool]] = {}
        for each in check.api.items(f"/apis/discovery.k8s.io/v1{SPACE}/endpointslices"):
            pods = services.setdefault(each["metadata"]["labels"]["kubernetes.io/service-name"], {})
            for one in each.get("endpoints") or []:
                pods[one["targetRef"]["name"].removeprefix("holdfast-")] = one["conditions"]["ready"]
        return services

    shown = "; ".join(
        f"{s.removeprefix('holdfast-')}: {', '.join(p for p in pods if pods[p])}"
        for s, pods in wanted.items()
    )
    check.comes_to(f"Services lead to {shown}", found, wanted)


def budgets(check: Check, wanted: dict[str, tuple[int, int, int]]) -> None:
    """What may be evicted: pods that are meant, that have to be well, that may go now."""

    def found() -> dict[str, tuple[int, ...]]:
        keys = ("expectedPods", "desiredHealthy", "disruptionsAllowed")
        items = check.api.items(f"/apis/policy/v1{SPACE}/poddisruptionbudgets")
        return {
            o["metadata"]["name"].removeprefix("holdfast-"): tuple(
                o.get("status", {}).get(k, -1) for k in keys
            )
            for o in items
        }

    shown = ", ".join(f"{name} {one[2]} of {one[0]}" for name, one in wanted.items())
    check.comes_to(f"budgets let go of {shown}", found, wanted)


def selected(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a selector, as policies have them, chooses something with these labels."""
    rules = selector.get("matchExpressions", [])
    assert all(rule["operator"] == "In" for rule in rules)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(rule["key"]) in rule["values"] for rule in rules
    )


def reached(check: Check) -> set[str]:
    """Who may reach whom, and where, as the policies that the server has say of the pods that it has: `a>b:port`."""
    policies = [
        each["spec"] for each in check.api.items(f"/apis/networking.k8s.io/v1{SPACE}/networkpolicies")
    ]
    pods = {pod["metadata"]["labels"][COMPONENT]: pod["metadata"]["labels"] for pod in check.pods()}
    ports = {7070, 8080, 9000, 9464, 29500}

    def allowed(direction: str, peer: str, one: dict[str, str], other: dict[str, str], port: int) -> bool:
        mine = [
            p for p in policies if selected(p["podSelector"], one) and direction.title() in p["policyTypes"]
        ]
        for rule in (rule for policy in mine for rule in policy.get(direction) or []):
            if port not in [each["port"] for each in rule.get("ports", [{"port": port}])]:
                continue
            if any(
                selected(p["podSelector"], other)
                for p in rule[peer]
                if "podSelector" in p and "namespaceSelector" not in p
            ):
                return True
        return not mine

    return {
        f"{a}>{b}:{'any' if port == 29500 else port}"
        for a, one in pods.items()
        for b, other in pods.items()
        for port in ports
        if allowed("egress", "to", one, other, port) and allowed("ingress", "from", other, one, port)
    }


def networks(check: Check, more: set[str]) -> None:
    """Every policy is about pods that there are, and pods reach whom they need."""
    pods = [pod["metadata"]["labels"] for pod in check.pods()]
    policies = check.api.items(f"/apis/networking.k8s.io/v1{SPACE}/networkpolicies")
    idle = [
        p["metadata"]["name"]
        for p in policies
        if not any(selected(p["spec"]["podSelector"], labels) for labels in pods)
    ]
    check.says("every NetworkPolicy is about pods that run", idle, [])
    ours = {
        "agent>coordinator:7070",
        "gateway>coordinator:7070",
        *(f"agent>agent:{p}" for p in (7070, 8080, 9000, 9464, "any")),
    }
    check.says(
        "pods may reach whom the documents say, and nobody else", sorted(reached(check)), sorted(ours | more)
    )


def rights(check: Check) -> None:
    """Accounts of pods may nothing; operators what the role says."""

    def may(who: str) -> set[str]:
        said = check.run(f"kubectl -n holdfast auth can-i --list --as={who}").splitlines()
        return {" ".join(line.split()) for line in said[1:]}

    nobody = may("system:serviceaccount:default:default")
    accounts = [a["metadata"]["name"] for a in check.api.items(f"/api/v1{SPACE}/serviceaccounts")]
    more_than = [a for a in accounts if may(f"system:serviceaccount:holdfast:{a}") != nobody]
    check.says(f"the accounts {', '.join(accounts)} may no more than anybody", more_than, [])
    check.run("kubectl -n holdfast create rolebinding operators --role=holdfast-operator --user=olga")
    lines = wait("the binding holds", lambda: may("olga") - may("otto"))
    granted = [re.fullmatch(r"(\S+) \[\] \[\] \[(.*)\]", line) for line in lines]
    found = {(one[1], " ".join(sorted(one[2].split()))) if one else "" for one in granted}
    check.says("an operator may what holdfast-operator says, and no more", found, OPERATOR)
    mounted = [
        p["metadata"]["name"]
        for p in check.pods()
        if "kube-api-access" in json.dumps(p["spec"].get("volumes"))
    ]
    check.says("no pod has a token", mounted, [])


def security(check: Check) -> None:
    """What Pod Security makes of the pods that run."""
    warned = {}
    for level in ("restricted", "baseline"):
        label = f"pod-security.kubernetes.io/enforce={level}"
        said = check.run(f"kubectl label --dry-run=server --overwrite namespace holdfast {label}")
        lines = re.findall(
            r"^Warning: (holdfast-[\w-]+)(?: \(and \d+ other pods?\))?: (.*)$", said, re.MULTILINE
        )
        warned[level] = [
            ("agent" if name.startswith("holdfast-agent-") else name, set(why.split(", ")))
            for name, why in lines
        ]
    wanted = {"hostPath volumes"}
    what = "Pod Security finds agents' hostPath volumes below baseline, and no other pod"
    check.says(what, warned["baseline"], [("agent", wanted)])
    wanted = {"unrestricted capabilities", "restricted volume types", "runAsNonRoot != true", "runAsUser=0"}
    check.says(
        "what it finds below restricted is theirs, too",
        warned["restricted"],
        [("agent", wanted)],
    )
    audited: Counter[str] = Counter()
    for line in check.plane.audit.read_text().splitlines():
        if "pod-security.kubernetes.io/audit-violations" in (event := json.loads(line)).get(
            "annotations", {}
        ):
            audited[event["user"]["username"].rpartition(":")[2]] += 1
    check.says("the audit log has violations of agents alone", set(audited), {"daemon-set-controller"})


def evictable(check: Check) -> None:
    """A drain of a node ends, moves what can be moved, and leaves agents."""
    busy = check.pods("gateway")[0]["spec"]["nodeName"]
    agents = [identity(pod) for pod in check.pods("agent")]
    check.run(f"kubectl drain {busy} --ignore-daemonsets --delete-emptydir-data --timeout=120s")
    left = {
        pod["metadata"]["labels"][COMPONENT] for pod in check.pods() if pod["spec"].get("nodeName") == busy
    }
    check.says("kubectl drain leaves a node's agent alone, and nothing else", left, {"agent"})
    check.says("it is the same agent", [identity(pod) for pod in check.pods("agent")], agents)
    check.run(f"kubectl uncordon {busy}")


def sound(
    check: Check, overlay: str, agents: set[str], wanted: dict[str, int], policies: set[str], how: str = ""
) -> None:
    """All that holds of an overlay that runs."""
    check.settled({**wanted, "agent": len(agents)})
    placement(check, agents, wanted)
    gateways = {pod["metadata"]["name"].removeprefix("holdfast-"): True for pod in check.pods("gateway")}
    standby = {"coordinator-1": False} if wanted["coordinator"] == 2 else {}
    services = {"holdfast-coordinator": {"coordinator-0": True, **standby}, "holdfast-gateway": gateways}
    let_go = {"coordinator": (wanted["coordinator"], 0, 1)}
    if "storage" in wanted:
        services["holdfast-minio"] = {"minio-0": True}
        let_go["minio"] = (1, 0, 1)
    if wanted["gateway"] == 2:
        let_go["gateway"] = (2, 1, 1)
    endpoints(check, services)
    budgets(check, let_go)
    networks(check, policies)
    security(check)
    rights(check)
    applied_twice(check, overlay, how)
