"""Builds both images, runs them, and measures them, on a machine without Docker: `make images-check`, as root.

    build     buildah builds both Dockerfiles, in a chroot, upon a Debian with Python that debootstrap makes, in place
              of python:3.12-slim, and one with Node.js; then says how large the images are
    run       their file systems run in a chroot, as their configuration says: read-only, as 65532, a process tree of
              their own. Coordinator, gateway and two agents train the digits, over an S3 that moto plays; then it is
              measured how soon a first step is done
    compose   podman-compose runs docker-compose.yaml as it is; moto stands in for MinIO. An agent is killed on the way

Each part runs in namespaces of its own, so that with it all that it started and mounted is gone, also after SIGKILL.
What was built stays below .images/, for the next time. Registries are reached as pip, apt and npm are set up here.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast import __version__

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / ".images"
NAMES = ("coordinator", "agent")
TAG = "local"
BASE, NODE = "localhost/holdfast-check-base", "localhost/holdfast-check-node"
MINIO = next(
    line.split()[-1]
    for line in (ROOT / "docker-compose.yaml").read_text().splitlines()
    if "minio/minio:" in line
)
NEEDED = {
    "debootstrap": "debootstrap",
    "buildah": "buildah",
    "podman": "podman",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "iptables": "iptables",
    "curl": "curl",
}
UID = 65532
LIMITS = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
PATIENCE_S = 120.0
ROUNDS = 10
JOB = '{"world_size": 4}'
LONGER = json.dumps(
    {
        "world_size": 4,
        "command": ["python", "-m", "holdfast.examples.digits", "--epochs", "800"],
        "restart": {"scope": "rank"},
    }
)
S3 = {"USE_S3": "1", "S3_BUCKET": "holdfast", "S3_ENDPOINT": "http://127.0.0.1:9000"}
S3 |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
FIRST_STEP = """
import time, numpy, holdfast
run = holdfast.init()
run.restore(default={})
run.step()
print(time.time())
"""
PARTS = {"build": ["--mount"], "run": ["--mount", "--net"], "compose": ["--mount", "--net"]}


def main() -> None:
    """Run the parts, each in its namespaces; this process has none, and cleans up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}  [default: all]")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        sys.exit(f"there is no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    if options.inside:
        {"build": build, "run": run, "compose": compose}[options.parts[0]](Path(options.inside))
        return
    missing = [package for name, package in NEEDED.items() if shutil.which(name) is None]
    if missing:
        sys.exit(f"images are checked with Debian's packages: apt-get install -y {' '.join(missing)}")
    if os.getuid() != 0:
        sys.exit("images are checked as root: debootstrap, mounts and namespaces ask for it")
    for part in options.parts or PARTS:
        print(f"== {part}", flush=True)
        with tempfile.TemporaryDirectory(prefix="holdfast-images-") as scratch:
            Path(scratch).chmod(0o755)
            apart = ["unshare", *PARTS[part], "--propagation=private", "--pid", "--fork", "--kill-child"]
            dying = ["setpriv", "--pdeathsig=KILL", *apart, "--mount-proc"]
            done = subprocess.run(
                [*dying, sys.executable, __file__, part, f"--inside={scratch}"], check=False
            )
        if done.returncode:
            sys.exit(f"{part} failed")


def buildah(scratch: Path, *words: str, **more: Any) -> str:
    """Run buildah on the images that are kept."""
    own = ["buildah", f"--root={KEPT}/storage", f"--runroot={scratch}/run", "--storage-driver=overlay"]
    done = subprocess.run([*own, *words], check=True, stdout=subprocess.PIPE, text=True, **more)
    return done.stdout.strip()


# Building.


