"""Accepting connections, also when there are no descriptors left for them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

__all__ = ["Door"]


class Door:
    """A listening socket, with a descriptor kept for turning connections away.

    A connection that can't be accepted for want of descriptors (EMFILE) would wait, and wake
    whoever polls the socket, for ever.
    """

    def __init__(self, listener: socket.socket) -> None:
        """Take over a listening socket that does not block."""
        self.listener = listener
        self._spare = _open_spare()

    def accept(self) -> socket.socket | None:
        """Accept a connection; None when there is none, or it had to be turned away."""
        try:
            return self.listener.accept()[0]
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._spare >= 0:
                self._turn_one_away()
            return None

    def close(self) -> None:
        """Close the socket."""
        self.listener.close()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def _turn_one_away(self) -> None:
        os.close(self._spare)
        with contextlib.suppress(OSError):  # it may have gone by itself
            self.listener.accept()[0].close()
        self._spare = _open_spare()


def _open_spare() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
