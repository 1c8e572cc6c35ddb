"""Golden traces: what the coordinator's core does, event by event, as a text to be read.

`pytest tests/traces --rewrite` writes them anew; git shows what changed, and a person says whether it should have.
"""

from pathlib import Path

import pytest

from tests.traces.language import Interpreter

TRACES = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace(path, request):
    text = path.read_text()
    happens = Interpreter().run(text)
    if request.config.getoption("rewrite", default=False):
        path.write_text(happens)
    assert happens == path.read_text()


def test_there_are_traces():
    assert len(TRACES) >= 8
