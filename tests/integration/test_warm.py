"""Fifty trials in two warm slots: memory stays flat, the pruned make room, nothing is left over."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integration.conftest import Shell
from tests.integration.heads import head

pytestmark = pytest.mark.ray

TRIALS = 50
RELEASE_S = 2.0
# A worker's resident memory is least between two trials, when freed memory has gone back: there it
# varies by 10 MB, and in a trial by a hundred. What every trial leaves behind shows in every window
# of five trials (1.5 MB a trial as 4 MB), a fragmented heap in one.
GROWTH_MB_PER_WINDOW = 2
WINDOW_TRIALS = 5
SETTLED_TRIALS = 10
SAMPLE_S = 0.04

WATCHER = """
import json, sys, time, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
while True:
    groups = ray.util.placement_group_table().values()
    held = sum(group["state"] == "CREATED" for group in groups)
    free = ray.available_resources().get("CPU", 0.0)
    print(json.dumps({"time": time.time(), "groups": held, "free": free}), flush=True)
    time.sleep(0.2)
"""


def resident_mb(pid: int) -> float | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((float(x.split()[1]) / 1024 for x in lines if x.startswith("VmRSS")), None)


def growth_mb(memory: list[tuple[float, int, float]], edges: list[float]) -> dict[int, float]:
    """The median growth of each process's least resident memory from one window of time to the
    next; ``edges`` are the windows' limits. A median, for one trial may fragment the heap by more
    than a leak would add in all windows together. A process of one window is none that serves: a
    fork has its parent's command line until it becomes something else."""
    growth: dict[int, float] = {}
    for pid in {pid for _, pid, _ in memory}:
        samples = [
            [mb for at, owner, mb in memory if owner == pid and begin <= at < end]
            for begin, end in pairwise(edges)
        ]
        least = [min(window) for window in samples if window]
        if len(least) > 1:
            growth[pid] = statistics.median(b - a for a, b in pairwise(least))
    return growth


def test_fifty_trials_keep_two_slots_warm_and_leave_nothing(shell: Shell) -> None:
    with head(shell, "disabled") as started:
        shell.env["RAY_ADDRESS"] = started.gcs
        seen = shell.cwd / "seen.jsonl"
        with seen.open("w") as out:
            watcher = subprocess.Popen(
                [sys.executable, "-c", WATCHER, started.gcs], env=shell.env, stdout=out
            )
        driver = shell.start(
            "sweep", "resnet", "--name", "warm", "--trials", str(TRIALS), "--max-epochs", "2",
            "--set", "scheduler.reduction_factor=2", "--set", "scheduler.grace_epochs=1",
            "--set", "data.train_limit=100", "--set", "recipe.batch_size_per_worker=50",
        )  # fmt: skip
        memory: list[tuple[float, int, float]] = []
        while driver.poll() is None:
            for pid in shell.processes("RayTrainWorker"):
                if resident := resident_mb(pid):
                    memory.append((time.time(), pid, resident))
            time.sleep(SAMPLE_S)
        left = time.time()
        assert driver.returncode == 0, driver.communicate()[1]
        time.sleep(RELEASE_S)
        watcher.kill()
        watcher.wait()
    records = shell.records("warm")
    state = shell.state("warm")
    assert {trial.status for trial in state.trials.values()} == {"finished", "pruned"}
    assert len(state.trials) == TRIALS

    ends = sorted(trial.ended_at for trial in state.trials.values() if trial.ended_at)
    growth = growth_mb(memory, [*ends[SETTLED_TRIALS - 1 : -1 : WINDOW_TRIALS], left])
    assert len(growth) == 2
    assert max(growth.values()) < GROWTH_MB_PER_WINDOW

    starts = [r for r in records if r["event"] == "started"]
    slots = {record["slot"] for record in starts}
    assert len(slots) == 2
    on_slot = {record["trial"]: record["slot"] for record in starts}
    for pruned in (r for r in records if r["event"] == "pruned"):
        later = [r["time"] for r in starts if r["time"] > pruned["time"]]
        mine = [
            r["time"]
            for r in starts
            if r["time"] > pruned["time"] and r["slot"] == on_slot[pruned["trial"]]
        ]
        if len(later) >= len(slots):  # somebody was waiting
            assert mine
            assert mine[0] - pruned["time"] < RELEASE_S

    # Ray prints a raylet's warnings among them.
    lines = [line for line in seen.read_text().splitlines() if line.startswith("{")]
    watched = [json.loads(line) for line in lines]
    during = [one["groups"] for one in watched if one["time"] < left]
    # One group a slot and one for each thin trial that is awake; the pruned have none.
    assert max(during) <= len(slots) + len(slots) + 2
    after = [one for one in watched if one["time"] >= left]
    assert after[-1]["groups"] == 0
    assert after[-1]["free"] == 2
