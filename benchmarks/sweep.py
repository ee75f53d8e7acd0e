"""python -m benchmarks.sweep [--data PARQUET] [--trials N] [--rounds N] [--quick]

What a sweep costs beyond its training, on two slots of one CPU each:

b  this project: ``orchestrator sweep vit --trials 16``, ASHA, at most 9 epochs, tracking on
a  bare Python processes (benchmarks/bare.py), one a slot, no Ray: the trials of b's ledger again,
   each to the epoch at which b ended it, with the same evaluation, checkpoints and threads

Once b is some epochs ahead, a starts, and the two take turns of 3 s on the machine, all processes
of the other held meanwhile (benchmarks/turns.py): a small machine's speed drifts by 10 % and more
in minutes, whatever runs on it. All times of a and b are by clocks that stand still while they are
held. And once c, a ``TorchTrainer`` a trial (benchmarks/isolated.py), 4 trials of one epoch, for
its start.

``efficiency_vs_bare`` is a's time over b's, the median of the pairs: from the moment the first
slot is ready (a: the first process has its imports) to the last report. ``..._with_cold_start`` the
same from the start of the command. ``warm_start_s`` is the median, over all trials but the first of
each slot, from the ledger's ``started`` (the dispatcher has chosen the trial for the slot) to just
before the first step; ``cold_start_s`` from the command to the first step of all;
``isolated_start_s`` of c from the first line of its Tune function to just before the first step.
Where b's time goes: between two epochs of a trial (``epoch_gap_s``), between a trial's last report
and the next trial's ``started`` (``handover_s``), and slots with nothing left to do (``tail_s``).

Stated before measuring: efficiency_vs_bare >= 0.95, warm_start_s <= 0.5. Natural images beside the
checkout or given by --data, 3,000 a trial, else digits. About 20 minutes on 2 cores. The result
goes to benchmarks/results/sweep.json, a summary to the last line of stdout.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import NATURAL_IMAGES, ROOT, arguments, finish, spread
from benchmarks.turns import Side, take_turns
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.state import Record
from trainables.config import DataSpec
from trainables.data.build import prepare
from trainables.train.trial import PURPOSES

SLOTS = 2
LEAD_REPORTS = 8  # epochs that b is ahead when a starts: a must never wait for it
ISOLATED_TRIALS = 4
FAMILY = "vit"


def main() -> None:
    parser = arguments(__doc__, "sweep.json")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--without-isolated", action="store_true", help="leave c out")
    options = parser.parse_args()
    trials = options.trials or (4 if options.quick else 16)
    rounds = options.rounds or (1 if options.quick else 2)
    source = options.data or (NATURAL_IMAGES if NATURAL_IMAGES.is_file() else None)
    with tempfile.TemporaryDirectory(prefix="sweep-") as temporary:
        folder = Path(temporary)
        sets = _data_settings(source, folder, quick=options.quick)
        ours: list[list[Record]] = []
        bare: list[list[Record]] = []
        for number in range(rounds):
            pair = side_by_side(folder, f"b{number}", source, trials, sets, options.quick)
            for part, runs, records in zip("ba", (ours, bare), pair, strict=True):
                runs.append(records)
                say(part, times(records))
        isolated = [] if options.without_isolated else one_trainer_a_trial(folder, options.quick)
    measured = {"ours": [times(r) for r in ours], "bare": [times(r) for r in bare]}
    measured["isolated_start_s"] = starts_of(isolated)  # type: ignore[assignment]
    settings = {
        "data": source.name if source else "digits",
        "trials": trials,
        "slots": SLOTS,
        "family": FAMILY,
        "set": [one for one in sets if not one.startswith("data.folder=")],
        "isolated_trials": len(measured["isolated_start_s"]),
    }
    finish({"settings": settings, "measured": measured}, options.out, summary(measured))


def _data_settings(source: Path | None, folder: Path, *, quick: bool) -> list[str]:
    """The ``--set`` of b; the image store is built before anything is measured."""
    values: dict[str, Any] = {"folder": str(folder / "stores")}
    if source is not None:
        values |= {"train_limit": 300 if quick else 3000, "val_fraction": 0.02}
    elif quick:
        values |= {"train_limit": 300}
    prepare(DataSpec(source=str(source.resolve()) if source else "digits", **values))
    return [f"data.{key}={value}" for key, value in values.items()]


def side_by_side(
    folder: Path, name: str, source: Path | None, trials: int, sets: list[str], quick: bool
) -> tuple[list[Record], list[Record]]:
    """The records of b and of a, with a record ``spawned`` before and ``exited`` after them."""
    command = [sys.executable, "-m", "orchestrator", "sweep", FAMILY, "--name", name]
    command += ["--dataset", str(source) if source else "digits", "--trials", str(trials)]
    command += ["--max-epochs", "3" if quick else "9", "--storage", str(folder / "runs")]
    for one in (*sets, f"resources.max_slots={SLOTS}"):
        command += ["--set", one]
    ledger, out = folder / "runs" / name / FILE_NAME, folder / f"{name}-bare.jsonl"
    ours = Side(command, folder, _environment())
    while ours.running() and _reports(ledger) < LEAD_REPORTS:
        time.sleep(0.1)
    ours.hold()
    command = [sys.executable, "-m", "benchmarks.bare", str(ledger), str(out)]
    bare = Side([*command, "--processes", str(SLOTS)], folder, _environment())
    take_turns(ours, bare)
    return _by_own_clock(ours, ledger), _by_own_clock(bare, out)


def _reports(ledger: Path) -> int:
    return sum(r["event"] == "reported" for r in read(ledger)) if ledger.exists() else 0


def _by_own_clock(side: Side, path: Path) -> list[Record]:
    """The records, by their side's clock; ``wall`` keeps the usual time."""
    assert side.ended is not None
    ends = [{"time": side.spawned, "event": "spawned"}, {"time": side.ended, "event": "exited"}]
    records = sorted((*read(path), *ends), key=lambda record: record["time"])
    for record in records:
        record["wall"], record["time"] = record["time"], side.own(record["time"])
        detail = record.get("detail") or {}
        if "first_step_at" in detail:
            detail["first_step_at"] = side.own(detail["first_step_at"])
    return records


