"""A Kubernetes control plane on loopback, of the programs that are here, and one thread that stands for all kubelets.

API server, controllers, scheduler and etcd are the real ones. Nodes are objects, and no container runs: the thread says
of pods that they do. Those wait that name a Secret or ConfigMap that is not there, and those that end are let go.
"""

import base64
import http.client
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
PATIENCE_S = 120.0
LOOK_EVERY_S = 0.2
PORTS = ("etcd", "peer", "api", "kube-controller-manager", "kube-scheduler", "kubelet")
USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    "olga": "",
}
POLICY = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]}
POLICY["rules"] = [{"level": "Metadata", "verbs": ["create"], "resources": [{"resources": ["pods"]}]}]  # type: ignore[assignment]
ENDS_WITH_US = ("setpriv", "--pdeathsig=KILL")
Object = dict[str, Any]


def programs(directory: str) -> dict[str, str]:
    """Where the programs are, by name; or the end of this program, with a sentence.

    In `directory` they are looked for before the PATH.
    """
    path = f"{Path(directory).resolve()}:{os.environ['PATH']}" if directory else None
    found = {name: shutil.which(name, path=path) for name in (*PROGRAMS, "kubectl", "setpriv", "openssl")}
    if missing := [name for name, where in found.items() if where is None]:
        sys.exit(
            f"no {', '.join(missing)} here: etcd is in Debian's etcd-server; kube-apiserver, kube-controller-manager "
            "and kube-scheduler are in the server archive of each Kubernetes release: put them on the PATH, or say "
            "where they are, as in make kube-check KUBE_BIN=DIR"
        )
    return {name: str(where) for name, where in found.items()}


def wait(what: str, condition: Callable[[], Any]) -> Any:
    """Ask until there is an answer."""
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"it took too long: {what}")
        time.sleep(LOOK_EVERY_S)
    return found


class RefusedError(Exception):
    """What the API server answers in place of what was asked for."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Api:
    """What the API server answers to one user."""

    def __init__(self, port: int, token: str, authority: Path) -> None:
        self.port, self.token = port, token
        self.context = ssl.create_default_context(cafile=str(authority))

    def text(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> str:
        """Ask, and be answered or refused."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.context)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            said = answer.read().decode()
        finally:
            connection.close()
        if answer.status >= 300:
            raise RefusedError(answer.status, said)
        return said

    def call(self, method: str, path: str, body: Object | None = None) -> Object:
        """The object that is the answer."""
        found: Object = json.loads(self.text(method, path, body))
        return found

    def items(self, path: str) -> list[Object]:
        """All objects of a list."""
        return self.call("GET", path).get("items") or []

    def merge(self, path: str, body: Object) -> None:
        """Change some fields."""
        self.text("PATCH", path, body, "application/strategic-merge-patch+json")

    def made(self, path: str, body: Object) -> None:
        """Make an object."""
        self.text("POST", path, body)

    def ready(self) -> bool:
        """Whether the server serves."""
        try:
            return self.text("GET", "/readyz") == "ok"
        except (OSError, RefusedError):
            return False


class Kubelets(threading.Thread):
    """What kubelets of all nodes but the `dead` tell; `unready` are pods that run, but are not ready."""

    def __init__(self, api: Api) -> None:
        super().__init__(daemon=True)
        self.api, self.unready, self.dead = api, set[str](), set[str]()
        self.ended = threading.Event()
        self.addresses = (f"10.244.{n // 250}.{n % 250 + 1}" for n in range(60_000))

    def run(self) -> None:
        """Look at all pods, again and again."""
        while not self.ended.wait(LOOK_EVERY_S):
            try:
                for pod in self.api.items("/api/v1/pods"):
                    if pod["spec"].get("nodeName") and pod["spec"]["nodeName"] not in self.dead:
                        self.look(pod)
                self.route()
            except (OSError, RefusedError):
                pass  # the pod is gone, or was changed meanwhile: it is looked at anew

    def route(self) -> None:
        """Have Services lead to their endpoints; there is nobody here to follow."""

    def look(self, pod: Object) -> None:
        """Let one pod go, or say of it what is to be said now."""
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        if pod["metadata"].get("deletionTimestamp"):
            gone = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
            self.api.call("DELETE", path, gone)
            return
        status = pod.get("status", {})
        ready = pod["metadata"]["name"] not in self.unready
        said = {each["type"]: each["status"] for each in status.get("conditions", [])}.get("Ready")
        if status.get("phase") == "Succeeded" or said == str(ready):
            return
        if status.get("phase") != "Running" and list(missing(self.api, pod)):
            return
        address = status.get("podIP") or next(self.addresses)
        batch = pod["spec"]["restartPolicy"] != "Always"
        done = batch and status.get("phase") == "Running"
        self.api.merge(
            f"{path}/status", {"status": report(pod, address, ready=ready and not batch, done=done)}
        )


