"""A real S3 API on this machine: moto's server, behind a proxy that fails some requests."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.integration.heads import answers, free_port

PATIENCE_S = 60
BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
HOP = ("connection", "transfer-encoding", "keep-alive", "content-length", "date", "server")


class Proxy(ThreadingHTTPServer):
    """Passes requests on to ``port``, but for a seeded share ``failing`` of them: those are
    answered 503, dropped before they reach the server, or after, so that their answer is lost."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, *, failing: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.port, self.failing, self._chance = port, failing, random.Random(seed)
        self._lock = threading.Lock()
        self.told: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fate(self) -> str:
        with self._lock:
            failed = self._chance.random() < self.failing
            kind = self._chance.choice(("busy", "dropped", "lost")) if failed else "served"
            self.told[kind] += 1
            return kind


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def serve(self) -> None:
        body, fate = self._body(), self.server.fate()
        if fate == "busy":
            return self._answer(503, [("Content-Type", "application/xml")], BUSY)
        if fate != "dropped":
            onward = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE_S)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
            onward.request(self.command, self.path, body, headers)
            told = onward.getresponse()
            content = told.read()
            onward.close()
        if fate != "served":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        sent = [(k, v) for k, v in told.getheaders() if k.lower() not in HOP]
        size = told.getheader("Content-Length") if self.command == "HEAD" else None
        return self._answer(told.status, sent, content, size)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, size: str | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", size or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def storage(folder: Path, bucket: str, *, failing: float, seed: int = 0) -> Iterator[Proxy]:
    """A server with one empty bucket, and the proxy in front of it."""
    port = free_port()
    with (folder / "moto.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "MOTO_S3_CUSTOM_ENDPOINTS": f"http://127.0.0.1:{port}"},
        )
    proxy = Proxy(port, failing=failing, seed=seed)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not answers(f"http://127.0.0.1:{port}/moto-api/"):
            assert server.poll() is None, (folder / "moto.log").read_text()
            assert time.monotonic() < deadline, "the S3 server never answered"
            time.sleep(0.2)
        creating = http.client.HTTPConnection("127.0.0.1", port)
        creating.request("PUT", f"/{bucket}")
        assert creating.getresponse().status == 200
        creating.close()
        thread.start()
        yield proxy
    finally:
        if thread.is_alive():
            proxy.shutdown()
        proxy.server_close()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
