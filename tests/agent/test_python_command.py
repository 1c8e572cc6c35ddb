"""Which commands can start warm."""

import sys

import pytest

from holdfast_agent.environment import is_ours, shared_environment
from holdfast_agent.python_command import Program, python_program


@pytest.mark.parametrize(
    ("line", "interpreter", "runs"),
    [
        ("python train.py", "python", "train.py"),
        (
            "/opt/venv/bin/python3.12 train.py --lr -1 -m x",
            "/opt/venv/bin/python3.12",
            "train.py --lr -1 -m x",
        ),
        ("./python3.13t -u -- x", None, None),
        (
            "python3 -u -OO -Wd -W error -X dev -Xutf8 a.py b",
            "python3 -u -OO -Wd -W error -X dev -Xutf8",
            "a.py b",
        ),
        ("python -m mod -m other", "python", "-m mod -m other"),
        ("python -um mod x", "python -u", "-m mod x"),
        ("python -mmod x", "python", "-m mod x"),
        ("python -Bc print(1) x", "python -B", "-c print(1) x"),
        ("python -uW ignore x.py", "python -uW ignore", "x.py"),
        ("python --check-hash-based-pycs never x.py", "python --check-hash-based-pycs never", "x.py"),
    ],
)
def test_a_program_is_taken_apart(line, interpreter, runs):
    found = python_program(line.split())
    if interpreter is None:
        assert isinstance(found, str)
    else:
        assert found == Program(tuple(interpreter.split()), tuple(runs.split()))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("torchrun train.py", "torchrun is no Python interpreter"),
        ("sh -c python", "sh is no Python interpreter"),
        ("/usr/bin/python2 x.py", "/usr/bin/python2 is no Python interpreter"),
        ("python", "it names no program"),
        ("python -u", "it names no program"),
        ("python -", "it names no program"),
        ("python -m", "it names no program"),
        ("python -W", "it names no program"),
        ("python --version", "--version runs no program"),
        ("python -V", "-V is no option of a program that runs by itself"),
        ("python -i x.py", "-i is no option of a program that runs by itself"),
        ("python -E x.py", "-E has it ignore PYTHONPATH"),
        ("python -uI x.py", "-I has it ignore PYTHONPATH"),
        ("python -S x.py", "-S has it start without site"),
    ],
)
def test_what_cannot_start_warm_says_why(line, why):
    assert python_program(line.split()) == why


def test_this_interpreter_is_one():
    assert python_program([sys.executable, "x.py"]) == Program((sys.executable,), ("x.py",))


def test_what_is_preloaded_for_all_knows_no_rank():
    env = {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "1",
        "HOLDFAST_CACHE_DIR": "/cache",
        "HOLDFAST_HEARTBEAT_FILE": "/x",
        "TORCHELASTIC_RUN_ID": "a",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_PORT": "1",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    assert shared_environment(env) == {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "1",
        "HOLDFAST_CACHE_DIR": "/cache",
    }
    assert [
        is_ours(name) for name in ("HOLDFAST_JOB_ID", "HOLDFAST_CACHE_DIR", "TORCHELASTIC_X", "RANK")
    ] == [
        True,
        False,
        True,
        False,
    ]
