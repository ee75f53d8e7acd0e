"""Downloads from a real HTTP server that resumes, cuts, refuses, or never answers."""

import contextlib
import hashlib
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from trainables.config import DataSpec
from trainables.data import cifar
from trainables.data.build import prepare
from trainables.errors import UserError

BODY = np.random.default_rng(0).bytes(1_000_000)
MD5 = hashlib.md5(BODY).hexdigest()
FIX = "give it as --set data.archive=PATH"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        server.starts.append(start if wanted else None)
        if server.status != 200:
            self.send_error(server.status)
            return
        if wanted and server.resumes:
            if start >= len(server.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.body)}")
                self.end_headers()
                return
            self.send_response(206)
        else:
            start = 0
            self.send_response(200)
        rest = server.body[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(rest[:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.body, server.status, server.resumes = BODY, 200, True
        server.cuts, server.starts = [], []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server, target):
    return cifar.download(f"{server.url}/file.tar.gz", target, md5=MD5, fix=FIX)


def test_a_file_is_fetched_once_with_progress(server, tmp_path, caplog):
    caplog.set_level("INFO", logger="trainables")
    target = tmp_path / "downloads" / "file.tar.gz"
    assert get(server, target) == target
    assert target.read_bytes() == BODY
    assert re.search(r"file.tar.gz: 1.0 of 1.0 MB", caplog.messages[-1])
    get(server, target)
    assert server.starts == [None]


def test_cut_connections_are_resumed_where_they_broke(server, tmp_path, caplog):
    caplog.set_level("INFO", logger="trainables")
    server.cuts = [300_000, 200_000, 100_000, 100_000]
    target = get(server, tmp_path / "file.tar.gz")
    assert target.read_bytes() == BODY
    assert server.starts == [None, 300_000, 500_000, 600_000, 700_000]
    assert any("cut" in line for line in caplog.messages)


def test_a_later_call_resumes_what_an_earlier_one_left(server, tmp_path):
    (tmp_path / "file.tar.gz.part").write_bytes(BODY[:123_456])
    assert get(server, tmp_path / "file.tar.gz").read_bytes() == BODY
    assert server.starts == [123_456]


def test_a_complete_partial_file_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "file.tar.gz.part").write_bytes(BODY)
    assert get(server, tmp_path / "file.tar.gz").read_bytes() == BODY


def test_a_server_that_cannot_resume_sends_everything_again(server, tmp_path):
    server.resumes = False
    (tmp_path / "file.tar.gz.part").write_bytes(b"x" * 1000)
    assert get(server, tmp_path / "file.tar.gz").read_bytes() == BODY


def refused(server, tmp_path):
    with pytest.raises(UserError) as caught:
        get(server, tmp_path / "file.tar.gz")
    (mistake,) = caught.value.mistakes
    assert "\n" not in mistake
    assert mistake.endswith(f"Fix: {FIX}")
    assert not (tmp_path / "file.tar.gz").exists()
    return mistake


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.body = BODY[:-1] + b"?"
    assert f"must be md5 {MD5}" in refused(server, tmp_path)
    assert not (tmp_path / "file.tar.gz.part").exists()


def test_a_partial_file_of_other_content_does_not_block_for_ever(server, tmp_path):
    (tmp_path / "file.tar.gz.part").write_bytes(b"x" * 1000)
    assert "checksum" in refused(server, tmp_path)
    assert get(server, tmp_path / "file.tar.gz").read_bytes() == BODY


def test_a_server_that_refuses(server, tmp_path):
    server.status = 404
    assert "404" in refused(server, tmp_path)
    assert len(server.starts) == 1


def test_a_server_that_keeps_cutting_without_a_byte(server, tmp_path):
    server.cuts = [1000, 0, 0, 0, 0, 0]
    assert "999000 bytes are missing" in refused(server, tmp_path)
    assert (tmp_path / "file.tar.gz.part").read_bytes() == BODY[:1000]


def test_no_server_at_all(server, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert "refused" in refused(server, tmp_path)


def test_a_server_that_never_answers(server, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "CONNECT_TIMEOUT_S", 0.3)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        server.url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "no answer within 0.3 s" in refused(server, tmp_path)


def test_cifar_comes_from_the_mirror_and_must_be_official(server, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_CIFAR_URL", server.url)
    with pytest.raises(UserError, match="c58f30108f718f92721af3b95e74349a") as caught:
        prepare(DataSpec(source="cifar10", folder=str(tmp_path)))
    assert "--set data.archive=PATH" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["downloads"]
    assert [p.name for p in (tmp_path / "downloads").iterdir() if p.suffix != ".lock"] == []
