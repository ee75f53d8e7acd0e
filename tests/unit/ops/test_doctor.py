"""What the doctor makes of what it sees, where that needs no cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import pytest

from orchestrator.ops import doctor
from orchestrator.ops.doctor import auth_mistakes, gpu_mistakes, http_status
from orchestrator.tracking.store import age_mistakes


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """Answers every question with its ``text``, or with 401 where that is empty."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = str(self.server.text)  # type: ignore[attr-defined]
            self.send_response(200 if text else 401)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield listening
    listening.shutdown()
    listening.server_close()


def test_a_tracking_server_must_be_as_new_as_the_client(server: HTTPServer) -> None:
    uri = f"http://127.0.0.1:{server.server_port}"
    major, minor = metadata.version("mlflow").split(".")[:2]
    verdicts = {}
    for version in (f"{major}.{minor}.9", f"{major}.{int(minor) + 1}.0", f"{major}.0.1", "2.99.0"):
        server.text = version  # type: ignore[attr-defined]
        verdicts[version] = age_mistakes(uri)
    new, newer, old, other = verdicts.values()
    assert (new, newer) == ([], [])
    assert f"is {major}.0.1, here is" in old[0]
    assert "2.99.0" in other[0]
    assert age_mistakes("sqlite:///x.db") == []


def test_a_stranger_is_refused_or_let_in(server: HTTPServer) -> None:
    address = f"127.0.0.1:{server.server_port}"
    server.text = ""  # type: ignore[attr-defined]
    assert http_status(address) == 401
    server.text = "{}"  # type: ignore[attr-defined]
    assert http_status(address) == 200
    assert http_status("127.0.0.1:9") is None


@pytest.mark.parametrize(
    ("dashboard", "token", "mode", "count"),
    [
        ("127.0.0.1:8265", True, "token", 0),
        ("127.0.0.1:8265", False, "disabled", 0),
        ("10.0.0.7:8265", True, "token", 0),
        ("10.0.0.7:8265", False, "", 1),
        ("10.0.0.7:8265", False, "token", 2),
        ("127.0.0.1:8265", False, "token", 1),
        ("10.0.0.7:8265", None, "", 0),
        (None, None, "", 0),
    ],
)
def test_an_open_dashboard_is_a_problem_where_others_reach_it(
    dashboard: str | None,
    token: bool | None,
    mode: str,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    problems = auth_mistakes(dashboard, token)
    assert len(problems) == count
    assert all("Fix: " in line for line in problems)


def test_gpus_that_torch_does_not_see() -> None:
    assert gpu_mistakes("n", 2, 2) == []
    assert gpu_mistakes("n", 0.5, 1) == []
    (none,) = gpu_mistakes("node a", 2, None)
    assert "node a announces 2, torch sees none" in none
    assert "--num-gpus=1" in gpu_mistakes("n", 2, 1)[0]


def test_versions_that_nobody_tested_are_named(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text(f"# a comment\nclick==0.1\nray=={metadata.version('ray')}\nno-such-thing==1\n")
    (line,) = doctor.pin_mistakes(pins)
    assert line.startswith("click is ")
    assert doctor.pin_mistakes(tmp_path / "missing.txt") == []


def test_a_probe_lies_in_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    for storage in ("shared", "shared/runs", "shared/a/b"):
        place = doctor.probe_place(f"file://{tmp_path}/{storage}", "probe")
        assert place == f"file://{tmp_path}/shared/probe"
    assert doctor.probe_place("s3://bucket/runs", "probe") == "s3://bucket/runs/probe"


def test_a_node_without_a_gpu_leaves_its_name_in_the_storage(tmp_path: Path) -> None:
    storage = f"file://{tmp_path}"
    answer = doctor.inspect_node("n", storage=storage, probe="probe", gpus=0, backbones=[])
    assert (answer.wrote, answer.torch_gpus, answer.problems) == (True, None, ())
    head = doctor.inspect_from_head(
        storage=storage,
        probes={"probe": "n", "nowhere": "m"},
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        dashboard=None,
    )
    (problem,) = head.problems
    assert "does not see what node m wrote" in problem
    doctor.remove_probe(storage=storage, probe="probe")
    assert list(tmp_path.iterdir()) == []


def test_without_a_cluster_the_json_has_no_nodes() -> None:
    facts: dict[str, object] = {"python": "3", "cluster": None}
    found = doctor.Findings(facts=facts, versions={}, nodes=None, warnings=["w"], problems=["p"])
    assert found.as_dict() == {**facts, "versions": {}, "warnings": ["w"], "problems": ["p"]}
    with_nodes = doctor.Findings(facts=facts, versions={}, nodes=[], warnings=[], problems=[])
    assert with_nodes.as_dict()["nodes"] == []
