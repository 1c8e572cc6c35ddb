"""Pods that run, of dev and of prod: they train, and are drained, deleted and replaced meanwhile."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from control_plane import Kubelets, Object, wait
from kube_looks import AGENT, CPU_NODES, DEV, PROD, ROOT, Check, identity, make_volumes, secrets_of_prod
from kube_pods import Machines, bridge

LONGER = {
    "command": ["python", "-m", "holdfast.examples.digits", "--epochs", "800"],
    "restart": {"scope": "rank"},
}


@contextmanager
def running(check: Check) -> Iterator[Machines | None]:
    """Kubelets that run pods, in place of those that say so; nothing where that can't be."""
    needed = [
        name
        for name in ("unshare", "nsenter", "ip", "iptables-restore", "tini", "curl")
        if shutil.which(name) is None
    ]
    if os.getuid() != 0 or needed:
        print(f"left out: this part wants root, {' and '.join(needed) or 'nothing else'}")
        yield None
        return
    check.kubelets.ended.set()
    check.kubelets.join()
    bridge()
    machines = check.kubelets = Machines(check.api, check.scratch)
    machines.start()
    try:
        yield machines
    except AssertionError as error:
        raise AssertionError(f"{error}\n{check.run(f'tail -n 15 {machines.scratch}/pods/*/*.log')}") from None
    finally:
        check.says("no container ended by itself, or was said to be dead", machines.failures(), [])
        machines.close()
        check.kubelets = Kubelets(check.api)
        check.kubelets.start()


def pods_run(check: Check) -> None:
    """Dev's."""
    with running(check) as machines:
        if machines is None:
            return
        make_volumes(check)
        check.run("make k8s-secrets")
        check.documented("kubectl apply -k k8s/overlays/dev")
        check.documented("kubectl -n holdfast rollout status statefulset/holdfast-coordinator")
        check.settled({**DEV, "agent": 2})
        ready = "wait --for=condition=Ready pod -l app.kubernetes.io/name=holdfast --timeout=120s"
        check.run(f"kubectl -n holdfast {ready}")
        trained(check)


def leads(check: Check) -> None:
    """Prod's coordinators, on a PostgreSQL; their sockets are where its server would be."""
    sys.path.insert(0, str(ROOT))
    from tests.postgres import PostgresServer

    with running(check) as machines:
        if machines is None:
            return
        server = PostgresServer()
        try:
            server.root.chmod(0o755)
            machines.postgresql = server.root
            database = server.make_database().url.database
            make_volumes(check)
            secrets_of_prod(check, f"postgresql://holdfast@/{database}?host=/var/lib/postgresql")
            check.documented("kubectl apply -k k8s/overlays/prod")
            check.settled({**PROD, "agent": 2})
            replaced_leader(check)
        finally:
            machines.close()
            server.remove()


def replaced_leader(check: Check) -> None:
    """A leader is deleted while a job runs."""
    fleet = Fleet(check)

    def ready() -> list[str]:
        return [pod["metadata"]["name"] for pod in check.pods("coordinator") if is_ready(pod)]

    (leader,) = wait("a coordinator leads", lambda: len(ready()) == 1 and ready())
    check.comes_to("gateways and agents are ready", lambda: sum(map(is_ready, check.pods())), 5)
    check.says("of two coordinators one is ready, by their own probes", ready(), [leader])
    where = {"checkpoint_uri": "/var/lib/holdfast/checkpoints/check"}
    job = fleet.post({**LONGER, **where, "world_size": 4})
    check.comes_to("a job has checkpoints", lambda: fleet.steps(job) > 0)
    check.run(f"kubectl -n holdfast delete pod {leader}")
    (other,) = {"holdfast-coordinator-0", "holdfast-coordinator-1"} - {leader}
    check.comes_to("the leader is deleted: the standby is ready in its place", ready, [other])
    fleet.goes_on("it leads", job)
    check.says(
        "and no worker was started again", {each["attempt"] for each in fleet.job(job)["workers"]}, {1}
    )


def is_ready(pod: Object) -> bool:
    """Whether a pod is said to be."""
    return any(
        each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", [])
    )


