"""Builds what is released: `python scripts/release.py wheel|sbom`, as `make wheel` and `make sbom` run it.

The same commit gives the same bytes, wherever and whenever it is built: its time is in the archives, no other is.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
STATIC = Path("gateway/holdfast_gateway/static")
NO_DASHBOARD = (
    "the dashboard is not built here, so the wheel is without it: run `make dashboard` first, with Node.js"
)
NOT_OURS = {"dev", "examples", "jax", "torch"}
"""Extras that are of no use to what we run ourselves."""


def epoch() -> str:
    """The time that goes into the archives: of the last commit, unless SOURCE_DATE_EPOCH says it."""
    said = os.environ.get("SOURCE_DATE_EPOCH")
    if said:
        return said
    asked = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            "this is no git checkout: say by SOURCE_DATE_EPOCH of when the release is, in seconds since 1970"
        )
    return done.stdout.strip()


def build(source: Path, to: Path, **environment: str) -> list[Path]:
    """Build the sdist of a directory, and from it the wheel. Returns both, the wheel first."""
    to.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "build", "--outdir", str(to), str(source)]
    env = {**os.environ, "SOURCE_DATE_EPOCH": epoch(), **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the wheel can't be built:\n{done.stdout}{done.stderr}")
    return [next(to.glob("*.whl")), next(to.glob("*.tar.gz"))]


def wheel() -> None:
    """Build wheel and sdist into dist/."""
    for old in [*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")]:
        old.unlink()
    for made in build(ROOT, DIST):
        print(f"{made.relative_to(ROOT)}  {made.stat().st_size / 1024:.0f} KiB")
    if not (ROOT / STATIC / "index.html").is_file():
        print(NO_DASHBOARD, file=sys.stderr)


def built() -> Path:
    """The wheel in dist/."""
    found = list(DIST.glob("*.whl"))
    if len(found) != 1:
        sys.exit("there is no wheel in dist/: run `make wheel`")
    return found[0]


def sbom() -> None:
    """Write dist/holdfast-VERSION.cdx.json: what an environment holds that has the wheel with all its extras."""
    ours = built()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chosen = sorted(set(project["optional-dependencies"]) - NOT_OURS)
    to = DIST / f"{'-'.join(ours.name.split('-')[:2])}.cdx.json"
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "venv")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        add(environment / "bin/python", f"holdfast[{','.join(chosen)}] @ {ours.as_uri()}")
        for record in environment.glob("lib/*/site-packages/holdfast-*.dist-info/direct_url.json"):
            record.unlink()  # says where the wheel lay on this machine
        command = [Path(sys.executable).with_name("cyclonedx-py"), "environment", "--output-reproducible"]
        command += ["--output-file", to, environment / "bin/python"]
        subprocess.run(command, env={**os.environ, "SOURCE_DATE_EPOCH": epoch()}, check=True)
    count = len(json.loads(to.read_text())["components"])
    print(f"{to.relative_to(ROOT)}  {count} packages, with the extras {', '.join(chosen)}")


def add(python: Path, *wanted: str) -> None:
    """Install packages into the environment of an interpreter."""
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(wanted)} can't be installed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    {"wheel": wheel, "sbom": sbom}[sys.argv[1]]()
