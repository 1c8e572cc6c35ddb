"""A terminal that is drawn on anew and anew, by plain ANSI sequences, and left as it was."""

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from typing import Protocol

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, TO_LINE_END, TO_END = "\x1b[H", "\x1b[K", "\x1b[J"


class _Line(Protocol):
    @property
    def text(self) -> str: ...

    @property
    def style(self) -> str: ...


class Screen:
    """The whole terminal. `stirred` is set when it was resized or a key was pressed; `ended` when it is to end."""

    def __init__(self, *, colour: bool) -> None:
        self.stirred = asyncio.Event()
        self.ended = asyncio.Event()
        self._colour = colour
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._before = None if self._keys is None else termios.tcgetattr(self._keys)

    def size(self) -> tuple[int, int]:
        """Columns and lines, now."""
        try:
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            return 80, 24
        return columns, lines

    def draw(self, lines: Sequence[_Line]) -> None:
        """Show these lines, and nothing else."""
        drawn = [f"{self._styled(line)}{TO_LINE_END}" for line in lines]
        sys.stdout.write(HOME + "\n".join(drawn) + TO_END)
        sys.stdout.flush()

    def _styled(self, line: _Line) -> str:
        return f"\x1b[{line.style}m{line.text}\x1b[0m" if line.style and self._colour else line.text

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have the terminal: keys come one by one, and Ctrl-C, SIGTERM and `q` set `ended`."""
        loop = asyncio.get_running_loop()
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._end)
        handlers |= {signal.SIGWINCH: self.stirred.set, signal.SIGTSTP: self._suspend}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        self._take()
        if self._keys is not None:
            loop.add_reader(self._keys, self._key, self._keys)
        try:
            yield
        finally:
            if self._keys is not None:
                loop.remove_reader(self._keys)
            for number in handlers:
                loop.remove_signal_handler(number)
            with contextlib.suppress(OSError, termios.error):  # a terminal that was closed
                self._give_back()

    def _take(self) -> None:
        if self._keys is not None:
            tty.setcbreak(self._keys)
        sys.stdout.write(ENTER)

    def _give_back(self) -> None:
        if self._keys is not None and self._before is not None:
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)
        sys.stdout.write(LEAVE)
        sys.stdout.flush()

    def _suspend(self) -> None:
        """Ctrl-Z: the shell gets its terminal back, until it lets us go on."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self.stirred.set()

    def _key(self, keys: int) -> None:
        pressed = os.read(keys, 64)
        if not pressed or b"q" in pressed.lower():
            self._end()
        self.stirred.set()

    def _end(self) -> None:
        self.ended.set()
        self.stirred.set()
