"""docs/worker-contract.md says what the code does: the page's layout, and the environment."""

import re
from pathlib import Path

from holdfast import heartbeat
from holdfast_agent.environment import Place, worker_environment

PAGE = (Path(__file__).parents[2] / "docs/worker-contract.md").read_text()


def test_the_layout_of_the_page():
    said = re.findall(r"^\| (\d+) \| `?([\dsqd ]+|\d+ each)`? \|", PAGE, re.MULTILINE)
    documented = re.findall(r"^(\d+) +(\d+s|(?:5 )?q|\d+ each) ", heartbeat.__doc__, re.MULTILINE)
    assert said == documented
    assert len(said) == 16


def test_the_environment():
    place = Place("j1", 1, 2, 1, 2, 0, 1, 0, "gang", None, (0,), "127.0.0.1", 7001)
    places = dict.fromkeys(
        ("checkpoint_uri", "node_checkpoints", "socket", "heartbeat_file", "spool_dir", "resume_from"), "/x"
    )
    given = worker_environment(place, inherited={}, asked={}, datasets_file="/x", **places)
    (table,) = re.findall(r"## Environment\n(.*?)\n\n[A-Z]", PAGE, re.DOTALL)
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == given.keys()
