"""Memory of large blocks is used again."""

import platform
import subprocess
import sys

import pytest

ROUNDS = 200
BLOCK = 2**20
PROGRAM = f"""
import resource, sys
from holdfast.allocator import keep_large_blocks
if sys.argv[1] == "kept":
    keep_large_blocks()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
kept, source = [], bytearray(b"x") * {BLOCK}
for _ in range(4):  # the first of all have their faults
    kept = [bytes(source) for _ in range(3)]
before = faults()
for _ in range({ROUNDS}):
    kept = []
    kept = [bytes(source) for _ in range(3)]
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator is another matter")
def test_what_was_freed_is_used_again_instead_of_new_pages():
    def faults(which):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, which], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("kept") < ROUNDS
    assert faults("as it is") > ROUNDS
