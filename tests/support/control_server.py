"""The daemon's control server in a thread, with verbs of the test's own."""

from __future__ import annotations

import contextlib
import selectors
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pagemerge.engine.control import ControlServer
from pagemerge.engine.settings import Settings

__all__ = ["Server", "serving", "short_folder", "status_of"]

Verbs = dict[str, Callable[[dict[str, Any]], Any]]


class Server:
    """A `ControlServer` in a thread."""

    def __init__(self, runtime: Path, verbs: Verbs) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        listener.bind(str(runtime / "control.sock"))
        listener.listen()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, lambda _mask: None)
        self.control = ControlServer(listener, self._selector, verbs)
        self._publish: list[list[dict[str, Any]]] = []
        self._ending = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ending:
            for key, mask in self._selector.select():
                key.data(mask)
            if self._publish and self.control.has_subscribers:
                self.control.publish(self._publish.pop(0), lost=3)
        self.control.close()
        self._selector.close()

    def publish(self, lines: list[dict[str, Any]]) -> None:
        self._publish.append(lines)

    def close(self) -> None:
        self._ending = True
        self._wake.close()
        self._thread.join()
        self._woken.close()


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A private folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp") as folder:
        yield Path(folder)


@contextlib.contextmanager
def serving(runtime: Path, **verbs: Any) -> Iterator[Server]:
    """Serve in a runtime folder; each verb is what answers it."""
    with contextlib.suppress(FileNotFoundError):
        (runtime / "control.sock").unlink()
    server = Server(runtime, verbs)
    try:
        yield server
    finally:
        server.close()


def status_of(settings: Settings, **counters: int) -> Callable[[dict[str, Any]], Any]:
    """What `status` answers."""
    return lambda _request: {
        "knobs": settings.values(),
        "counters": counters,
        "daemon": {"pid": 7, "cpu_seconds": 0.5},
    }
