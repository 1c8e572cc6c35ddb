"""What docs/data.md shows is true."""

import re
import subprocess
import sys
from pathlib import Path

from holdfast.data.formats import SUFFIXES
from holdfast.spec import SpecFile
from holdfast.worker.windows import WINDOW

PAGE = Path(__file__).parents[2] / "docs/data.md"


def test_the_program_runs_and_goes_on(tmp_path):
    program, shards = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "train.py").write_text(program)
    subprocess.run([sys.executable, "-c", shards], cwd=tmp_path, check=True, timeout=60)
    for _ in range(2):
        subprocess.run([sys.executable, "-W", "error", "train.py"], cwd=tmp_path, check=True, timeout=60)
    (latest,) = tmp_path.rglob("LATEST")
    assert latest.read_text() == "step-0000000237\n"


def test_the_job_file_is_one(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "job.yaml").write_text(re.sub("^  ", "", text, flags=re.MULTILINE))
    (found,) = SpecFile(tmp_path / "job.yaml").part.to_proto().datasets
    assert (found.name, found.uri) == ("train", "s3://bucket/train/")


def test_what_it_says_of_formats_and_the_window():
    page = PAGE.read_text()
    assert [suffix for suffix in SUFFIXES if f"`{suffix}`" not in page] == []
    assert f"{WINDOW:,} unless" in page