def build(scratch: Path) -> None:
    """Make the bases, unless they are there, then both images."""
    (KEPT / "storage").mkdir(parents=True, exist_ok=True)
    buildah(scratch, "rm", "--all")  # what a part that was killed has left
    there = buildah(scratch, "images", "--format", "{{.Name}}")
    if BASE not in there.split():
        make_base(scratch)
    settings = registry_settings(scratch)
    common = ["build", "--format=docker", "--isolation=chroot", "--layers", *settings]
    if NODE not in there.split():
        steps = f"FROM {BASE}\nRUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends nodejs npm\n"
        buildah(scratch, *common, f"--tag={NODE}", "--file=-", str(scratch), input=steps)
    pairs = (f"BASE={BASE}", f"NODE_IMAGE={NODE}", f"VERSION={__version__}")
    arguments = [f"--build-arg={pair}" for pair in pairs]
    for name in NAMES:
        began = time.monotonic()
        file = f"--file={ROOT}/Dockerfile.{name}"
        log = buildah(scratch, *common, *arguments, f"--tag={tagged(name)}", file, str(ROOT))
        took, cached = time.monotonic() - began, log.count("Using cache")
        print(f"holdfast-{name}: built in {took:.0f} s, {cached} steps from cache")
    (scratch / "Containerfile").write_text(MINIO_STAND_IN.format(agent=tagged("agent")))
    buildah(scratch, *common, f"--tag={MINIO}", f"--file={scratch}/Containerfile", str(scratch))
    sizes(scratch)


def make_base(scratch: Path) -> None:
    """Debian with Python, and as in python:slim without its bytecode."""
    packages = "ca-certificates,python3,python3-venv,python3-pip"
    debian = platform.freedesktop_os_release().get("VERSION_CODENAME", "bookworm")
    root = scratch / "base"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", debian, root],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    for file in [*root.glob("usr/lib/**/*.pyc"), *root.glob("var/cache/apt/**/*.deb")]:
        file.unlink()
    lists = root / "var/lib/apt/lists"
    shutil.rmtree(lists)
    lists.mkdir()
    container = buildah(scratch, "from", "scratch")
    buildah(scratch, "add", "--quiet", container, str(root), "/")
    buildah(scratch, "commit", "--quiet", "--rm", container, BASE)


def registry_settings(scratch: Path) -> list[str]:
    """How pip, npm and apt reach their registries here: as secrets of the build, and by this machine's certificates."""
    pip, npm = scratch / "pip.conf", scratch / "npmrc"
    names = ("index-url", "extra-index-url", "trusted-host", "proxy")
    found = {name: told("pip", "config", "get", f"global.{name}") for name in names}
    lines = [f"{name} = {value}" for name, value in found.items() if value and "file:" not in value]
    pip.write_text("\n".join(["[global]", *lines, "cert = /etc/ssl/certs/ca-certificates.crt", ""]))
    registry = told("npm", "config", "get", "registry")
    lines = [f"registry={registry}"] if registry else []
    npm.write_text("\n".join([*lines, "cafile=/etc/ssl/certs/ca-certificates.crt", ""]))
    secrets = [f"--secret=id=pip,src={pip}", f"--secret=id=npmrc,src={npm}"]
    return [*secrets, "--volume=/etc/ssl/certs:/etc/ssl/certs:ro"]


def told(*command: str) -> str:
    """What a command says; nothing where there is none."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


MINIO_STAND_IN = """\
FROM {agent}
USER root
RUN --mount=type=secret,id=pip,target=/etc/pip.conf pip install --no-cache-dir 'moto[server]>=5.1'
RUN mkdir /data \
 && echo 'from urllib.request import urlopen; urlopen("http://127.0.0.1:9000/")' >/usr/local/lib/mc.py \
 && printf '#!/bin/sh\\n[ "$*" = "ready local" ] && exec python /usr/local/lib/mc.py\\n' >/usr/local/bin/mc \
 && printf '%s\\n' '#!/bin/sh' '[ "$*" = "server /data --address=:9000" ] && touch /data/mine || exit 1' \
    '[ "$(cat $MINIO_ROOT_USER_FILE)" = holdfast ] && [ "$(wc -c <$MINIO_ROOT_PASSWORD_FILE)" = 48 ] || exit 1' \
    'exec moto_server -H 0.0.0.0 -p 9000' >/usr/local/bin/minio \
 && chmod +x /usr/local/bin/mc /usr/local/bin/minio