class Fleet:
    """What runs in the pods, as people reach it; `port-forward` would lead to the same addresses."""

    def __init__(self, check: Check) -> None:
        self.check = check

    def address(self, component: str) -> str:
        """Of a pod of a component."""
        return next(str(pod["status"]["podIP"]) for pod in self.check.pods(component) if is_ready(pod))

    def told(self, line: str) -> str:
        """What a command of holdfast's says."""
        return self.check.run(line, HOLDFAST_SERVER=f"{self.address('coordinator')}:7070")

    def post(self, job: Object) -> str:
        """Create a job by way of the gateway."""
        there = f"--connect-to ::{self.address('gateway')}:8080 -X POST http://localhost:8080/jobs"
        return str(json.loads(self.check.run(f"curl -sSf {there} -d {shlex.quote(json.dumps(job))}"))["id"])

    def job(self, name: str) -> Object:
        """How a job is; nothing while nobody answers."""
        try:
            found: Object = json.loads(self.told(f"holdfast job get {name} -o json"))
        except (AssertionError, StopIteration):
            return {}
        assert found["state"] not in ("JOB_STATE_FAILED", "JOB_STATE_STOPPED"), found
        return found

    def steps(self, name: str) -> int:
        """How far it is committed."""
        return int(self.job(name).get("lastCommittedStep", 0))

    def goes_on(self, what: str, name: str) -> None:
        """Say whether it commits more than it has."""
        before = self.steps(name)
        self.check.comes_to(f"{what}: the job goes on", lambda: self.steps(name) > before)

    def nodes(self, name: str) -> set[str]:
        """Where it is."""
        return {each["node"] for each in self.job(name).get("workers", [])}


def trained(check: Check) -> None:
    """What people do with it."""
    fleet = Fleet(check)
    nodes = {pod["spec"]["nodeName"]: pod["status"]["podIP"] for pod in check.pods("agent")}

    def listed() -> dict[str, str]:
        return {
            each["name"]: each["address"]
            for each in json.loads(fleet.told("holdfast node list -o json"))["nodes"]
        }

    check.comes_to("agents have the names of their nodes and the addresses of their pods", listed, nodes)
    digits = fleet.post({"world_size": 4})
    check.comes_to(
        "the job of the quickstart succeeds", lambda: fleet.job(digits).get("state"), "JOB_STATE_SUCCEEDED"
    )
    logs = f"holdfast job logs {digits} --server {fleet.address('coordinator')}:7070"
    accurate = "with an accuracy above 0.9, as its logs say"
    check.comes_to(accurate, lambda: "test accuracy 0.9" in check.run(logs, ends=None))
    job = fleet.post({**LONGER, "world_size": 4})
    check.comes_to("a longer one has checkpoints", lambda: fleet.steps(job) > 0)
    check.run("kubectl -n holdfast delete pod holdfast-coordinator-0")
    fleet.goes_on("its coordinator is replaced", job)
    check.says(
        "and no worker was started again", {each["attempt"] for each in fleet.job(job)["workers"]}, {1}
    )

    (busy,) = fleet.nodes(job)
    (other,) = CPU_NODES - {busy}
    before = {pod["spec"]["nodeName"]: identity(pod) for pod in check.pods("agent")}
    said = fleet.told(f"holdfast node drain {busy} --for-upgrade").splitlines()
    lines = [line.strip() for line in said if line.startswith("  ")]
    check.says(
        "node drain --for-upgrade prints two commands",
        [line.split()[0] for line in lines],
        ["kubectl", "holdfast"],
    )
    check.comes_to("the job is on the other node", lambda: fleet.nodes(job), {other})
    check.run(lines[0])
    check.settled({"agent": 2})
    after = {pod["spec"]["nodeName"]: identity(pod) for pod in check.pods("agent")}
    check.says(
        "the first replaces that node's agent alone", {n for n in after if after[n] != before[n]}, {busy}
    )
    state = f"holdfast node list | grep {busy}"
    check.comes_to("the new one is there, and drained", lambda: "ready,drained" in fleet.told(state))
    fleet.told(lines[1])
    check.says("the second takes it back", "drained" in fleet.told(state), wanted=False)
    fleet.goes_on("an agent is replaced", job)

    check.run(f"kubectl -n holdfast delete pod -l {AGENT} --field-selector spec.nodeName={other}")
    check.comes_to("an agent is deleted without a drain: it drains", lambda: fleet.nodes(job), {busy})
    fleet.goes_on("by itself", job)
    check.comes_to("the job succeeds", lambda: fleet.job(job).get("state"), "JOB_STATE_SUCCEEDED")
    moved = fleet.job(job)["restarts"]
    check.says("each rank was moved twice, and started again for nothing else", moved, 8)
