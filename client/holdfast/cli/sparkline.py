"""A curve in one line of text."""

from collections.abc import Sequence
from itertools import pairwise

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """Draw values as bars between their least and their largest; of more than `width`, means of neighbours."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [n * len(values) // width for n in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    least, most = min(means), max(means)
    if most == least:
        return BARS[0] * width
    return "".join(BARS[min(7, int((mean - least) / (most - least) * 8))] for mean in means)
