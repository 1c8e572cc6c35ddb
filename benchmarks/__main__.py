"""Measures, and rewrites RESULTS.md; with names of parts (`python -m benchmarks step`) measures and prints those."""

import sys
from pathlib import Path

from benchmarks import (
    checkpoints,
    cli,
    commits,
    dashboard,
    gateway,
    heartbeats,
    loader,
    logs,
    pods,
    recovery,
    step,
    summary,
    supervision,
    warm,
    watchers,
)
from benchmarks.figures import machine

PARTS = {
    "recovery": recovery.measure,
    "supervision": supervision.measure,
    "pods": pods.measure,
    "warm": warm.measure,
    "step": step.measure,
    "heartbeats": heartbeats.measure,
    "commits": commits.measure,
    "checkpoints": checkpoints.measure,
    "loader": loader.measure,
    "logs": logs.measure,
    "cli": cli.measure,
    "summary": summary.measure,
    "watchers": watchers.measure,
    "dashboard": dashboard.measure,
    "gateway": gateway.measure,
}
RESULTS = Path(__file__).with_name("RESULTS.md")
KEPT = "\n## Images\n"
"""What begins so is printed by `make images-check`, and kept."""


def main() -> None:
    chosen = sys.argv[1:] or list(PARTS)
    pages = []
    for name in chosen:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        for table in PARTS[name]():
            pages.append(table.markdown())
            print(pages[-1], flush=True)
    if chosen == list(PARTS):
        text = "\n".join(pages)
        _, _, kept = RESULTS.read_text().partition(KEPT)
        RESULTS.write_text(f"# Results\n\nMeasured by `make bench` on {machine()}.\n\n{text}{KEPT}{kept}")


if __name__ == "__main__":
    main()
