"""Kubelets that run pods: their containers are processes, as the manifests say, but in this machine's file system.

A pod has a network and an address of its own, a container a process tree, mounts and no more rights than it is given.
Its root is read-only, its user 65532; probes are asked, SIGTERM comes first and SIGKILL after the grace period. The
names of Services are in /etc/hosts, and their addresses lead to an endpoint that is ready. moto stands in for MinIO.
"""

import base64
import http.client
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import grpc
from control_plane import ENDS_WITH_US, Api, Kubelets, Object, RefusedError, missing, report
from grpc_health.v1 import health_pb2, health_pb2_grpc

BIN = Path(sys.executable).parent
BRIDGE, GATEWAY = "holdfast0", "10.244.255.254"
PROBE_EVERY_S = 1.0
MADE = "import os, sys, boto3; from urllib.parse import urlparse; at = urlparse(os.environ['MC_HOST_store'])"
MADE += "; boto3.client('s3', endpoint_url=f'http://{at.hostname}:{at.port}', aws_access_key_id=at.username,"
MADE += " aws_secret_access_key=at.password, region_name='us-east-1').create_bucket(Bucket=sys.argv[-1].split('/')[1])"
ENTRIES = {
    "holdfast-coordinator": ["tini", "--", str(BIN / "holdfast")],
    "holdfast-agent": ["tini", "--", str(BIN / "holdfast")],
    "minio": ["tini", "--", "sh", "-c", f"exec {BIN}/moto_server -H 0.0.0.0 -p 9000", "minio"],
    "mc": ["tini", "--", str(BIN / "python"), "-c", MADE],
}
"""What images start, by their names."""


def bridge() -> None:
    """The network that pods are in. This process has to have a network of its own."""
    if subprocess.run(["ip", "link", "show", BRIDGE], check=False, capture_output=True).returncode == 0:
        return
    for line in (
        f"ip link add {BRIDGE} type bridge",
        f"ip addr add {GATEWAY}/16 dev {BRIDGE}",
        f"ip link set {BRIDGE} up",
        "sysctl -qw net.ipv4.ip_forward=1",
    ):
        subprocess.run(line.split(), check=True)


class Machines(Kubelets):
    """Every node's kubelet, all on this machine."""

    def __init__(self, api: Api, scratch: Path) -> None:
        super().__init__(api)
        self.scratch, self.pods = scratch, dict[str, Pod]()
        self.told: tuple[list[str], list[str]] = ([], [])
        self.postgresql: Path | None = None

    def look(self, pod: Object) -> None:
        """Start what is new, and have end what is to end."""
        uid = pod["metadata"]["uid"]
        if (
            uid not in self.pods
            and not pod["metadata"].get("deletionTimestamp")
            and not list(missing(self.api, pod))
        ):
            self.pods[uid] = Pod(self, pod, next(self.addresses))
            self.pods[uid].resolves("".join(self.told[0]))
            self.pods[uid].start()
        if pod["metadata"].get("deletionTimestamp") and (
            uid not in self.pods or not self.pods[uid].is_alive()
        ):
            super().look(pod)
        elif pod["metadata"].get("deletionTimestamp"):
            self.pods[uid].ending.set()

    def route(self) -> None:
        """Have the addresses of Services lead to endpoints that are ready, as kube-proxy does."""
        services = self.api.items("/api/v1/namespaces/holdfast/services")
        names = {each["metadata"]["name"]: each["spec"] for each in services}
        lines = [
            f"{spec['clusterIP']} {name} {name}.holdfast.svc.cluster.local\n" for name, spec in names.items()
        ]
        rules = []
        for each in self.api.items("/apis/discovery.k8s.io/v1/namespaces/holdfast/endpointslices"):
            spec = names.get(each["metadata"]["labels"]["kubernetes.io/service-name"])
            ready = [one for one in each.get("endpoints") or [] if one["conditions"]["ready"]]
            if spec and ready:
                to = f"{ready[0]['addresses'][0]}:{each['ports'][0]['port']}"
                port = spec["ports"][0]["port"]
                rules.append(
                    f"-A PREROUTING -d {spec['clusterIP']} -p tcp --dport {port} -j DNAT --to-destination {to}"
                )
        if (told := (lines, rules)) == self.told:
            return
        self.told = told
        # What has been led elsewhere has to come back this way.
        table = ["*nat", *rules, "-A POSTROUTING -m conntrack --ctstate DNAT -j MASQUERADE", "COMMIT", ""]
        subprocess.run(["iptables-restore"], input="\n".join(table), text=True, check=True)
        for pod in self.pods.values():
            pod.resolves("".join(lines))

    def failures(self) -> list[str]:
        """What went wrong in pods."""
        return [
            f"{each.pod['metadata']['name']}: {what}" for each in self.pods.values() for what in each.failed
        ]

    def close(self) -> None:
        """End all, at once."""
        self.ended.set()
        if self.is_alive():
            self.join()
        for each in self.pods.values():
            each.killed.set()
        for each in self.pods.values():
            each.join()


