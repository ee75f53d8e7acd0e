"""Work on several Ray nodes with addresses of their own, one of which is cut off."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.integration.conftest import PATIENCE_S, Shell
from tests.integration.heads import BIN, until_started
from tests.integration.lan import Lan, lan
from tests.integration.test_sweep import epochs
from trainables.storage.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(600)]

EPOCHS = 6
SWEEP = (
    "sweep", "resnet", "--name", "lan", "--trials", "1", "--workers", "2",
    "--max-epochs", str(EPOCHS), "--set", "scheduler.kind=none",
    "--set", "data.train_limit=300", "--set", "recipe.batch_size_per_worker=10",
    "--set", "resources.max_failures_per_trial=0",
)  # fmt: skip
CANDIDATES = ("resnet26", "resnet26d", "resnet34", "resnet50")
SCREEN = (
    "screen", *(f"timm:{label}=none" for label in CANDIDATES), "--name", "cut",
    "--set", "data.train_limit=700",
)  # fmt: skip
HEAD_PORT = 6379  # free: each namespace has all ports to itself


@contextmanager
def cluster(shell: Shell, net: Lan) -> Iterator[None]:
    """A node of one CPU on each machine, the first is the head. Tokens on; a lost node is known to
    be lost within seconds."""
    token = Path(shell.env["HOME"]) / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("a-token-that-all-nodes-share")
    shell.env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_ADDRESS": f"{net.address(net.machines[0])}:{HEAD_PORT}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "4",
        "GLOO_SOCKET_IFNAME": "eth0",  # the machine's name belongs to another network
    }
    with TemporaryDirectory(prefix="lan-", dir="/tmp") as disks:  # paths of sockets must be short
        head, *others = net.machines
        until_started(start(shell, net, head, disks), shell.cwd / f"{head}.log")
        joining = {other: start(shell, net, other, disks) for other in others}
        for other, process in joining.items():
            until_started(process, shell.cwd / f"{other}.log")
        yield


def start(shell: Shell, net: Lan, machine: str, disks: str) -> subprocess.Popen[bytes]:
    """Start the machine's node, with a temporary folder of its own."""
    here = net.address(machine)
    place = (
        ["--head", f"--port={HEAD_PORT}", "--include-dashboard=false"]
        if machine == net.machines[0]
        else [f"--address={shell.env['RAY_ADDRESS']}"]
    )
    with (shell.cwd / f"{machine}.log").open("w") as log:
        return subprocess.Popen(
            [
                *net.on(machine),
                *(BIN / "ray", "start", "--block", "--num-cpus=1", f"--node-ip-address={here}"),
                *(f"--temp-dir={disks}/{machine}", *place),
            ],
            env={key: value for key, value in shell.env.items() if key != "RAY_ADDRESS"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def on_head(shell: Shell, net: Lan, *command: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*net.on(net.machines[0]), sys.executable, "-m", "orchestrator", *command],
        cwd=shell.cwd,
        env=shell.env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    shell.started.append(process)
    return process


def at_work(shell: Shell, net: Lan, worker: str = "RayTrainWorker") -> set[str]:
    """Machines that have a worker."""
    workers = set(shell.processes(worker))
    return {machine for machine in net.machines if workers & net.processes(machine)}


def test_a_trial_across_two_nodes_outlives_the_loss_of_one(shell: Shell) -> None:
    with lan("head", "left", "right") as net, cluster(shell, net):
        driver = on_head(shell, net, *SWEEP)
        shell.wait_for("lan", lambda state: epochs(state) >= 1)
        before = at_work(shell, net)
        assert len(before) == 2
        lost = max(before - {"head"})
        shell.wait_for("lan", lambda state: epochs(state) >= 2)
        net.cut(lost)

        state = shell.wait_for("lan", lambda state: state.trials["resnet-0000"].attempt == 2)
        begun = epochs(state)
        shell.wait_for("lan", lambda state: epochs(state) > begun)
        assert at_work(shell, net) - {lost} == set(net.machines) - {lost}
        _, err = driver.communicate(timeout=PATIENCE_S)
        assert driver.returncode == 0, err

    trial = shell.state("lan").trials["resnet-0000"]
    assert trial.status == "finished"
    assert trial.attempt == 2
    assert begun < EPOCHS  # it was cut off in the middle
    assert sorted(trial.reports) == list(range(1, EPOCHS + 1))
    assert shell.reported_twice("lan") == []
    preempted = [one for one in shell.records("lan") if one["event"] == "preempted"]
    assert [one["trial"] for one in preempted] == ["resnet-0000"]


def test_a_screen_outlives_the_loss_of_a_node(shell: Shell) -> None:
    with lan("head", "left", "right") as net, cluster(shell, net):
        driver = on_head(shell, net, *SCREEN)
        all_three = wait_until(
            lambda: len(at_work(shell, net, "ray::on_worker")) == 3,
            patience_s=PATIENCE_S,
            poll_s=0.1,
        )
        assert all_three
        net.cut("right")
        cut_at = time.time()
        _, err = driver.communicate(timeout=PATIENCE_S)
        assert driver.returncode == 0, err

    screened = [one for one in shell.records("cut") if one["event"] == "screened"]
    assert sorted(one["candidate"] for one in screened) == sorted(CANDIDATES)  # each once
    assert not any(one["detail"].get("reason") for one in screened)
    assert screened[0]["time"] > cut_at, "it was cut off too late to show anything"
