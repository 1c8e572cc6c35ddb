"""What `promtool check metrics` asks of an exposition, and a bit more: names, help, types, units, series."""

import re
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
WRONG_UNITS = {
    "ms",
    "milliseconds",
    "us",
    "ns",
    "minutes",
    "hours",
    "kb",
    "kib",
    "mb",
    "mib",
    "percent",
    "count",
}
TARGET_LABELS = {"job", "instance"}


def check(text):
    """Raise AssertionError where a scrape is not as it should be. Returns its families by documented name."""
    assert text.endswith("\n")
    heads = Counter(re.findall(r"^# (HELP|TYPE) (\S+)", text, re.MULTILINE))
    families = {}
    for family in text_string_to_metric_families(text):
        name = family.name + "_total" * (family.type == "counter")
        assert heads["HELP", name] == heads["TYPE", name] == 1, f"{name} has not one HELP and one TYPE"
        assert name not in families
        families[name] = family
        _check_name(name, family)
        _check_series(name, family)
    assert families
    return families


def _check_name(name, family):
    assert NAME.fullmatch(name), name
    words = name.split("_")
    assert words[0] in ("holdfast", "process"), f"{name} has no prefix"
    assert not WRONG_UNITS & set(words), f"{name} is not in base units"
    assert family.documentation.strip(), f"{name} has no help"
    assert family.type in ("counter", "gauge", "histogram"), f"{name} is {family.type}"
    if family.type != "counter":
        assert words[-1] not in ("total", "sum", "bucket", "created"), f"{name} looks like no {family.type}"
    if family.type == "histogram":
        assert words[-1] in ("seconds", "bytes"), f"{name} has no unit"
    for unit in ("seconds", "bytes", "ratio"):
        if unit in words and "per" not in words:
            assert words[-2:] == [unit, "total"] or words[-1] == unit, f"{name} does not end in its unit"


def _check_series(name, family):
    series = Counter((sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples)
    assert all(count == 1 for count in series.values()), f"{name} has a series twice"
    kinds = {tuple(sorted(set(sample.labels) - {"le"})) for sample in family.samples}
    assert len(kinds) <= 1, f"{name} has other labels here than there"
    for label in next(iter(kinds), ()):
        assert NAME.fullmatch(label), f"{name} has a label {label}"
        assert label not in TARGET_LABELS, f"{name} has a label that Prometheus sets itself"
    if family.type == "counter":
        assert all(sample.value >= 0 for sample in family.samples)
    if family.type == "histogram":
        buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
        (count,) = [sample.value for sample in family.samples if sample.name.endswith("_count")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == count