def one_trainer_a_trial(folder: Path, quick: bool) -> list[Record]:
    """The records of c, on the trials of the first run."""
    out = folder / "isolated.jsonl"
    command = [sys.executable, "-m", "benchmarks.isolated"]
    command += [str(folder / "runs" / "b0" / FILE_NAME), str(out), "--at-a-time", str(SLOTS)]
    command += ["--trials", str(2 if quick else ISOLATED_TRIALS)]
    _carry_out(command, folder)
    return list(read(out))


def _carry_out(command: list[str], folder: Path) -> None:
    Side(command, folder, _environment()).wait()


def _environment() -> dict[str, str]:
    env = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("MLFLOW_TRACKING_URI", None)
    return env


def times(records: Sequence[Record]) -> dict[str, Any]:
    """Where the time of one part went, in seconds; see the module's docstring."""
    spawned, exited = records[0]["time"], records[-1]["time"]
    reports = [record for record in records if record["event"] == "reported"]
    starts = [record for record in records if record["event"] == "started"]
    by_slot: dict[str, list[Record]] = defaultdict(list)
    slot_of = {record["trial"]: record["slot"] for record in starts}
    for record in (*starts, *reports):
        by_slot[slot_of[record["trial"]]].append(record)
    for mine in by_slot.values():
        mine.sort(key=lambda record: record["time"])
    ready = min(
        [r["time"] for r in records if r["event"] == "ready"]
        or [mine[0]["time"] - mine[0]["waited_s"] for mine in by_slot.values()]
    )
    ends = [mine[-1]["time"] for mine in by_slot.values()]
    busy = sum(r["metrics"][f"{purpose}_seconds"] for r in reports for purpose in PURPOSES)
    cold = {mine[0]["trial"] for mine in by_slot.values()}
    first_steps = {
        r["trial"]: r["detail"]["first_step_at"]
        for r in reports
        if r["epoch"] == 1 and "first_step_at" in r.get("detail", {})
    }
    began = {record["trial"]: record["time"] for record in starts}
    return {
        "from_ready_s": max(ends) - ready,
        "from_command_s": max(ends) - spawned,
        "whole_command_s": exited - spawned,
        "slot_ready_s": ready - spawned,
        "cold_start_s": min(first_steps.values()) - spawned if first_steps else None,
        "warm_start_s": [at - began[name] for name, at in first_steps.items() if name not in cold],
        "epoch_gap_s": _epoch_gaps(by_slot),
        "handover_s": _handovers(by_slot),
        "tail_s": sum(max(ends) - end for end in ends),
        "training_s": busy,
        "waited_s": sum(r["seconds"] for r in records if r["event"] == "waited"),
        "epochs": len(reports),
        "trials": len(starts),
    }


def _epoch_gaps(by_slot: dict[str, list[Record]]) -> list[float]:
    """Between two reports of a trial, less what the later one accounts for, held or not."""
    gaps = []
    for mine in by_slot.values():
        for before, after in pairwise(mine):
            if before["event"] == after["event"] == "reported":
                spent = sum(after["metrics"][f"{purpose}_seconds"] for purpose in PURPOSES)
                gaps.append(after["wall"] - before["wall"] - spent)
    return gaps


def _handovers(by_slot: dict[str, list[Record]]) -> list[float]:
    """From a trial's last report to the start of the next on its slot."""
    return [
        after["time"] - before["time"]
        for mine in by_slot.values()
        for before, after in pairwise(mine)
        if (before["event"], after["event"]) == ("reported", "started")
    ]


def starts_of(records: Sequence[Record]) -> list[float]:
    """Of c: from each trial's start to its first step."""
    began = {r["trial"]: r["time"] for r in records if r["event"] == "started"}
    return [r["time"] - began[r["trial"]] for r in records if r["event"] == "stepping"]


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """The keys that the docstring names; each median with its spread beside it in the file."""
    pairs = list(zip(measured["bare"], measured["ours"], strict=True))
    found: dict[str, Any] = {"n": len(pairs)}
    for key, name in (
        ("from_ready_s", "efficiency_vs_bare"),
        ("from_command_s", "efficiency_vs_bare_with_cold_start"),
    ):
        ratios = spread([bare[key] / ours[key] for bare, ours in pairs])
        found |= {name: round(ratios["median"], 4), f"{name}_spread": ratios}
    for key in ("warm_start_s", "epoch_gap_s", "handover_s"):
        values = [value for ours in measured["ours"] for value in ours[key]]
        found[key] = round(statistics.median(values), 4) if values else None
        found[f"{key}_spread"] = spread(values) if values else None
    colds = [ours["cold_start_s"] for ours in measured["ours"]]
    found["cold_start_s"] = round(statistics.median(colds), 2)
    isolated = measured["isolated_start_s"]
    found["isolated_start_s"] = round(statistics.median(isolated), 2) if isolated else None
    return found


def say(part: str, found: dict[str, Any]) -> None:
    """One line on stderr as soon as it is known."""
    shown = {key: value for key, value in found.items() if isinstance(value, float | int)}
    print(f"{part}: {json.dumps(shown)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