ENTRYPOINT ["tini", "--", "minio"]
CMD []
"""


def sizes(scratch: Path) -> None:
    """How large the images are: on a disk, and as they are pulled."""
    print(
        "\n| image | on disk, MB | of that the base | pulled, MB | of that the base |\n| --- | --- | --- | --- | --- |"
    )
    disk = {name: on_disk(scratch, name) for name in (BASE, *map(tagged, NAMES))}
    pulled = {}
    for name in disk:
        place = scratch / "oci"
        buildah(scratch, "push", "--quiet", name, f"oci:{place}")
        blobs = sorted((file.stat().st_size for file in (place / "blobs/sha256").iterdir()), reverse=True)
        pulled[name] = sum(blobs)
        shutil.rmtree(place)
    for name in list(disk)[1:]:
        numbers = (disk[name], disk[BASE], pulled[name], pulled[BASE])
        print(f"| {name.partition('/')[2]} | {' | '.join(f'{number / 1e6:.0f}' for number in numbers)} |")
    print(flush=True)


def tagged(name: str) -> str:
    """The image of a name."""
    return f"localhost/holdfast-{name}:{TAG}"


def configuration(scratch: Path, image: str) -> dict[str, Any]:
    """The configuration of an image, as Docker has it."""
    return dict(json.loads(buildah(scratch, "inspect", "--type=image", image))["Docker"]["config"])


def on_disk(scratch: Path, image: str) -> int:
    """How many bytes its files have."""
    container = buildah(scratch, "from", image)
    root = buildah(scratch, "mount", container)
    seen = subprocess.run(["du", "-sb", root], check=True, capture_output=True, text=True).stdout
    buildah(scratch, "rm", container)
    return int(seen.split()[0])


# Running, without an engine.


class Image:
    """The file system of an image, mounted, and what its configuration says of how to run it."""

    def __init__(self, scratch: Path, name: str) -> None:
        self.config = configuration(scratch, tagged(name))
        self.root = Path(buildah(scratch, "mount", buildah(scratch, "from", tagged(name))))
        assert self.config["User"] == f"{UID}:{UID}"
        assert self.config["Entrypoint"] == ["tini", "--", "holdfast"]

    def command(
        self, argv: Sequence[str], env: Mapping[str, str], volumes: Mapping[Path, str], *, stamp: bool = False
    ) -> list[str]:
        """A command line that runs a program there: read-only, but for /tmp and the volumes, and as nobody special."""
        root = self.root
        steps = [
            f"mount --bind {root} {root}",
            f"mount -o remount,bind,ro {root}",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp",  # noqa: S108
            *(f"mount --bind {path} {root}{inside}" for path, inside in volumes.items()),
            f"cd {root}",  # the new root, not what lies below it
            "date +%s.%N >&2" if stamp else ":",
            'exec chroot "$@"',
        ]
        variables = [*self.config["Env"], "HOME=/tmp", *(f"{name}={value}" for name, value in env.items())]
        user = f"--userspec={self.config['User']}"
        inside = ["env", "-i", *variables, "env", f"--chdir={self.config['WorkingDir']}", *argv]
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        return [*apart, "sh", "-euc", "; ".join(steps), "sh", user, str(root), *inside]


class Containers:
    """Processes in the file systems of images; `close` ends what is left of them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.images = {name: Image(scratch, name) for name in NAMES}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def directory(self, name: str) -> Path:
        """A directory that belongs to who runs in images."""
        path = self.scratch / name
        path.mkdir(exist_ok=True)
        os.chown(path, UID, UID)
        return path

    def start(
        self, name: str, image: str, *words: str, env: Mapping[str, str] | None = None, stamp: bool = False
    ) -> None:
        """Start one by its entry point, with its state in a volume; or what that starts, and say when."""
        argv = [*(["holdfast"] if stamp else self.images[image].config["Entrypoint"]), *words]
        volumes = {self.directory(name): f"/var/lib/holdfast/{image}"}
        with (self.scratch / f"{name}.log").open("ab") as log:
            command = self.images[image].command(argv, env or {}, volumes, stamp=stamp)
            self.running[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def call(
        self, image: str, argv: Sequence[str], state: str = "", env: Mapping[str, str] | None = None
    ) -> str:
        """Run a program there to its end."""
        volumes = {self.directory(state): f"/var/lib/holdfast/{image}"} if state else {}
        command = self.images[image].command(argv, env or {}, volumes)
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def until_healthy(self, name: str, image: str) -> None:
        """Wait until the image's HEALTHCHECK finds the container well."""
        kind, *argv = self.images[image].config["Healthcheck"]["Test"]
        assert kind == "CMD"

        def well() -> bool:
            try:
                return self.call(image, argv, name) == ""
            except AssertionError:
                return False

        wait(well, self.log(name))

    def log(self, name: str) -> Path:
        """Where a container's output is."""
        return self.scratch / f"{name}.log"

    def stop(self, name: str) -> None:
        """SIGTERM, as an engine does, to the first process; it has to end by itself, and well."""
        process = self.running.pop(name)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), 15)
        code = process.wait(PATIENCE_S)
        assert code == 0, f"{name} ended with {code}: {self.log(name).read_text()}"

    def processes(self) -> list[tuple[int, str]]:
        """The user and the command of every process there."""
        roots = {str(image.root) for image in self.images.values()}
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if str((path / "root").readlink()) in roots:
                    found.append(
                        (path.stat().st_uid, (path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
                    )
            except OSError:
                pass  # it is gone
        return found


def wait(condition: Any, log: Path | None = None) -> Any:
    """Ask until there is an answer."""
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < until, log.read_text() if log else "it took too long"
        time.sleep(0.2)
    return found


def curl(*words: str) -> Any:
    """What the gateway answers, or nothing."""
    done = subprocess.run(["curl", "-sSf", *words], check=False, capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else ""


def train(job: str = JOB, meanwhile: Callable[[dict[str, Any]], object] = lambda _: None) -> dict[str, Any]:
    """Create a job as the documents do, do something when it has a checkpoint, and see it succeed."""
    created = wait(lambda: curl("-X", "POST", "localhost:8000/jobs", "-d", job))
    path = f"localhost:8000/jobs/{json.loads(created)['id']}"
    look = [meanwhile]

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = json.loads(curl(path) or "{}")
        state = found.get("state", "")
        assert state not in ("JOB_STATE_FAILED", "JOB_STATE_STOPPED"), f"{found}\n{curl(f'{path}/logs')}"
        if look and json.loads(curl(f"{path}/checkpoints") or "{}").get("checkpoints"):
            look.pop()(found)
        return found if state == "JOB_STATE_SUCCEEDED" else None

    return {**wait(ended), "output": curl(f"{path}/logs")}


@contextmanager
def s3(scratch: Path) -> Iterator[None]:
    """An S3 with a bucket, of this environment's moto."""
    with (scratch / "s3.log").open("wb") as log:
        server = subprocess.Popen(
            [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", "9000"],
            stdout=log,
            stderr=log,
        )
    try:
        wait(
            lambda: curl("-w", "%{http_code}", "-X", "PUT", f"{S3['S3_ENDPOINT']}/{S3['S3_BUCKET']}"),
            scratch / "s3.log",
        )
        yield
    finally:
        server.kill()
        server.wait()


def run(scratch: Path) -> None:
    """Train the digits in the images, and see what they promise."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    containers = Containers(scratch)
    with s3(scratch):
        containers.start("coordinator", "coordinator", *containers.images["coordinator"].config["Cmd"])
        containers.until_healthy("coordinator", "coordinator")
        containers.start("gateway", "coordinator", "gateway", "--listen=127.0.0.1:8000")
        for name in ("agent-a", "agent-b"):
            words = [
                *containers.images["agent"].config["Cmd"],
                f"--name={name}",
                "--slots=2",
                "--drain-on-term",
            ]
            containers.start(name, "agent", *words, env=S3)
            containers.until_healthy(name, "agent")
        containers.call("coordinator", ["holdfast", "health", "gateway", "--url=http://127.0.0.1:8000"])
        job = train()
        print(f"digits: {job['output'].strip()}; on {', '.join(sorted(w['node'] for w in job['workers']))}")
        assert {worker["node"] for worker in job["workers"]} == {"agent-a", "agent-b"}
        assert "test accuracy 0.9" in job["output"]
        assert "<html" in curl("localhost:8000/").lower(), "the dashboard is not there"
        there = containers.processes()
        assert {user for user, _ in there} == {UID}, there
        contract(containers)
        for name in ("agent-a", "agent-b"):
            containers.stop(name)
        figures(containers)
        for name in ("gateway", "coordinator"):
            containers.stop(name)
    assert containers.processes() == [], "something outlived its container"
    buildah(scratch, "rm", "--all")


def contract(containers: Containers) -> None:
    """What k8s/ and images that are built upon these rely on."""
    owner = containers.call("agent", ["stat", "-c", "%u", "/var/lib/holdfast/agent"])
    assert owner.strip() == str(UID)
    containers.call("agent", ["chown", "--version"])  # of which k8s/ has an init container make use
    for name in NAMES:
        image = containers.images[name]
        assert not list(image.root.glob("run/secrets/*"))
        pip = image.root / "etc/pip.conf"  # where it was mounted an empty file may be left
        assert not (pip.exists() and pip.read_text())
        labels = image.config["Labels"]
        assert labels["org.opencontainers.image.title"] == f"holdfast-{name}"
        assert labels["org.opencontainers.image.version"] in containers.call(name, ["holdfast", "--version"])
        failed = subprocess.run(
            image.command(["touch", "/opt/holdfast/mine"], {}, {}),
            check=False,
            capture_output=True,
            text=True,
        )
        assert "Read-only file system" in failed.stderr
    containers.call("agent", ["pip", "--version"])


def figures(containers: Containers) -> None:
    """How soon the first step is done in a container, beside the same as mere processes in the same file system."""
    agent = containers.images["agent"]
    program = ["python", "-c", FIRST_STEP]
    alone = {"HOLDFAST_CHECKPOINT_URI": "/tmp/checkpoints"}  # noqa: S108  of a container
    mere: dict[str, list[float]] = {"the program": [], "an agent, with its job waiting": []}
    contained: dict[str, list[float]] = {what: [] for what in mere}

    def in_program(argv: list[str], *, stamp: bool) -> float:
        began = time.time()
        command = agent.command(argv, alone, {}, stamp=stamp)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(done.stdout) - (float(done.stderr.split()[0]) if stamp else began)

    def in_agent(name: str, *, stamp: bool) -> float:
        created = curl("-X", "POST", "localhost:8000/jobs", "-d", json.dumps({"command": program}))
        path = f"localhost:8000/jobs/{json.loads(created)['id']}"
        began = time.time()
        containers.start(name, "agent", *agent.config["Cmd"], f"--name={name}", "--slots=1", stamp=stamp)
        wait(lambda: json.loads(curl(path))["state"] == "JOB_STATE_SUCCEEDED")
        if stamp:
            began = float(containers.log(name).read_text().split()[0])
        ended = float(curl(f"{path}/logs").split()[-1])
        containers.stop(name)
        return ended - began

    for number in range(ROUNDS):
        mere["the program"].append(in_program(program, stamp=True))
        contained["the program"].append(in_program(["tini", "--", *program], stamp=False))
        mere["an agent, with its job waiting"].append(in_agent(f"mere-{number}", stamp=True))
        contained["an agent, with its job waiting"].append(in_agent(f"contained-{number}", stamp=False))
    print(
        "\n| from the start of | as a process, s | as a container, s | difference |\n| --- | --- | --- | --- |"
    )
    for (what, one), other in zip(mere.items(), contained.values(), strict=True):
        shown = [f"{statistics.median(t):.2f} ({min(t):.2f} to {max(t):.2f})" for t in (one, other)]
        print(f"| {what} | {' | '.join(shown)} | {statistics.median(other) - statistics.median(one):+.2f} |")
    print(flush=True)


# Running docker-compose.yaml.


def compose(scratch: Path) -> None:
    """Run docker-compose.yaml as it is, in Podman."""
    for place in ("/run", "/dev/shm"):  # noqa: S108  Podman's locks, networks and mounts are ours alone
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    if Path("/sys/fs/cgroup/unified").is_mount():
        subprocess.run(
            ["umount", "/sys/fs/cgroup/unified"], check=True
        )  # crun wants one version of control groups
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    env = podman_environment(scratch)
    own = [
        Path(sys.executable).with_name("podman-compose"),
        f"--podman-path={scratch}/podman",
        "--project-name=check",
    ]

    def call(*words: str) -> None:
        subprocess.run([*own, *words], cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)

    try:
        call("config")
        call("up", "--detach", "--no-build")
        job = train()
        print(f"digits: {job['output'].strip()}; on {', '.join(sorted(w['node'] for w in job['workers']))}")
        assert "test accuracy 0.9" in job["output"]
        names = healthy(scratch, env)
        look = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9000/holdfast?list-type=2').read())"
        (minio,) = [name for name in names if "minio" in name]
        objects = podman(scratch, env, "exec", minio, "python", "-c", look)
        assert f"checkpoints/{job['id']}/" in objects, objects
        assert "manifest.json" in objects, objects
        killed = []

        def kill(job: dict[str, Any]) -> None:
            killed.append(job["workers"][0]["node"])
            call("kill", killed[0])

        job = train(LONGER, meanwhile=kill)
        assert killed[0] not in {worker["node"] for worker in job["workers"]}
        print(f"digits once more, {killed[0]} killed on the way: {job['output'].splitlines()[-1]}")
    except BaseException:
        call("logs")
        raise
    finally:
        call("down", "--volumes")


def podman_environment(scratch: Path) -> dict[str, str]:
    """Podman with what was built, no more rights than there are here, and all else in a directory that goes away."""
    limits = [f"{name}={resource.getrlimit(limit)[1]}" for name, limit in LIMITS.items()]
    quoted = ", ".join(f'"{limit}:{limit.partition("=")[2]}"' for limit in limits)
    (scratch / "containers.conf").write_text(
        f'[containers]\ndefault_ulimits = [{quoted}]\ncgroups = "disabled"\n'
        f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{scratch}/networks"\n'
        f'[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    wrapper = scratch / "podman"
    store = f"--root={scratch}/storage --runroot={scratch}/run --storage-driver=overlay"
    store += f" --storage-opt=overlay.imagestore={KEPT}/storage"
    # Podman 4.3 wants all that a container requires to run, also what was to end before; podman-compose waits itself.
    wrapper.write_text(
        "#!/bin/sh\n"
        'for word do shift; case $word in --requires=*) ;; *) set -- "$@" "$word" ;; esac; done\n'
        f'exec {shutil.which("podman")} {store} "$@"\n'
    )
    wrapper.chmod(0o755)
    # There is no systemd here whose timers run health checks.
    return {**os.environ, "CONTAINERS_CONF": str(scratch / "containers.conf"), "DISABLE_HC_SYSTEMD": "true"}


def podman(scratch: Path, env: Mapping[str, str], *words: str) -> str:
    """What Podman says."""
    done = subprocess.run([scratch / "podman", *words], env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"podman {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def healthy(scratch: Path, env: Mapping[str, str]) -> list[str]:
    """See that every health check of the file finds its container well."""
    names = podman(scratch, env, "ps", "--format={{.Names}}").split()
    assert len(names) == 5, names  # what ends by itself has ended
    for name in names:
        podman(scratch, env, "healthcheck", "run", name)
    print(f"well: {', '.join(names)}")
    return names


if __name__ == "__main__":
    main()
