import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def fast_path(tmp_path):
    """A directory in memory where there is one, for what is written and thrown away a thousand times."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="holdfast-test-") as directory:
        yield Path(directory)
