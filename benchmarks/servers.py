"""Switches merging on and off in real servers, again and again, while clients check each answer.

    python -m benchmarks.servers [--markdown FILE] [--json FILE] [SERVER ...]

Each server runs under steady load three times: untouched; with merging switched on and off for all
its processes, 100 times; and the same while ksmd merges (and each switching off unmerges). What is
not installed is named and left out. Root; the machine's KSM is locked meanwhile, and left as it was
found. Exit status 1 when a single answer was wrong or late beyond 30 s.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import (
    Connect,
    Load,
    Loaded,
    ask_http,
    ask_postgres,
    ask_redis,
    connect_redis,
)
from benchmarks.report import describe_machine
from pagemerge.errors import ProcessGoneError
from pagemerge.kernel import set_memory_merge
from pagemerge.kernel.processes import read_process
from pagemerge.memory import read_tree
from tests.support.kernel_ksm import KernelKsmControl, hold_kernel_ksm, why_no_kernel_ksm
from tests.support.waiting import wait_until

HERE = Path(__file__).parent
CLIENTS = 4
WARM_UP_SECONDS = 3.0
PAUSE_SECONDS = 0.04  # between on and off


@dataclass(frozen=True)
class Server:
    """A kind of server: the programs that it takes, and how it is started and asked."""

    programs: tuple[str, ...]
    package: str
    run: Callable[[Path], contextlib.AbstractContextManager[tuple[int, Connect]]]


@contextlib.contextmanager
def _started(argv: list[str], folder: Path, user: str | None = None) -> Iterator[int]:
    """A program, with all that it started; ended at the end."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=user
        )
    try:
        yield process.pid
    finally:
        rest = read_tree([process.pid])
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in rest[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


def _free_port() -> int:
    with socket.socket() as link:
        link.bind(("127.0.0.1", 0))
        port: int = link.getsockname()[1]
        return port


def _await_port(port: int) -> None:
    def answers() -> bool:
        with socket.socket() as link:
            return link.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers, f"port {port}")


@contextlib.contextmanager
def run_redis(folder: Path) -> Iterator[tuple[int, Connect]]:
    """Redis with 100 MiB of values, half of them alike."""
    path = folder / "redis.sock"
    argv = ["redis-server", "--port", "0", "--save", "", "--unixsocket", str(path)]
    with _started(argv, folder) as pid:
        wait_until(path.exists, str(path))
        with connect_redis(path) as link:
            link.sendall(b"DEBUG POPULATE 50000 alike 1024\r\nDEBUG POPULATE 50000 more 1024\r\n")
            with link.makefile("rb") as answers:
                for _ in range(2):
                    answers.readline()
        yield pid, ask_redis(path)