class Pod(threading.Thread):
    """One pod, until it is gone."""

    def __init__(self, machines: Machines, pod: Object, address: str) -> None:
        super().__init__(daemon=True)
        self.api, self.pod, self.address = machines.api, pod, address
        self.postgresql = machines.postgresql
        self.node = machines.scratch / "nodes" / pod["spec"]["nodeName"]
        self.claims = machines.scratch / "claims"
        self.own = machines.scratch / "pods" / pod["metadata"]["name"]
        self.own.mkdir(parents=True, exist_ok=True)
        self.ending, self.killed = threading.Event(), threading.Event()
        self.names, self.said = "", None
        self.resolves("")
        self.path = f"/api/v1/namespaces/holdfast/pods/{pod['metadata']['name']}"
        (self.container,) = pod["spec"]["containers"]
        self.failed: list[str] = []

    def resolves(self, names: str) -> None:
        """Write /etc/hosts anew, in place."""
        if names != self.names or not (self.own / "hosts").exists():
            self.names = names
            own = f"127.0.0.1 localhost\n{self.address} {self.pod['metadata']['name']}\n"
            (self.own / "hosts").write_text(own + names)

    def run(self) -> None:
        """Init containers, then the container, which is started again when it ends by itself."""
        for each in self.pod["spec"].get("initContainers", []):
            if (code := self.process(each).wait()) != 0:
                self.failed.append(f"{each['name']} ended with {code}")
                return
        once = self.pod["spec"]["restartPolicy"] != "Always"
        while not self.killed.is_set():
            process = self.process(self.container)
            while process.poll() is None and not self.ending.wait(PROBE_EVERY_S) and not self.killed.is_set():
                self.tell(ready=self.well("readinessProbe"))
                if self.container.get("livenessProbe") and self.said and not self.well("livenessProbe"):
                    self.failed.append(f"{self.container['name']} is said to be dead")
            if self.ending.is_set():
                self.stop(process)
                return
            if self.killed.is_set():
                signalled(process, 9)
                process.wait()
                return
            if once:  # and again, until it has what it waits for
                if process.returncode == 0:
                    self.report(ready=False, done=True)
                    return
                continue
            self.failed.append(f"{self.container['name']} ended with {process.returncode}")

    def tell(self, *, ready: bool) -> None:
        """Say it when it has changed."""
        if ready != self.said:
            with suppress(RefusedError, OSError):
                self.report(ready=ready, done=False)
                self.said = ready

    def report(self, *, ready: bool, done: bool) -> None:
        """Say how it is."""
        self.api.merge(
            f"{self.path}/status", {"status": report(self.pod, self.address, ready=ready, done=done)}
        )

    def stop(self, process: "subprocess.Popen[bytes]") -> None:
        """As a kubelet does; then the pod is gone."""
        signalled(process, 15)
        try:
            code = process.wait(self.pod["spec"]["terminationGracePeriodSeconds"])
        except subprocess.TimeoutExpired:
            self.failed.append(f"{self.container['name']} did not end in its grace period")
            signalled(process, 9)
            code = process.wait()
        if code:
            self.failed.append(f"{self.container['name']} ended with {code} when it was told to")
        gone = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.pod["metadata"]["uid"]}}
        self.api.call("DELETE", self.path, gone)

    def well(self, name: str) -> bool:
        """Ask a probe; without one a container that runs is ready."""
        probe = self.container.get(name)
        if probe is None or "minio" in self.container["image"]:
            return True
        if "grpc" in probe:
            with grpc.insecure_channel(f"{self.address}:{probe['grpc']['port']}") as channel:
                request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
                with suppress(grpc.RpcError):
                    answer = health_pb2_grpc.HealthStub(channel).Check(
                        request, timeout=probe.get("timeoutSeconds", 1)
                    )
                    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
            return False
        get = probe["httpGet"]
        (port,) = [each["containerPort"] for each in self.container["ports"] if each["name"] == get["port"]]
        connection = http.client.HTTPConnection(self.address, port, timeout=probe.get("timeoutSeconds", 1))
        try:
            connection.request("GET", get["path"])
            return 200 <= connection.getresponse().status < 400
        except OSError:
            return False
        finally:
            connection.close()

    def process(self, container: Object) -> "subprocess.Popen[bytes]":
        """Start a container."""
        variables = self.environment(container)
        entry = ENTRIES[container["image"].rpartition("/")[2].partition(":")[0]]
        words = [*container.get("command", entry), *container.get("args", [])]
        argv = [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word) for word in words]
        with (self.own / f"{container['name']}.log").open("ab") as log:
            apart = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            command = [*ENDS_WITH_US, *apart, "sh", "-euc", "; ".join(self.steps(container)), "sh"]
            inside = [
                *rights(self.pod["spec"]["securityContext"] | container["securityContext"]),
                "env",
                "-i",
            ]
            inside += [f"PATH={BIN}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1"]
            inside += [f"{name}={value}" for name, value in variables.items()]
            process = subprocess.Popen([*command, *inside, *argv], stdout=log, stderr=log)
        self.connect(process.pid)
        return process

    def connect(self, pid: int) -> None:
        """Give a process's network the pod's address, and a way to the bridge."""
        here = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{pid}/ns/net").readlink() == here:
            pass
        link = f"p{self.address.rpartition('.')[2]}-{pid}"[:15]
        for line in (
            f"ip link add {link} type veth peer name eth0 netns {pid}",
            f"ip link set {link} master {BRIDGE} up",
            f"nsenter -t {pid} -n ip link set lo up",
            f"nsenter -t {pid} -n ip addr add {self.address}/16 dev eth0",
            f"nsenter -t {pid} -n ip link set eth0 up",
            f"nsenter -t {pid} -n ip route add default via {GATEWAY}",
        ):
            subprocess.run(line.split(), check=True)

    def steps(self, container: Object) -> list[str]:
        """What makes a container's file system of this machine's, and waits for its network."""
        base, kept = Path(sys.base_prefix), "/mnt"
        etc = "".join(f",{name}dir={self.made(f'etc-{name}')}" for name in ("upper", "work"))
        steps = ["mount --make-rprivate /", f"mount -t overlay -o lowerdir=/etc{etc} overlay /etc"]
        steps += [f"mount --bind {self.own}/hosts /etc/hosts"]
        steps += [
            f"mount --bind {base} {kept}",
            "mount -t tmpfs -o mode=755 tmpfs /root",
        ]  # 65532 may not look in there
        steps += [f"mkdir -p {base}", f"mount --bind {kept} {base}", "mount -t tmpfs tmpfs /var/lib"]
        volumes = {each["name"]: each for each in self.pod["spec"]["volumes"]}
        for mount in container.get("volumeMounts", []):
            volume, target = volumes[mount["name"]], mount["mountPath"]
            if "emptyDir" in volume:
                steps.append(f"mount -t tmpfs -o mode=1777 tmpfs {target}")
            elif target.startswith(("/var/lib/", "/etc/")):  # what else there is, is MinIO's
                steps += [f"mkdir -p {target}", f"mount --bind {self.directory(volume)} {target}"]
        if self.postgresql:
            steps += ["mkdir /var/lib/postgresql", f"mount --bind {self.postgresql} /var/lib/postgresql"]
        steps.sort(key=lambda step: step.endswith("tmpfs /tmp"))  # the sources of the others are below it
        steps += [
            "mount -o remount,bind,ro /",
            "until ip -4 addr show dev eth0 up | grep -q inet; do sleep 0.05; done",
        ]
        return [*steps, "cd /", 'exec "$@"']

    def made(self, name: str) -> Path:
        """A new directory of the pod's own."""
        path = self.own / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def directory(self, volume: Object) -> Path:
        """Where a volume lies that outlives the pod; made as a kubelet and what provisions claims do."""
        if "secret" in volume:
            path = self.made(volume["name"])
            for name, value in self.data("secrets", volume["secret"]["secretName"]).items():
                (path / name).write_text(value)
                (path / name).chmod(volume["secret"]["defaultMode"])
                os.chown(path / name, 0, self.pod["spec"]["securityContext"]["fsGroup"])
            return path
        if "hostPath" in volume:
            path = self.node / volume["hostPath"]["path"].lstrip("/")
        else:
            path = self.claims / volume["persistentVolumeClaim"]["claimName"]
        if not path.exists():
            path.mkdir(parents=True)
            if "fsGroup" in self.pod["spec"]["securityContext"] and "hostPath" not in volume:
                os.chown(path, 0, self.pod["spec"]["securityContext"]["fsGroup"])
                path.chmod(0o2775)
        return path

    def environment(self, container: Object) -> dict[str, str]:
        """The variables of a container, as a kubelet fills them in."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            for kind, plural in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
                if kind in source:
                    found |= self.data(plural, source[kind]["name"])
        fields = {
            "spec.nodeName": self.pod["spec"]["nodeName"],
            "status.podIP": self.address,
            "metadata.namespace": self.pod["metadata"]["namespace"],
        }
        for each in container.get("env", []):
            source = each.get("valueFrom", {})
            if "fieldRef" in source:
                value = fields[source["fieldRef"]["fieldPath"]]
            elif "resourceFieldRef" in source:
                value = container["resources"]["limits"][
                    source["resourceFieldRef"]["resource"].partition(".")[2]
                ]
            elif source:
                ((kind, ref),) = source.items()
                value = self.data(
                    {"secretKeyRef": "secrets", "configMapKeyRef": "configmaps"}[kind], ref["name"]
                )[ref["key"]]
            else:
                value = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], each.get("value", ""))
            found[each["name"]] = value
        return found

    def data(self, plural: str, name: str) -> dict[str, str]:
        """What is in a ConfigMap or a Secret."""
        found = self.api.call("GET", f"/api/v1/namespaces/holdfast/{plural}/{name}")["data"]
        if plural == "secrets":
            return {key: base64.b64decode(value).decode() for key, value in found.items()}
        return dict(found)


def signalled(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Send a signal to the first process of a container, with which all of it ends."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), number)


def rights(context: Object) -> list[str]:
    """The user and the rights that a container's security context leaves to it."""
    added = "".join(f",+{name.lower()}" for name in context["capabilities"].get("add", []))
    user, group = context["runAsUser"], context["runAsGroup"]
    words = [
        "setpriv",
        f"--bounding-set=-all{added}",
        "--inh-caps=-all",
        f"--reuid={user}",
        f"--regid={group}",
    ]
    return [
        *words,
        f"--groups={context['fsGroup']}" if "fsGroup" in context else "--clear-groups",
        "--no-new-privs",
    ]
