"""The last lines of an output, and the one that matters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent import tail

TRACEBACK = """\
Traceback (most recent call last):
  File "train.py", line 3, in <module>
    import foo
ModuleNotFoundError: No module named 'foo'
"""


def matters(text, *, signalled=False):
    return tail.line_that_matters(tail.clean(text.encode()), signalled=signalled)


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("", ""),
        ("a\nb\n\n  \n", "b"),
        (TRACEBACK, "ModuleNotFoundError: No module named 'foo'"),
        (
            TRACEBACK + "[W] destroy_process_group() was not called\n",
            "ModuleNotFoundError: No module named 'foo'",
        ),
        (
            TRACEBACK + "\nDuring handling of the above exception, another exception occurred:\n\n"
            'Traceback (most recent call last):\n  File "x", line 1\nRuntimeError: second\n',
            "RuntimeError: second",
        ),
        (
            "  File \"t.py\", line 1\n    foo(\n       ^\nSyntaxError: '(' was never closed\n",
            "SyntaxError: '(' was never closed (t.py, line 1)",
        ),
        (
            (
                'Traceback (most recent call last):\n  File "t.py", line 3, in <module>\n    import u\n'
                '  File "/a/u.py", line 7\n    x\nIndentationError: unexpected indent\n'
            ),
            "IndentationError: unexpected indent (/a/u.py, line 7)",
        ),
        ("SyntaxError: not a program\n", "SyntaxError: not a program"),
        (
            (
                '[rank0]: Traceback (most recent call last):\n[rank0]:   File "t.py", line 9, in <module>\n'
                '[rank0]:   File "u.py", line 2\n[rank0]: TabError: tabs\n[W] more\n'
            ),
            "TabError: tabs (u.py, line 2)",
        ),
        (
            '[rank0]: Traceback (most recent call last):\n[rank0]:   File "x"\n[rank0]: ValueError: nan\n',
            "ValueError: nan",
        ),
        ('Traceback (most recent call last):\n  File "x"\n', 'File "x"'),
        ("RuntimeError: CUDA out of memory.\n", "RuntimeError: CUDA out of memory."),
    ],
)
def test_the_line_that_matters(output, line):
    assert matters(output) == line


def test_who_was_ended_by_a_signal_did_not_end_by_its_last_exception():
    assert matters(TRACEBACK + "epoch 3\n", signalled=True) == "epoch 3"
    fatal = 'Fatal Python error: Segmentation fault\n\nCurrent thread 0x1:\n  File "x", line 1 in f\n'
    assert matters(fatal, signalled=True) == "Fatal Python error: Segmentation fault"
    abort = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
    assert "std::bad_alloc" in matters(abort, signalled=True)


def test_a_progress_bar_is_its_last_state_and_colours_are_none():
    assert tail.clean(b"\r 10%|#   |\r100%|####|\r\n\x1b[31mError:\x1b[0m no\x07\x00\n") == [
        "100%|####|",
        "Error: no",
    ]


def test_no_more_than_fifty_lines_and_eight_kibibytes():
    assert len(tail.clean(b"x\n" * 500)) == 50
    long = tail.clean(b"y" * 5_000 + b"\n" + "ä".encode() * 5_000 + b"\nlast\n")
    assert long == ["y" * 1_000, "ä" * 1_000, "last"]
    assert sum(len(line) + 1 for line in tail.clean((b"z" * 900 + b"\n") * 50)) <= tail.MOST_BYTES


@given(st.binary(max_size=3_000))
def test_whatever_is_in_a_log_becomes_lines_that_can_be_shown(output):
    lines = tail.clean(output)
    assert sum(len(line.encode()) + 1 for line in lines) <= tail.MOST_BYTES
    assert all(
        character == "\t" or character.isprintable() or ord(character) > 0x9F
        for line in lines
        for character in line
    )
    assert tail.clean("\n".join(lines).encode()) == lines
    tail.line_that_matters(lines, signalled=False)


def test_stdout_is_looked_at_where_stderr_has_nothing(tmp_path):
    (tmp_path / "out").write_bytes(b"a" * 100_000 + b"\nlast words\n")
    (tmp_path / "err").write_bytes(b"\n \n")
    assert tail.last_lines(tmp_path / "err", tmp_path / "out")[-1] == "last words"
    assert tail.last_lines(tmp_path / "none") == []
    (tmp_path / "err").write_bytes(b"error\n")
    assert tail.last_lines(tmp_path / "err", tmp_path / "out") == ["error"]