@contextlib.contextmanager
def run_postgres(folder: Path) -> Iterator[tuple[int, Connect]]:
    """PostgreSQL, a process for each client."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    shutil.chown(data, "postgres")
    init = [str(programs / "initdb"), "-D", str(data), "-A", "trust", "--no-sync"]
    subprocess.run(init, user="postgres", cwd=folder, check=True, stdout=subprocess.DEVNULL)
    argv = [str(programs / "postgres"), "-D", str(data), "-k", str(data), "-h", ""]
    with _started(argv, folder, user="postgres") as pid:
        path = data / ".s.PGSQL.5432"

        def is_up() -> bool:
            ask = [str(programs / "pg_isready"), "-q", "-h", str(data)]
            return subprocess.run(ask, check=False).returncode == 0

        wait_until(is_up, "postgres")
        yield pid, ask_postgres(path, "postgres")


@contextlib.contextmanager
def run_nginx(folder: Path) -> Iterator[tuple[int, Connect]]:
    """Nginx with two workers and some files."""
    port = _free_port()
    folder.chmod(0o755)
    bodies = [hashlib.sha256(b"%d" % i).digest() * 512 for i in range(64)]
    for i, body in enumerate(bodies):
        (folder / f"{i}.bin").write_bytes(body)
    (folder / "nginx.conf").write_text(
        f"worker_processes 2; daemon off; pid {folder}/pid; error_log stderr;\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log off; keepalive_requests 1000000;\n"
        f" server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    with _started(["nginx", "-c", str(folder / "nginx.conf")], folder) as pid:
        _await_port(port)
        yield pid, ask_http(port, lambda n: f"/{n % 64}.bin", lambda n: bodies[n % 64])


_NODE = """
const http = require('http'), crypto = require('crypto');
const kept = Array.from({length: 200000}, (_, i) => ({i, text: 'object ' + i % 1000}));
http.createServer((ask, answer) => {
  const n = Number(ask.url.slice(1));
  const text = kept[n % kept.length].text + ' ' + n;
  answer.end(crypto.createHash('sha256').update(text).digest('hex'));
}).listen(Number(process.argv[2]), '127.0.0.1');
"""


def _digest(n: int, kept: int) -> bytes:
    text = f"object {n % kept % 1000} {n}"
    return hashlib.sha256(text.encode()).hexdigest().encode()


@contextlib.contextmanager
def run_node(folder: Path) -> Iterator[tuple[int, Connect]]:
    """Node with 200,000 objects, hashing."""
    port = _free_port()
    (folder / "server.js").write_text(_NODE)
    with _started(["node", str(folder / "server.js"), str(port)], folder) as pid:
        _await_port(port)
        yield pid, ask_http(port, lambda n: f"/{n}", lambda n: _digest(n, 200_000))


_JAVA = """
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.security.MessageDigest;
import java.util.concurrent.Executors;

