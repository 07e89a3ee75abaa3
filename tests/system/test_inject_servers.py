"""A server under load while merging is switched on and off in it: no request fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load import Connect, Load, ask_http, ask_redis
from benchmarks.servers import switch_often
from tests.support.environment import lacking
from tests.support.processes import Child
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("kernel_ksm_lock")  # they register with it

ROUNDS = 30

_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    wbufsize = -1
    def do_GET(self):
        body = (self.path * 100).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def python_server() -> Iterator[tuple[int, Connect]]:
    with Child(_SERVER) as child:
        port = int(child.read_line())
        yield child.pid, ask_http(port, lambda n: f"/{n}", lambda n: f"/{n}".encode() * 100)


@contextlib.contextmanager
def redis_server() -> Iterator[tuple[int, Connect]]:
    # a short path: that of a socket has 107 bytes at most
    with tempfile.TemporaryDirectory(prefix="pm-redis-") as folder:
        path = Path(folder) / "redis.sock"
        argv = ["redis-server", "--port", "0", "--save", "", "--unixsocket", str(path)]
        with Child([*argv, "--dir", folder]) as child:

            def answers() -> bool:
                with socket.socket(socket.AF_UNIX) as link:
                    return link.connect_ex(str(path)) == 0

            wait_until(answers, "redis answers")
            yield child.pid, ask_redis(path)


@pytest.mark.parametrize("kind", ["python", "redis"])
def test_no_request_fails_while_merging_is_switched_on_and_off(kind: str) -> None:
    if not Path("/proc/self/ksm_stat").exists() or os.geteuid() != 0:
        lacking("the kernel's KSM with ksm_stat (Linux 6.14), and root")
    if kind == "redis" and shutil.which("redis-server") is None:
        pytest.skip("redis is not installed")
    with {"python": python_server, "redis": redis_server}[kind]() as (pid, connect):
        load = Load(connect, clients=4, rate=200)
        load.begin()
        done = switch_often(pid, ROUNDS, 0.01)
        loaded = load.finish()
    assert loaded.failures == []
    assert loaded.latencies
    assert len(done.on) >= ROUNDS
    assert len(done.off) >= ROUNDS
