"""Runs as jobs of a head of this machine, by Ray's client and by `orchestrator submit`; then the
same head with a second node that holds another version."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import PATIENCE_S, ROOT, Shell, line_of
from tests.integration.heads import BIN, Head, head, node

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

QUICK = (
    "--max-epochs", "1", "--set", "data.train_limit=200", "--set", "resources.max_slots=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, pixels: Path) -> Iterator[tuple[Shell, Head]]:
    """A shell, and a head with tokens that all tests of this file share: a start takes seconds."""
    place = tmp_path_factory.mktemp("jobs")
    (place / "home").mkdir()
    env = {**os.environ, "HOME": str(place / "home"), "ORCHESTRATOR_DATA": str(pixels)}
    env |= {"NO_COLOR": "1", "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    env.pop("MLFLOW_TRACKING_URI", None)
    shell = Shell(place, env)
    try:
        with head(shell, "token") as started:
            yield shell, started
    finally:
        for process in shell.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def submission(shell: Shell, at: Head, *command: str) -> list[str]:
    """Arguments of `orchestrator submit` for a run of this shell."""
    where = ("--address", at.dashboard, "--working-dir", str(ROOT))
    return ["submit", *where, "--", *command, "--storage", str(shell.cwd / "runs")]


def test_rays_own_client_and_a_second_submission_of_what_is_done(
    cluster: tuple[Shell, Head],
) -> None:
    shell, at = cluster
    sweep = ("sweep", "vit", "--name", "job", "--trials", "2", *QUICK)
    storage = ("--storage", str(shell.cwd / "runs"))
    command = [BIN / "ray", "job", "submit", f"--address={at.dashboard}", "--working-dir", ROOT]
    command += ["--", "python", "-m", "orchestrator", *sweep, *storage]
    done = subprocess.run(
        command, env=shell.env, text=True, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trials = shell.state("job").trials.values()
    assert [trial.status for trial in trials] == ["finished", "finished"]

    code, out, err = shell(*submission(shell, at, *sweep))
    assert code == 0, out + err
    assert "job is done already" in out
    assert "job job at http" in err
    assert err.splitlines()[-1] == "job job is done"


def test_a_screen_is_a_job_too(cluster: tuple[Shell, Head]) -> None:
    shell, at = cluster
    screen = ("screen", "timm:test_vit=none", "timm:test_resnet=none", "--name", "screened")
    code, out, err = shell(*submission(shell, at, *screen, "--set", "data.train_limit=200"))
    assert code == 0, out + err
    assert err.splitlines()[-1] == "job screened is done"
    document = json.loads((shell.folder("screened") / "shortlist.json").read_text())
    assert sorted(document["shortlist"]) == ["test_resnet", "test_vit"]


def test_a_failing_sweep_ends_with_its_own_exit_code(cluster: tuple[Shell, Head]) -> None:
    shell, at = cluster
    weights = shell.cwd / "broken.safetensors"
    weights.write_text("no weights")
    sweep = ("sweep", "vit", "--name", "bad", "--trials", "1", "--weights", str(weights), *QUICK)
    code, out, err = shell(*submission(shell, at, *sweep))
    assert code == 2, out + err
    assert "ended with exit code 2" in err
    assert "not a readable state dict" in out + err
    assert shell.records("bad") == []  # no run began, and the name is free


def test_let_go_found_again_and_stopped(cluster: tuple[Shell, Head]) -> None:
    shell, at = cluster
    endless = ("--trials", "1", "--max-epochs", "5000", "--set", "data.train_limit=200")
    command = submission(shell, at, "sweep", "vit", "--name", "long", *endless)
    first = shell.start(*command)
    assert "submitted" in line_of(first, "job long at")
    shell.wait_for("long", lambda state: any(one.epoch for one in state.trials.values()))
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=30)
    assert first.returncode == 130, err
    assert "job long; it goes on" in err
    assert f"orchestrator stop long --storage {shell.cwd / 'runs'}" in err

    code, _, err = shell(*command[:-2], "--trials", "2", *command[-2:])
    assert code == 2
    assert "one job at a time" in err

    again = shell.start(*command)
    assert "at work already" in line_of(again, "job long at")
    assert shell("stop", "long", "--storage", str(shell.cwd / "runs"))[0] == 0
    out, err = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 130, out + err
    assert "starting Ray" in out
    assert "nothing is lost" in out


def test_a_client_without_the_token_is_told_how_to_get_it(cluster: tuple[Shell, Head]) -> None:
    shell, at = cluster
    stranger = Shell(shell.cwd, {**shell.env, "HOME": str(shell.cwd)})
    command = submission(shell, at, "sweep", "vit")
    for mode, fix in (("token", "~/.ray/auth_token"), ("disabled", "export RAY_AUTH_MODE=token")):
        stranger.env["RAY_AUTH_MODE"] = mode
        code, _, err = stranger(*command)
        (line,) = err.splitlines()
        assert code == 2
        assert "asks for its token" in line
        assert fix in line.partition("Fix: ")[2]
    stranger.env |= {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": at.gcs}
    code, _, err = stranger("doctor")
    assert (code, "must let this process in" in err) == (2, True), err


HUNG = """
import time
from orchestrator.ray_cluster import attach
from orchestrator.ray_cluster.capacity import alive_nodes
def hang(node):
    time.sleep(60 if node == "worker" else 0)
    return node
with attach.attached(namespace="test"):
    asked = {one: {"node": "head" if one.is_head else "worker"} for one in alive_nodes()}
    answers = attach.ask_each(asked, hang, timeout_s=6.0)
print([str(answer) for answer in answers.values()])
"""


def test_a_node_with_another_version_is_named_before_anything_is_trained(
    cluster: tuple[Shell, Head],
) -> None:
    shell, at = cluster
    info = shell.cwd / "other" / "timm-0.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.9.9\n")
    path = f"{info.parent}:{ROOT}"
    there = Shell(shell.cwd, {**shell.env, "RAY_ADDRESS": at.gcs})
    with node(shell, at, {"PYTHONPATH": path}):
        code, out, err = there("sweep", "vit", "--name", "mixed", "--trials", "1", *QUICK)
        assert code == 2, out + err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "has timm 0.9.9, the driver timm" in line
        assert not shell.folder("mixed").exists()

        code, out, err = there("doctor", "vit", "--json", "--storage", str(shell.cwd / "runs"))
        findings = json.loads(out)
        assert code == 2
        assert findings["problems"] == [line.removeprefix("error: ")]
        assert [node["head"] for node in findings["nodes"]] == [True, False]
        assert [node["versions"]["timm"] == "0.9.9" for node in findings["nodes"]] == [False, True]
        assert (findings["auth"], findings["dashboard"]) == (
            "token",
            at.dashboard.removeprefix("http://"),
        )
        assert not list((shell.cwd / "runs").glob(".doctor-*"))

        ran = subprocess.run(
            [sys.executable, "-c", HUNG],
            env=there.env, text=True, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert ran.stdout.strip() == "['head', 'no answer within 6 s']", ran.stderr