public class Main {
    public static void main(String[] args) throws Exception {
        String[] kept = new String[200000];
        for (int i = 0; i < kept.length; i++) kept[i] = new String("object " + i % 1000);
        var server = HttpServer.create(
            new InetSocketAddress("127.0.0.1", Integer.parseInt(args[0])), 0);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            int n = Integer.parseInt(exchange.getRequestURI().getPath().substring(1));
            String text = kept[n % kept.length] + " " + n;
            byte[] body;
            try {
                var hash = MessageDigest.getInstance("SHA-256").digest(text.getBytes());
                body = java.util.HexFormat.of().formatHex(hash).getBytes();
            } catch (java.security.NoSuchAlgorithmException error) {
                throw new RuntimeException(error);
            }
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
"""


@contextlib.contextmanager
def run_java(folder: Path) -> Iterator[tuple[int, Connect]]:
    """A JVM with 200,000 objects, hashing in eight threads."""
    port = _free_port()
    (folder / "Main.java").write_text(_JAVA)
    argv = [
        "java",
        "-Xmx256m",
        "-Dsun.net.httpserver.nodelay=true",
        str(folder / "Main.java"),
        str(port),
    ]
    with _started(argv, folder) as pid:
        _await_port(port)
        yield pid, ask_http(port, lambda n: f"/{n}", lambda n: _digest(n, 200_000))


SERVERS = {
    "redis": Server(("redis-server",), "redis-server", run_redis),
    "postgres": Server(("pg_ctlcluster",), "postgresql", run_postgres),
    "nginx": Server(("nginx",), "nginx-light", run_nginx),
    "node": Server(("node",), "nodejs", run_node),
    "java": Server(("java", "javac"), "default-jdk-headless", run_java),
}


@dataclass
class Phase:
    """One run of the load; times in seconds."""

    what: str
    requests: int
    failures: list[str]
    p50: float
    p99: float
    longest: float
    switched: int = 0
    on_p50: float = 0.0
    on_p99: float = 0.0
    off_p50: float = 0.0
    off_p99: float = 0.0
    merging_pages: int = 0


@dataclass
class Switched:
    """What switching did: seconds of each stop, and the most pages that were merged between."""

    on: list[float] = field(default_factory=list)
    off: list[float] = field(default_factory=list)
    merging_pages: int = 0


def switch_often(pid: int, rounds: int, pause: float) -> Switched:
    """Switch merging on and off for a process and all its descendants."""
    done = Switched()
    for _ in range(rounds):
        for on in (True, False):
            merging = 0
            for each in read_tree([pid]):
                with contextlib.suppress(ProcessGoneError):  # one of short life
                    stopped = set_memory_merge(each, on=on).stopped_seconds
                    (done.on if on else done.off).append(stopped)
            time.sleep(pause)
            for each in read_tree([pid]):
                with contextlib.suppress(ProcessGoneError):
                    process = read_process(each)
                    merging += (process.ksm_merging_pages or 0) if process else 0
            done.merging_pages = max(done.merging_pages, merging)
    return done


def measure(server: Server, rounds: int, rate: float, ksm: KernelKsmControl) -> list[Phase]:
    """Run the three phases on one kind of server."""
    phases = []
    for what in ("untouched", "switched on and off", "the same while ksmd merges"):
        with tempfile.TemporaryDirectory() as name, server.run(Path(name)) as (pid, connect):
            ksm.write("run", 1 if "ksmd" in what else 0)
            load = Load(connect, CLIENTS, rate)
            time.sleep(WARM_UP_SECONDS)
            load.begin()
            done = Switched()
            try:
                if what == "untouched":
                    time.sleep(rounds * 2 * PAUSE_SECONDS)
                else:
                    done = switch_often(pid, rounds, PAUSE_SECONDS)
            finally:
                loaded = load.finish()
                ksm.write("run", 0)
        phases.append(_phase(what, loaded, done))
        print(json.dumps(dataclasses.asdict(phases[-1])), flush=True)
    return phases


def _phase(what: str, loaded: Loaded, done: Switched) -> Phase:
    on, off = Loaded(done.on), Loaded(done.off)
    return Phase(
        what,
        len(loaded.latencies),
        loaded.failures,
        loaded.quantile(0.5),
        loaded.quantile(0.99),
        loaded.quantile(1),
        len(done.on) + len(done.off),
        on.quantile(0.5),
        on.quantile(0.99),
        off.quantile(0.5),
        off.quantile(0.99),
        done.merging_pages,
    )


def render_table(results: dict[str, list[Phase]]) -> str:
    """Write the results as a table in Markdown."""
    lines = [
        "| server | | requests | failed | latency p50 | p99 | longest | calls injected | "
        "on: stop p50 | p99 | off: stop p50 | p99 | ksm_merging_pages, up to |",
        "| --- | --- " + "| ---: " * 11 + "|",
    ]

    def ms(seconds: float) -> str:
        return f"{seconds * 1000:.2f} ms"

    for name, phases in results.items():
        for phase in phases:
            stops = " | ".join(
                ms(value) if phase.switched else "-"
                for value in (phase.on_p50, phase.on_p99, phase.off_p50, phase.off_p99)
            )
            lines.append(
                f"| {name} | {phase.what} | {phase.requests:,} | {len(phase.failures)} | "
                f"{ms(phase.p50)} | {ms(phase.p99)} | {ms(phase.longest)} | {phase.switched or '-'}"
                f" | {stops} | {phase.merging_pages or '-'} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("servers", nargs="*", choices=[*SERVERS, []], default=[])
    parser.add_argument("--rounds", type=int, default=100, help="times on and off")
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    if why := why_no_kernel_ksm():
        sys.stderr.write(f"this process lacks {why}\n")
        return 1
    results = {}
    with hold_kernel_ksm(pages_to_scan=5000, sleep_millisecs=5, smart_scan=0) as ksm:
        for name in args.servers or SERVERS:
            server = SERVERS[name]
            lacks = [program for program in server.programs if shutil.which(program) is None]
            if lacks:
                sys.stderr.write(f"{name}: left out, there is no {lacks[0]} ({server.package})\n")
                continue
            print(f"{name} ...", flush=True)
            results[name] = measure(server, args.rounds, args.rate, ksm)
    table = render_table(results)
    print(table)
    if args.markdown:
        args.markdown.write_text(table)
    path = args.json or HERE / "results" / f"servers-{time.strftime('%Y%m%dT%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": describe_machine(),
        "servers": {
            name: [dataclasses.asdict(p) for p in phases] for name, phases in results.items()
        },
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"all numbers: {path}")
    return 1 if any(phase.failures for phases in results.values() for phase in phases) else 0


if __name__ == "__main__":
    raise SystemExit(main())