def missing(api: Api, pod: Object) -> Iterator[str]:
    """The Secrets and ConfigMaps, and their keys, that a pod wants and that are not there."""
    wanted: set[tuple[str, str, str]] = set()
    for volume in pod["spec"].get("volumes", []):
        if "secret" in volume and not volume["secret"].get("optional"):
            wanted.add(("secrets", volume["secret"]["secretName"], ""))
    for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]):
        for source in container.get("envFrom", []):
            for kind, plural in (("secretRef", "secrets"), ("configMapRef", "configmaps")):
                if kind in source and not source[kind].get("optional"):
                    wanted.add((plural, source[kind]["name"], ""))
        for source in (each["valueFrom"] for each in container.get("env", []) if "valueFrom" in each):
            for kind, plural in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
                if kind in source:
                    wanted.add((plural, source[kind]["name"], source[kind]["key"]))
    for plural, name, key in sorted(wanted):
        try:
            found = api.call("GET", f"/api/v1/namespaces/{pod['metadata']['namespace']}/{plural}/{name}")
        except RefusedError as error:
            if error.code != 404:
                raise
            yield f"{plural}/{name}"
            continue
        if key and key not in found.get("data", {}):
            yield f"{plural}/{name}: {key}"


def report(pod: Object, address: str, *, ready: bool, done: bool) -> Object:
    """The status of a pod whose containers run, or are done."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    over = {"terminated": {"exitCode": 0, "startedAt": now, "finishedAt": now}}
    state = over if done else {"running": {"startedAt": now}}

    def of(containers: list[Object], state: Object, *, ready: bool) -> list[Object]:
        same = {"ready": ready, "started": True, "restartCount": 0, "imageID": "none", "state": state}
        return [{"name": each["name"], "image": each["image"], **same} for each in containers]

    names = {"Ready": ready, "ContainersReady": ready, "Initialized": True}
    return {
        "phase": "Succeeded" if done else "Running",
        "hostIP": "127.0.0.1",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": now,
        "conditions": [
            {"type": kind, "status": str(value), "lastTransitionTime": now} for kind, value in names.items()
        ],
        "containerStatuses": of(pod["spec"]["containers"], state, ready=ready),
        "initContainerStatuses": of(pod["spec"].get("initContainers", []), over, ready=True),
    }


class ControlPlane:
    """The four programs; `api` is an administrator's."""

    def __init__(self, scratch: Path, found: Mapping[str, str]) -> None:
        self.scratch, self.found = scratch, found
        self.running: list[subprocess.Popen[bytes]] = []
        self.ports = dict(zip(PORTS, free(len(PORTS)), strict=True))
        self.url = f"https://127.0.0.1:{self.ports['api']}"
        self.tokens = {user: secrets.token_urlsafe(24) for user in USERS}
        self.audit = scratch / "audit.log"

    def start(self) -> None:
        """Start them, one after the other."""
        files = self.scratch
        lines = (f'{token},{user},{user},"{USERS[user]}"' for user, token in self.tokens.items())
        (files / "tokens").write_text("\n".join(lines) + "\n")
        (files / "policy").write_text(json.dumps(POLICY))
        key = ["genrsa", "-out", files / "accounts.key", "2048"]
        subprocess.run([self.found["openssl"], *key], check=True, capture_output=True)
        etcd, peer = (f"http://127.0.0.1:{self.ports[name]}" for name in ("etcd", "peer"))
        self.program(
            "etcd",
            f"--data-dir={files}/etcd",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )
        self.program(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.ports['api']}",
            "--endpoint-reconciler-type=none",
            "--kubelet-preferred-address-types=InternalIP",
            f"--cert-dir={files}/certificates",
            f"--token-auth-file={files}/tokens",
            "--authorization-mode=Node,RBAC",
            f"--service-account-key-file={files}/accounts.key",
            f"--service-account-signing-key-file={files}/accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--audit-policy-file={files}/policy",
            f"--audit-log-path={self.audit}",
        )
        authority = files / "certificates/apiserver.crt"
        self.alive_until("the API server makes its certificate", authority.exists)
        self.api = Api(self.ports["api"], self.tokens["admin"], authority)
        self.alive_until("the API server is ready", self.api.ready)
        manager = (
            f"--service-account-private-key-file={files}/accounts.key",
            f"--root-ca-file={authority}",
            "--use-service-account-credentials=true",
            "--node-monitor-grace-period=24h",  # no kubelet tells that its node is well, and yet it is
        )
        self.client("kube-controller-manager", *manager)
        self.client("kube-scheduler")

        def accounts() -> bool:
            return bool(self.api.items("/api/v1/namespaces/default/serviceaccounts"))

        self.alive_until("the controllers make accounts", accounts)

    def client(self, name: str, *arguments: str) -> None:
        """Start one that works on what the API server has."""
        self.program(
            name,
            f"--kubeconfig={self.kubeconfig(f'system:{name}')}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.ports[name]}",
            f"--cert-dir={self.scratch}/{name}",
            f"--authentication-kubeconfig={self.kubeconfig('admin')}",
            f"--authorization-kubeconfig={self.kubeconfig('admin')}",
            *arguments,
        )

    def program(self, name: str, *arguments: str) -> None:
        """Start one; it ends with this process."""
        with (self.scratch / f"{name}.log").open("wb") as log:
            command = [*ENDS_WITH_US, self.found[name], *arguments]
            self.running.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self.scratch))

    def alive_until(self, what: str, condition: Callable[[], Any]) -> None:
        """Wait, as long as all of them run; else say what the last words were."""

        def there() -> Any:
            for process in self.running:
                if process.poll() is not None:
                    name = Path(process.args[len(ENDS_WITH_US)]).name  # type: ignore[index, arg-type]
                    log = (self.scratch / f"{name}.log").read_text(errors="replace")
                    raise AssertionError(f"{name} ended with {process.returncode}: {log[-3000:]}")
            return condition()

        wait(what, there)

    def kubeconfig(self, user: str) -> Path:
        """The file by which a user reaches it."""
        authority = base64.b64encode((self.scratch / "certificates/apiserver.crt").read_bytes()).decode()
        path = self.scratch / f"{user.rpartition(':')[2]}.kubeconfig"
        cluster = {"server": self.url, "certificate-authority-data": authority}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "check", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self.tokens[user]}}],
            "contexts": [{"name": "check", "context": {"cluster": "check", "user": user}}],
            "current-context": "check",
        }
        path.write_text(json.dumps(config))
        return path

    def stop(self) -> None:
        """End them, the last first: an API server waits for its etcd."""
        for process in reversed(self.running):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def control_plane(scratch: Path, found: Mapping[str, str]) -> Iterator[ControlPlane]:
    """Have one as long as this lasts."""
    plane = ControlPlane(scratch, found)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


def free(count: int) -> list[int]:
    """Ports that nobody has."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def node(
    name: str, kubelet: int, labels: Mapping[str, str], capacity: Mapping[str, str], taints: list[Object]
) -> Object:
    """A node that is well."""
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        **labels,
    }
    room = {"cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "200Gi", **capacity}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints},
        "status": {
            "capacity": room,
            "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "addresses": [
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "Hostname", "address": name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet}},
        },
    }
