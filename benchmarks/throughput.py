"""python -m benchmarks.throughput [--trials N] [--rounds N] [--quick]

How many results a second the driver's side carries: Tune, thin trials, dispatcher, ledger and the
MLflow mirror, with slots that report at once (benchmarks/driver_side.py). 500 trials of 20 reports
of 11 metrics, 32 at a time, on all cores, each run in a fresh process and a fresh Ray:

off     nothing is mirrored
on      mirrored over HTTP into a real ``mlflow server`` on sqlite, on the same cores at nice 19: on
        a cluster it has a machine of its own
outage  the same, and halfway the server is down for 30 s

``off`` and ``on`` take turns (off on, on off). ``results_per_s`` is of ``on``: from the moment the
last of the slots got its first trial until the last trial was handed out, so 32 at a time
throughout; ``results_per_s_whole`` from the first trial handed out to the last report, start of the
32 thin trials included. ``recording_slowdown`` is the whole time of ``on`` over that of ``off``,
``mlflow_lag_s`` how long the mirror needs after the run's end, ``driver_rss_mb`` the driver's
largest resident memory, ``lost`` the metric values of the ledger that MLflow's own table does not
hold after ``outage``, ``outage_slowdown`` its whole time over that of ``on``.

Stated before measuring: results_per_s >= 100 on 2 cores, recording_slowdown <= 1.25, lost = 0,
outage_slowdown <= 1.25. About 15 minutes. The result goes to benchmarks/results/throughput.json, a
summary to the last line of stdout.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, arguments, finish, spread
from benchmarks.driver_side import NAME
from orchestrator.ledger.events import FILE_NAME, read, tail
from orchestrator.ledger.state import Record, replay
from orchestrator.tracking import view
from orchestrator.tracking.store import ui_command

OUTAGE_S = 30.0
SERVER_PATIENCE_S = 120.0


class Server:
    """A real ``mlflow server`` on a database of its own, that can go away and come back."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "mlflow.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._log = (folder / "server.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ui_command("", f"sqlite:///{self.database}", port=self._port)
        self._process = subprocess.Popen(
            ["nice", "-n", "19", *command],
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        deadline = time.monotonic() + SERVER_PATIENCE_S
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(f"no MLflow at {self.uri} within {SERVER_PATIENCE_S:g} s")

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def measure(kind: str, trials: int, reports: int, slots: int, outage_s: float) -> dict[str, Any]:
    """One run of ``kind`` from nothing: its figures."""
    with tempfile.TemporaryDirectory(prefix="throughput-") as temporary:
        folder = Path(temporary)
        command = [sys.executable, "-m", "benchmarks.driver_side", str(folder)]
        command += ["--trials", str(trials), "--reports", str(reports), "--slots", str(slots)]
        if kind == "off":
            return _figures(folder, _carried_out(command, folder))
        with serving(folder) as server:
            command += ["--uri", server.uri]
            process = _started(command, folder)
            if kind == "outage":
                _down_halfway(server, process, folder, trials * reports, outage_s)
            found = _figures(folder, _ended(process, folder))
        return {**found, "lost": lost(folder / NAME / FILE_NAME, server.database)}


def _started(command: list[str], folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}
    env.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "driver.log").open("w") as log:
        return subprocess.Popen(
            command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
        )


def _ended(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError((folder / "driver.log").read_text()[-2000:])
    figures: dict[str, Any] = json.loads(out.splitlines()[-1])
    return figures


def _carried_out(command: list[str], folder: Path) -> dict[str, Any]:
    return _ended(_started(command, folder), folder)


def _down_halfway(
    server: Server, process: subprocess.Popen[str], folder: Path, results: int, seconds: float
) -> None:
    path, seen, offset = folder / NAME / FILE_NAME, 0, 0
    while seen < results / 2 and process.poll() is None:
        time.sleep(0.2)
        if path.exists():
            records, offset = tail(path, offset)
            seen += sum(record["event"] == "reported" for record in records)
    server.stop()
    time.sleep(seconds)
    server.start()


def _figures(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    return {**told, **paces(list(read(folder / NAME / FILE_NAME)))}


def paces(records: list[Record]) -> dict[str, float]:
    """Results a second, of a ledger's own times: see the module's docstring."""
    starts = [(r["time"], r["slot"]) for r in records if r["event"] == "started"]
    reports = [r["time"] for r in records if r["event"] == "reported"]
    first_of_slot: dict[str, float] = {}
    for at, slot in starts:
        first_of_slot.setdefault(slot, at)
    begin, end = max(first_of_slot.values()), starts[-1][0]
    steady = sum(begin <= at <= end for at in reports)
    whole = reports[-1] - starts[0][0]
    return {
        "results": len(reports),
        "results_per_s": steady / (end - begin),
        "steady_s": end - begin,
        "results_per_s_whole": len(reports) / whole,
        "whole_s": whole,
    }


def lost(ledger: Path, database: Path) -> int:
    """Metric values that the ledger holds and MLflow's table does not, or not as they were."""
    state = replay(read(ledger))
    expected = {
        (trial.trial, name, step, value)
        for trial in state.trials.values()
        for rows in (view.epoch_metrics(trial), view.final_metrics(trial))
        for name, value, _, step in rows
    }
    with sqlite3.connect(database) as store:
        held = store.execute(
            "select t.value, m.key, m.step, m.value from metrics m join tags t "
            "on m.run_uuid = t.run_uuid where t.key = 'trial'"
        )
        return len(expected - set(held))


def main() -> None:
    parser = arguments(__doc__, "throughput.json", reads_pictures=False)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--rounds", type=int, default=2, help="of off and on")
    parser.add_argument("--kinds", nargs="+", choices=("off", "on", "outage"))
    options = parser.parse_args()
    size = {"trials": options.trials or 500, "reports": 20, "slots": 32, "outage_s": OUTAGE_S}
    kinds = ["off", "on", "on", "off"] * (options.rounds // 2)
    kinds += ["off", "on"] * (options.rounds % 2) + ["outage"]
    if options.quick:
        size = {"trials": options.trials or 12, "reports": 6, "slots": 4, "outage_s": 3.0}
        kinds = ["off", "on", "outage"]
    runs: dict[str, list[dict[str, Any]]] = {}
    for kind in options.kinds or kinds:
        found = measure(kind, **size)
        runs.setdefault(kind, []).append(found)
        print(f"{kind}: {json.dumps(found)}", file=sys.stderr, flush=True)
    finish({"settings": size, "runs": runs}, options.out, summary(runs))


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The keys that the docstring names, with the spread of what was measured more than once."""

    def all_of(kind: str, key: str) -> list[float]:
        return [float(run[key]) for run in runs.get(kind, [])]

    def ratio(slow: str, fast: str) -> float | None:
        if slow not in runs or fast not in runs:
            return None
        times = [statistics.median(all_of(kind, "whole_s")) for kind in (slow, fast)]
        return round(times[0] / times[1], 3)

    kind = "on" if "on" in runs else next(iter(runs))
    rates, lags = spread(all_of(kind, "results_per_s")), [*all_of("on", "mlflow_lag_s")]
    return {
        "results_per_s": round(rates["median"], 1),
        "results_per_s_spread": rates,
        "results_per_s_whole": spread(all_of(kind, "results_per_s_whole")),
        "recording_slowdown": ratio("on", "off"),
        "mlflow_lag_s": round(statistics.median(lags), 1) if lags else None,
        "driver_rss_mb": round(max(all_of(kind, "driver_rss_mb"))),
        "outage_slowdown": ratio("outage", "on"),
        "lost": sum(run.get("lost", 0) for found in runs.values() for run in found),
    }


if __name__ == "__main__":
    main()
