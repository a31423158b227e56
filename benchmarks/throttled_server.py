"""A slow and faulty network in front of an S3 server (moto's, in memory), as counted HTTP proxy.

python benchmarks/throttled_server.py [--upstream HOST:PORT] [--port 9000] [--bandwidth 20] \
    [--latency 0.05] [--faults 0.05] [--seed 0]

Bandwidth is in MB/s (10^6 bytes) of bodies, over all connections and both directions together. Of
the faults one half is a 503 behind the request's body; the others are connections cut in the middle
of what was sent or, after the storage has acted, in the middle of the answer.

Each line of stdin is a command, answered by one line: `down` (nobody listens, open connections are
cut, what is stored stays), `up`, `counts` (JSON), `new_url` (in a new bucket; without --upstream),
`faults 0.05`, `bandwidth 20` (0: no limit), `latency 0.05`.

In Python `with ThrottledServer(upstream=("127.0.0.1", 5000), bandwidth=20) as server` runs it in
this process, and `with ServerProcess("--bandwidth", "20") as server` in one of its own, with moto,
so that its work does not take the GIL of what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "S3CRETKEY",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
_PIECE = 32 << 10
_BUFFER_SECONDS = 0.1  # that it may lag behind, as a busy machine wakes threads late
_BURST_SECONDS = 0.005  # shorter sleeps are late by more than they last


@dataclasses.dataclass
class Counts:
    """Of one method."""

    requests: int = 0
    faults: int = 0  # of them
    received: int = 0  # bytes of bodies, also of requests that failed
    sent: int = 0


class ThrottledServer:
    """See above. Its settings may be changed while it runs."""

    def __init__(
        self,
        *,
        upstream: tuple[str, int],
        port: int = 0,
        bandwidth: float = 0.0,
        latency: float = 0.0,
        faults: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.upstream = upstream
        self.bandwidth, self.latency, self.faults = bandwidth, latency, faults
        self.port = port
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._free_at = 0.0  # when all bytes so far will have passed
        self._connections: set[socket.socket] = set()
        self._counts: defaultdict[str, Counts] = defaultdict(Counts)
        self._listening: tuple[ThreadingHTTPServer, threading.Thread] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Listen, at the same port as before."""
        handler = type("Handler", (_Handler,), {"proxy": self})
        listener = _Listener(("127.0.0.1", self.port), handler)
        self.port = listener.server_address[1]
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        self._listening = listener, thread

    def down(self) -> None:
        """Nobody listens any more, and open connections are cut."""
        if self._listening is None:
            return
        listener, thread = self._listening
        listener.shutdown()
        listener.server_close()
        thread.join()
        self._listening = None
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def counts(self) -> dict[str, dict[str, int]]:
        """By method, since it was made."""
        with self._lock:
            return {method: dataclasses.asdict(one) for method, one in self._counts.items()}

    def begin(self, method: str) -> str:
        """Counts a request; the fault that it shall meet: "", "503", "sent" or "answer"."""
        with self._lock:
            fault = ""
            if self._random.random() < self.faults:
                fault = self._random.choice(("503", "503", "sent", "answer"))
            self._counts[method].requests += 1
            self._counts[method].faults += bool(fault)
        time.sleep(self.latency)
        return fault

    def count(self, method: str, *, received: int = 0, sent: int = 0) -> None:
        """Counts bytes, and waits until the network has taken them."""
        with self._lock:
            self._counts[method].received += received
            self._counts[method].sent += sent
            now = time.monotonic()
            if not self.bandwidth:
                return
            self._free_at = max(now - _BUFFER_SECONDS, self._free_at) + (received + sent) / (
                self.bandwidth * 1e6
            )
            wait = self._free_at - now
        if wait > _BURST_SECONDS:
            time.sleep(wait)

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that went away, or was cut, is no news."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client, and one to the storage."""

    protocol_version = "HTTP/1.1"
    wbufsize = 64 << 10
    proxy: ThrottledServer

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.proxy.opened(self.connection)
        self._storage = http.client.HTTPConnection(*self.proxy.upstream)

    def finish(self) -> None:
        self.proxy.closed(self.connection)
        self._storage.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def _pass(self) -> None:
        fault = self.proxy.begin(self.command)
        nbytes = int(self.headers.get("Content-Length") or 0)
        content = self._receive(nbytes // 2 if fault == "sent" else nbytes)
        if fault == "sent":
            self._cut()
        elif fault == "503":
            self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
        else:
            status, headers, body = self._ask_storage(content)
            self._answer(status, headers, body, is_cut=fault == "answer")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def _receive(self, nbytes: int) -> bytes:
        content = bytearray()
        while len(content) < nbytes:
            piece = self.rfile.read(min(_PIECE, nbytes - len(content)))
            if not piece:
                raise ConnectionError("the client went away")
            self.proxy.count(self.command, received=len(piece))
            content += piece
        return bytes(content)

    def _ask_storage(self, content: bytes) -> tuple[int, dict[str, str], bytes]:
        self._storage.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                self._storage.putheader(name, value)
        self._storage.endheaders(content)
        answer = self._storage.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, *, is_cut: bool = False
    ) -> None:
        kept = {name.lower(): value for name, value in headers.items()}
        for name in ("connection", "transfer-encoding", "date", "server"):
            kept.pop(name, None)
        if self.command != "HEAD":
            kept["content-length"] = str(len(body))
        self.send_response(status)
        for name, value in kept.items():
            self.send_header(name, value)
        if is_cut and len(body) < 2:
            self._cut()  # of a short answer nothing arrives
            return
        self.end_headers()
        body = body[: len(body) // 2] if is_cut else body
        for start in range(0, len(body), _PIECE):
            piece = body[start : start + _PIECE]
            self.proxy.count(self.command, sent=len(piece))
            self.wfile.write(piece)
        self.wfile.flush()
        if is_cut:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class ServerProcess:
    """moto behind the proxy in a process of its own; `environment` is for those who use it."""

    def __init__(self, *options: str) -> None:
        self._command = [sys.executable, str(Path(__file__).resolve()), *options]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.endpoint = self._read()
        self.environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.endpoint}
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def say(self, command: str) -> str:
        """One of the commands of stdin; its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def counts(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = json.loads(self.say("counts"))
        return found

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", default="", help="HOST:PORT; without it moto is started")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bandwidth", type=float, default=0.0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    storage = None if options.upstream else start_moto()
    at = options.upstream or os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    host, _, port = at.partition(":")
    with ThrottledServer(
        upstream=(host, int(port)),
        port=options.port,
        bandwidth=options.bandwidth,
        latency=options.latency,
        faults=options.faults,
        seed=options.seed,
    ) as server:
        print(server.endpoint, flush=True)
        for line in sys.stdin:
            print(obey(line.split(), server, storage), flush=True)
        if options.port:  # started in the background, without commands
            threading.Event().wait()


def obey(words: list[str], server: ThrottledServer, storage: Any) -> str:
    """Do what a line says. Returns the answer."""
    match words:
        case ["down"]:
            server.down()
        case ["up"]:
            server.up()
        case ["counts"]:
            return json.dumps(server.counts())
        case ["new_url"]:
            return str(storage.new_url())
        case [("faults" | "bandwidth" | "latency") as name, value]:
            setattr(server, name, float(value))
        case _:
            return f"unknown: {' '.join(words)}"
    return "done"


def start_moto() -> Any:
    """The server of the tests, in this process."""
    path = Path(__file__).resolve().parents[1] / "tests" / "buckets.py"
    spec = importlib.util.spec_from_file_location("buckets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.S3Server()


if __name__ == "__main__":
    main()
