"""Whose turn it is to work, where a program is at work that would have to wait for a CPU.

ksmd is one thread. The engine is the daemon and a thread in each process, and where all of them
work at once, a program that wakes up finds every CPU taken. So they take turns then: half of the
CPUs are left to others, and on two CPUs that is one thread at a time, as with ksmd.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from typing import TYPE_CHECKING

from pagemerge import _core
from pagemerge.engine.wire import render_ping, render_step_back

if TYPE_CHECKING:
    from pagemerge.engine.clients import Client

__all__ = ["BUSY_SECONDS", "Turns"]

BUSY_SECONDS = 0.02  # a request seldom takes as long; then another may begin


class Turns:
    """The registered processes, in the order in which they are asked."""

    def __init__(self) -> None:
        """Nobody takes part yet."""
        self._order: deque[Client] = deque()  # the one asked last at its end
        self._asked: list[Client] = []  # who may be busy
        self._at_a_time = max(1, len(os.sched_getaffinity(0)) // 2)
        self._stepped_back = False

    def add(self, client: Client) -> None:
        """Let a process take part."""
        self._order.append(client)
        if self._stepped_back:
            client.tell(render_step_back(True))

    def remove(self, client: Client) -> None:
        """Let it take part no longer."""
        self._order.remove(client)
        if self._stepped_back:
            client.tell(render_step_back(False))

    @property
    def are_few(self) -> bool:
        """Whether a program is at work, so that not everybody may go on at once."""
        return any(client.at_work is not False and client.answers for client in self._order)

    def begin_pass(self) -> None:
        """Ask those of whom it is not known yet whether they are at work, all at once."""
        for client in self._order:
            if client.at_work is None:
                client.tell(render_ping(0))

    def end_pass(self) -> None:
        """Whoever has not answered in a whole pass keeps the others waiting no longer."""
        for client in self._order:
            client.at_work = bool(client.at_work)

    def taken(self, now: float) -> bool:
        """Tell whether as many work as may, so that the daemon waits, too."""
        return self.are_few and self._busy(now) >= self._at_a_time

    def send_requests(self) -> None:
        """Hand agents what is wanted of them: one request at a time where turns are few."""
        few = self.are_few
        self._step_back(few)
        if not few:
            for client in self._order:
                client.send_requests()
            self._asked = list(self._order)
            return
        room = self._at_a_time - self._busy(time.monotonic())
        for _ in range(len(self._order)):
            if room <= 0:
                return
            client = self._order.popleft()
            self._order.append(client)
            if client.send_requests(1):
                self._asked.append(client)
                room -= 1

    def _busy(self, now: float) -> int:
        then = now - BUSY_SECONDS
        self._asked = [client for client in self._asked if client.asked_since(then)]
        return len(self._asked)

    def _step_back(self, further: bool) -> None:
        if further != self._stepped_back:
            self._stepped_back = further
            with contextlib.suppress(OSError):  # forbidden, perhaps: it would only be politer
                _core.step_back(further)
            for client in self._order:
                client.tell(render_step_back(further))
