"""Views that refresh themselves: `--watch`."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["watch"]


def watch(draw: Callable[[int], None], seconds: float) -> NoReturn:
    """Draw again and again, until interrupted.

    On a terminal each drawing takes the place of the last, on a screen of its own that is gone at
    the end, however that comes; elsewhere they follow each other, a blank line between.

    Args:
        draw: prints to stdout and stderr; gets the lines there are room for, 0: any number.
        seconds: from the end of a drawing to the next.

    Raises:
        KeyboardInterrupt: by Ctrl-C.
        PagemergeError: what `draw` raises.
    """
    if not sys.stdout.isatty():
        while True:
            draw(0)
            sys.stdout.flush()
            time.sleep(seconds)
            sys.stdout.write("\n")
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    # SystemExit and not the default action: Live has to give the screen back
    with (
        _ending_on(signal.SIGTERM, signal.SIGHUP),
        Live(
            Text(""), console=Console(), screen=True, auto_refresh=False, vertical_overflow="crop"
        ) as live,
    ):
        while True:
            lines = shutil.get_terminal_size().lines
            text = _draw(draw, lines)
            live.update(Text.from_ansi("\n".join(text.split("\n")[:lines])), refresh=True)
            time.sleep(seconds)


class _Screen(io.StringIO):
    """Takes what is drawn; what draws is to think that it is the terminal."""

    def isatty(self) -> bool:
        return True


def _draw(draw: Callable[[int], None], lines: int) -> str:
    screen = _Screen()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        draw(lines)
    return screen.getvalue()


@contextlib.contextmanager
def _ending_on(*numbers: signal.Signals) -> Iterator[None]:
    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
