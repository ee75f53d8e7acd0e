"""A run's weights are those of the revision that it began with, whatever the hub holds later."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save

from orchestrator.launch import prepare
from orchestrator.launch.options import RunOptions
from orchestrator.ledger.session import begin, state_of
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.run import RunSpec
from trainables.backbones import build, check_weights, current_pin, fetch
from trainables.config import BackboneSpec
from trainables.progress import StepProgress, watch_steps

REPOSITORY = "timm/test_vit.r160_in1k"
OLD, NEW = "a" * 40, "b" * 40
SPEC = BackboneSpec(family="vit", weights="hub")


class Hub(ThreadingHTTPServer):
    """In the hub's layout: ``/REPOSITORY/resolve/REVISION/FILE``, the commit in a header."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.main, self.files = OLD, dict[str, bytes]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def answer(self) -> bytes:
        revision = self.path.partition("/resolve/")[2].partition("/")[0]
        commit = self.server.main if revision == "main" else revision
        content = self.server.files.get(commit)
        is_known = self.path.startswith(f"/{REPOSITORY}/resolve/")
        if not is_known or content is None or not self.path.endswith("/model.safetensors"):
            self.send_error(404)
            return b""
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    import huggingface_hub.constants as constants

    server = Hub()
    for number, commit in enumerate((OLD, NEW)):
        torch.manual_seed(number)
        server.files[commit] = save(timm.create_model("test_vit").state_dict())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    # What the client has read of the environment already.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    yield server
    server.shutdown()


def first_weights(commit: str, hub: Hub) -> torch.Tensor:
    from safetensors.torch import load

    return load(hub.files[commit])["blocks.0.attn.qkv.weight"]


def built(spec: BackboneSpec) -> torch.Tensor:
    module = build(spec, num_classes=10, height=32, width=32).module
    return module.state_dict()["blocks.0.attn.qkv.weight"]


def test_a_pin_loads_its_revision_though_the_hub_has_moved_on(hub: Hub) -> None:
    pin = current_pin(SPEC, timeout_s=5)
    assert pin == f"{REPOSITORY}@{OLD}"
    hub.main = NEW
    pinned = replace(SPEC, hub_pins=pin)
    assert check_weights(pinned) == []
    assert built(pinned).equal(first_weights(OLD, hub))
    assert not built(pinned).equal(first_weights(NEW, hub))
    # The cache has the old one only: another pin looks past it.
    newer = replace(SPEC, hub_pins=f"{REPOSITORY}@{NEW}")
    assert built(newer).equal(first_weights(NEW, hub))
    assert built(pinned).equal(first_weights(OLD, hub))


def test_weights_are_fetched_with_progress_once(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trainables.backbones.hub")
    steps: list[StepProgress | None] = []
    pinned = replace(SPEC, hub_pins=f"{REPOSITORY}@{OLD}")
    watch_steps(steps.append)
    try:
        fetch(pinned)
    finally:
        watch_steps(None)
    *advances, end = steps
    assert end is None
    last = advances[-1]
    assert last is not None
    assert last.done == last.total == pytest.approx(len(hub.files[OLD]) / 1e6)
    hub.files.clear()
    steps.clear()
    fetch(pinned)
    assert (steps, caplog.messages) == ([], [])
    assert built(pinned).shape  # from the cache
    fetch(replace(SPEC, hub_pins=f"{REPOSITORY}@{NEW}"))
    (line,) = caplog.messages
    assert line.startswith(f"warning: {REPOSITORY} is not here yet")


def test_a_revision_that_is_gone_is_named_and_no_other_is_taken(hub: Hub) -> None:
    gone = replace(SPEC, hub_pins=f"other/one@{OLD} {REPOSITORY}@{'c' * 40}")
    [mistake] = check_weights(gone)
    assert "404" in mistake
    assert REPOSITORY in mistake


def test_a_run_writes_its_revision_down_and_keeps_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = replace(family_sweep("vit", dataset="digits", trials=1), backbone=SPEC)
    spec = RunSpec(name="pinned", sweeps=(sweep,))

    def prepared(asked: RunSpec) -> RunSpec:
        return prepare.prepare(asked, None, RunOptions()).spec

    first = prepared(spec)
    assert first.sweeps[0].backbone.hub_pins == f"{REPOSITORY}@{OLD}"
    unpinned = replace(first.sweeps[0].backbone, hub_pins=SPEC.hub_pins)
    without = replace(first, sweeps=(replace(first.sweeps[0], backbone=unpinned),))
    assert first.hash() == without.hash()  # operational: the same run
    begin(first, spec.folder, "s", datasets={}, geometry={}, forecast=None)
    hub.main = NEW
    again = prepared(spec)
    assert again.sweeps[0].backbone.hub_pins == f"{REPOSITORY}@{OLD}"
    begin(again, spec.folder, "t", datasets={}, geometry={}, forecast=None)
    [trial] = state_of(spec.folder).trials.values()
    assert trial.assignment.backbone.hub_pins == f"{REPOSITORY}@{OLD}"
    other = prepared(replace(spec, name="other"))
    assert other.sweeps[0].backbone.hub_pins == f"{REPOSITORY}@{NEW}"


def test_what_has_no_pin_is_written_as_before() -> None:
    assert "hub_pins" not in json.dumps(BackboneSpec(family="vit").as_dict())
    pinned = replace(SPEC, hub_pins=f"{REPOSITORY}@{OLD}")
    assert BackboneSpec.from_dict(json.loads(json.dumps(pinned.as_dict()))) == pinned
    assert current_pin(BackboneSpec(family="vit"), timeout_s=1) is None
