"""`pagemerge daemon`: one per user and folder; agents on one socket, control on another."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Any

from pagemerge import __version__, _core
from pagemerge.engine import paths
from pagemerge.engine.agents import AgentServer
from pagemerge.engine.client import no_client
from pagemerge.engine.clients import Client
from pagemerge.engine.control import ControlServer, Later, deadline_in
from pagemerge.engine.scanning import Ksmd
from pagemerge.engine.settings import SCANNER_KNOBS, Settings
from pagemerge.engine.wire import Barrier, Mark, render_advise, render_advise_all
from pagemerge.errors import CommandError, EngineError, PagemergeError, RejectedError
from pagemerge.ksm import COUNTERS

__all__ = ["Daemon"]

log = logging.getLogger("pagemerge.daemon")

ADVISE_SECONDS = 10.0  # how long an agent may take to mark memory
UNMERGE_SECONDS = 60.0  # how long run=2 waits for the agents


class Daemon:
    """Everything in one thread: sockets, and ksmd in slices between them."""

    def __init__(self, runtime: Path, settings: Settings) -> None:
        """Bind both sockets in `runtime`, which the caller has locked."""
        self.runtime = runtime
        self.settings = settings
        self.scanners: dict[str, _core.Scanner] = {}
        self.selector = selectors.DefaultSelector()
        self.started = time.monotonic()
        self.stopping = False
        self._tracing = False
        self._pending_events: list[dict[str, Any]] = []
        self.ksmd = Ksmd(settings, self.scanners, self._emit)
        self.agents = AgentServer(
            _listen(runtime / paths.AGENT_SOCKET, socket.SOCK_SEQPACKET),
            self.selector,
            self.ksmd,
            self._scanner_of,
        )
        verbs = {
            "status": self._status,
            "set": self._set,
            "processes": self._processes,
            "regions": self._regions,
            "enable": lambda request: self._switch(request, True),
            "disable": lambda request: self._switch(request, False),
            "advise": self._advise,
            "events": lambda _request: {},
            "settle": self._settle,
            "stop": self._stop,
        }
        self.control = ControlServer(
            _listen(runtime / paths.CONTROL_SOCKET, socket.SOCK_STREAM), self.selector, verbs
        )

    # the loop

    def serve(self) -> None:
        """Run until told to stop."""
        wait: float | None = 0.0
        while not self.stopping:
            for key, mask in self.selector.select(wait):
                key.data(mask)
            now = time.monotonic()
            wait = self.ksmd.step(now)
            self._tend(now)
            if self.control.has_waiters:
                wait = 0.05 if wait is None else min(wait, 0.05)
            if wait is None and any(client.asked for client in self.agents.clients.values()):
                wait = 1.0  # to notice an agent that does not answer

    def stop_on_signals(self) -> None:
        """End the loop on SIGTERM, SIGINT and SIGHUP; the pipe ends its wait."""
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing)
        self.selector.register(reading, selectors.EVENT_READ, lambda _mask: os.read(reading, 64))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: setattr(self, "stopping", True))

    def close(self) -> None:
        """Let go of the sockets; clients keep their memory and look for the next daemon."""
        self.agents.close()
        self.control.close()
        for name in (paths.AGENT_SOCKET, paths.CONTROL_SOCKET):
            with contextlib.suppress(OSError):
                (self.runtime / name).unlink()

    def _tend(self, now: float) -> None:
        self.agents.tend(now)
        if self.control.has_waiters:
            self.ksmd.send_requests()
        self.control.tend(now)
        wanted = self.control.has_subscribers
        if wanted != self._tracing:
            self._tracing = wanted
            for scanner in self.scanners.values():
                scanner.trace(wanted)
        if wanted:
            self._publish()

    # trace events

    def _emit(self, name: str, fields: dict[str, int]) -> None:
        if self._tracing:
            self._pending_events.append({"event": name, "time": time.monotonic(), **fields})

    def _publish(self) -> None:
        events, self._pending_events = self._pending_events, []
        lost = 0
        for scanner in self.scanners.values():
            found, dropped = scanner.take_events()
            lost += dropped
            for name, when, mm, address, slot, err in found:
                client = self.agents.clients.get(mm)
                events.append(
                    {
                        "event": name,
                        "time": when,
                        "mm": mm,
                        "pid": client.pid if client else None,
                        "address": address,
                        "pfn": slot,
                        "err": err,
                    }
                )
        if events or lost:
            events.sort(key=lambda event: event["time"])
            self.control.publish(events, lost)

    # what the control socket asks for

    def _scanner_of(self, domain: str) -> _core.Scanner:
        if domain not in self.scanners:
            scanner = _core.Scanner()
            for name in SCANNER_KNOBS:
                scanner.set_knob(name, int(getattr(self.settings, name)))
            scanner.trace(self._tracing)
            self.scanners[domain] = scanner
        return self.scanners[domain]

    def counters(self) -> dict[str, int]:
        """Sum the counters over the domains."""
        total = {counter.name: 0 for counter in COUNTERS}  # also before there is a domain
        for scanner in self.scanners.values():
            for name, value in scanner.counters().items():
                total[name] = total.get(name, 0) + value
        total["full_scans"] = self.ksmd.full_scans
        return total

    def _status(self, _request: dict[str, Any]) -> dict[str, Any]:
        clients = self.agents.clients.values()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        barriers: dict[str, int] = {}
        for client in clients:
            if client.barrier:
                name = str(Barrier(client.barrier).name).lower()
                barriers[name] = barriers.get(name, 0) + 1
        return {
            "knobs": self.settings.values(),
            "counters": self.counters(),
            "daemon": {
                "pid": os.getpid(),
                "version": __version__,
                "uptime_seconds": time.monotonic() - self.started,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "agents": len(clients),
                "agents_cpu_seconds": sum(client.agent_cpu_ns for client in clients) / 1e9,
                "stopped_seconds": sum(client.stopped_ns for client in clients) / 1e9,
                "registered": len(self.ksmd.registered),
                "silent": [client.pid for client in clients if client.silent],
                "domains": sorted(self.scanners),
                "barriers": barriers,
                "passes": self.ksmd.passes,
            },
        }

    def _set(self, request: dict[str, Any]) -> Any:
        values = request.get("values")
        if not isinstance(values, dict) or not values:
            raise CommandError('"set" needs "values": an object of knob names and values')
        texts = {str(name): str(value) for name, value in values.items()}
        changed = self.settings.apply(texts, self.counters()["pages_shared"])
        if "sleep_millisecs" in changed:
            self.ksmd.wake()
        if "advisor_mode" in changed:
            self.ksmd.restart_advisor()
        for name in changed & SCANNER_KNOBS:
            for scanner in self.scanners.values():
                scanner.set_knob(name, int(getattr(self.settings, name)))
        if "run" in changed:
            log.info("run is now %d", self.settings.run)
            if self.settings.run == 2:
                return self._unmerge()
        return self.settings.values()

    def _unmerge(self) -> Later:
        """run=2: break everything, and answer when it is done, as the kernel's write(2) does."""
        self.ksmd.forget_pass()
        for scanner in self.scanners.values():
            scanner.unmerge_all()
        everyone = list(self.agents.clients.values())
        for client in everyone:
            client.send_requests()

        def ready() -> dict[str, Any] | None:
            for client in everyone:
                client.send_requests()
            return None if _asked(everyone) else self.settings.values()

        def late() -> PagemergeError:
            slow = ", ".join(client.who() for client in _asked(everyone))
            return EngineError(
                f"run=2 is not finished: no answer yet from {slow}",
                hint="what they had merged stays merged until they answer; memory is right",
            )

        return Later(ready, deadline_in(UNMERGE_SECONDS), late)

    def _processes(self, _request: dict[str, Any]) -> list[dict[str, Any]]:
        rows = []
        for client in self.agents.clients.values():
            numbers = client.scanner.process(client.mm)
            rows.append(
                {
                    "pid": client.pid,
                    "comm": client.comm,
                    **numbers,
                    "ksm_merge_any": client.merge_any,
                    "ksm_mergeable": client.registered,
                    "domain": client.hello.domain,
                    "barrier": (Barrier(client.barrier).name or "").lower(),
                    "refused": client.hello.refusal,
                    "connected": client.sock is not None,
                    "silent": client.silent,
                    "at_work": bool(client.at_work),
                    "agent_cpu_seconds": client.agent_cpu_ns / 1e9,
                    "stopped_seconds": client.stopped_ns / 1e9,
                }
            )
        return rows

    def _client(self, request: dict[str, Any]) -> Client:
        pid = request.get("pid")
        if not isinstance(pid, int) or isinstance(pid, bool):
            raise CommandError('"pid" must be a number')
        client = self.agents.find(pid)
        if client is None:
            raise no_client(pid)
        return client

    def _regions(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        client = self._client(request)
        page = _core.PAGE_SIZE
        return [
            {
                "start": start,
                "end": end,
                "pages": pages,
                "merged_bytes": merged * page,
                "zero_bytes": zero * page,
                "unshared_pages": unshared,
                "name": name,
            }
            for start, end, pages, merged, zero, unshared, name in client.scanner.regions(client.mm)
        ]

    def _switch(self, request: dict[str, Any], on: bool) -> Later:
        """Have a client's agent switch merging on or off for all; answers when it has."""
        client = self._client(request)
        _check_reachable(client)
        client.tell(render_advise_all(on))

        def ready() -> dict[str, Any] | None:
            client.send_requests()
            done = client.merge_any is on
            return {"pid": client.pid, "ksm_merge_any": on} if done else None

        def late() -> PagemergeError:
            return EngineError(f"the agent of {client.who()} does not answer")

        return Later(ready, deadline_in(ADVISE_SECONDS), late)

    def _advise(self, request: dict[str, Any]) -> Later:
        """Have a client's agent mark a range, as madvise(2) would; answers when it has."""
        client = self._client(request)
        start, end, on = request.get("start"), request.get("end"), request.get("on", True)
        if not isinstance(start, int) or not isinstance(end, int) or not isinstance(on, bool):
            raise CommandError('"start" and "end" are addresses, "on" is true or false')
        if start % _core.PAGE_SIZE or end % _core.PAGE_SIZE or not 0 <= start < end < 1 << 64:
            raise RejectedError(
                f"{start:x}-{end:x} is not whole pages of {_core.PAGE_SIZE} bytes, or is empty",
                errno=errno.EINVAL,
            )
        _check_reachable(client)
        client.tell(render_advise(start, end, Mark.MERGEABLE if on else Mark.UNMERGEABLE))

        def ready() -> dict[str, Any] | None:
            client.send_requests()
            regions = client.scanner.regions(client.mm)
            touches = any(low < end and start < high for low, high, *_ in regions)
            return {"pid": client.pid, "ksm_mergeable": touches} if touches is on else None

        def late() -> PagemergeError:
            return RejectedError(
                f"nothing in {start:x}-{end:x} of {client.who()} could be marked: it is not "
                "mapped, not private memory, or locked; or its agent does not answer",
                errno=errno.ENOMEM,
            )

        return Later(ready, deadline_in(ADVISE_SECONDS), late)

    def _settle(self, request: dict[str, Any]) -> Later:
        passes, timeout = request.get("passes", 2), request.get("timeout", 60)
        if not isinstance(passes, int) or not isinstance(timeout, int | float):
            raise CommandError('"passes" is a whole number, "timeout" is seconds')
        until = self.ksmd.passes + passes

        def ready() -> dict[str, Any] | None:
            return self.counters() if self.ksmd.passes >= until else None

        def late() -> PagemergeError:
            missing = until - self.ksmd.passes
            return EngineError(
                f"{missing} of {passes} passes have not ended within {timeout} seconds",
                hint=self._why_no_pass(),
            )

        return Later(ready, deadline_in(float(timeout)), late)

    def _why_no_pass(self) -> str:
        if self.settings.run != 1:
            return f"run is {self.settings.run}: 'pagemerge set run=1'"
        if not self.ksmd.registered:
            return "no process has asked for merging"
        if not self.settings.pages_to_scan:
            return "pages_to_scan is 0"
        return "raise pages_to_scan or lower sleep_millisecs"

    def _stop(self, _request: dict[str, Any]) -> dict[str, Any]:
        self.stopping = True
        return {}


def _check_reachable(client: Client) -> None:
    """Make sure that its agent can be asked for something.

    Raises:
        EngineError: it can't, or the process is not merged at all.
    """
    if client.hello.refusal:
        raise EngineError(f"{client.who()} can't be merged: {client.hello.refusal}")
    if client.sock is None:
        raise EngineError(f"the agent of {client.who()} has closed its connection")


def _asked(clients: list[Client]) -> list[Client]:
    return [client for client in clients if client.asked]


def _listen(path: Path, kind: socket.SocketKind) -> socket.socket:
    """Bind a listening socket; the caller's lock makes sure that a leftover is nobody's."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.setblocking(False)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(128)
    return listener
