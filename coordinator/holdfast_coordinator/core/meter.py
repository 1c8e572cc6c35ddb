"""What is put down of a job from time to time: what its program reports, its throughput, its goodput."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import isfinite

from holdfast_coordinator.core.account import Summary
from holdfast_coordinator.core.model import Key, Progress
from holdfast_coordinator.core.series import OWN, Point

LEAST_CHANGE = 0.001
"""Of the goodput while nothing is done: it falls all the time then, ever more slowly."""


@dataclass(slots=True)
class Meter:
    """Of one job: where its ranks were when it was looked at last. Not stored."""

    at: dict[Key, Progress] = field(default_factory=dict)
    rates: dict[Key, float] = field(default_factory=dict)
    """Steps a second of each rank, by its own clock: at its last steps, whenever that was."""
    values: dict[str, float] = field(default_factory=dict)
    """What was put down last."""

    def measure(
        self, now: int, summary: Summary, newest: Mapping[Key, Progress], stepping: Collection[Key]
    ) -> dict[str, Point]:
        """Look at a job now. Returns a point of each series in which there is something new.

        `newest` is what every rank said last; `stepping` are those whose rate counts. A value that is no number is left
        out: it would be a gap in the curve.
        """
        moved = False
        for key, progress in newest.items():
            before = self.at.get(key, Progress())
            steps, ms = progress.steps_done - before.steps_done, progress.stepping_ms - before.stepping_ms
            moved |= steps > 0
            if steps > 0 and ms > 0:
                self.rates[key] = steps / ms * 1000
        self.at = dict(newest)
        self.rates = {key: rate for key, rate in self.rates.items() if key in newest}
        found = {name: value for name, value in summary.metrics.items() if name not in OWN}
        if self.rates:
            found["steps_per_second"] = sum(rate for key, rate in self.rates.items() if key in stepping)
        if summary.goodput is not None:
            found["goodput"] = summary.goodput
        fresh = {
            name: Point(now, summary.steps or 0, value)
            for name, value in found.items()
            if isfinite(value) and (moved or self._differs(name, value))
        }
        self.values |= {name: point.value for name, point in fresh.items()}
        return fresh

    def _differs(self, name: str, value: float) -> bool:
        before = self.values.get(name)
        if before is None:
            return True
        return abs(value - before) >= LEAST_CHANGE if name == "goodput" else value != before
