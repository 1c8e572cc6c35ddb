"""The manifests of k8s/ as `kubectl apply -k` would send them."""

import copy
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("dev", "prod", "gpu", "monitoring")


@cache
def _rendered(overlay):
    """Of a copy, for which secrets are made."""
    with tempfile.TemporaryDirectory() as directory:
        k8s = Path(shutil.copytree(ROOT / "k8s", f"{directory}/k8s", ignore=shutil.ignore_patterns("*.env")))
        subprocess.run([k8s / "make-secrets"], check=True, timeout=60)
        done = subprocess.run(
            ["kubectl", "kustomize", k8s / "overlays" / overlay],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def _parsed(overlay):
    return list(yaml.load_all(_rendered(overlay), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def text_of(overlay):
    """One overlay, as YAML. kubectl must be there."""
    return _rendered(overlay)


def objects_of(overlay):
    """The objects of one overlay."""
    return copy.deepcopy(_parsed(overlay))


def pods_of(objects):
    """The objects that make pods, each with the specification of these."""
    return [(it, it["spec"]["template"]["spec"]) for it in objects if "template" in it.get("spec", {})]


def named(objects, kind, name):
    """The one object of a kind and a name."""
    (found,) = [it for it in objects if it["kind"] == kind and it["metadata"]["name"] == name]
    return found
