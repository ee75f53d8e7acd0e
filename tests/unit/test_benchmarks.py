"""The benchmarks run, say what they promise, and compare like with like."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from benchmarks import (
    allocator,
    asha,
    augment,
    bare,
    execution,
    feeding,
    imbalance,
    learning,
    levels,
    metric_intervals,
    oracle,
    reference,
    resolution,
    scale,
    step,
    throughput,
    turns,
)
from benchmarks import sweep as sweep_benchmark
from benchmarks.common import NOISE_IMAGES, noise, pictures, spread
from orchestrator.compare.verdicts import PairVerdict
from orchestrator.ledger.events import Ledger, read
from orchestrator.spec.named_sweeps import family_sweep
from trainables.backbones import build
from trainables.config import BackboneSpec, DataSpec, Recipe
from trainables.data.build import prepare
from trainables.metrics import metric_of
from trainables.train.optimizer import rate_at

ROOT = Path(__file__).parents[2]


def test_step_ends_with_one_line_of_ratios_by_family(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.step", "--quick", "--threads", "1"]
    command += ["--families", "vit", "--scales", "tiny", "--out", str(tmp_path / "step.json")]
    command += ["--device", "cpu", "--ways", "--sides", "40"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr

    last = json.loads(ran.stdout.splitlines()[-1])
    result = json.loads(Path(last["result"]).read_text())
    for name in ("ratio_to_compute", "ratio_to_dataloader"):
        assert last[name] == {"vit": last[f"{name}_by_scale"]["vit"]["tiny"]}
        assert last[name]["vit"] > 0
        assert result[name] == last[name]
    assert torch.__version__.startswith(result["environment"]["versions"]["torch"])
    assert result["measured_by_side"]["40"]["vit"]["image_size"] == 40
    assert last["ratio_to_compute_by_side"]["40"]["vit"] > 0
    row = result["measured"]["vit"]["tiny"]
    assert row["ratio_to_compute"]["n"] == 1
    assert list(row["ways"]) == ["fp32", "fp32_channels_last", "bf16"]
    assert row["ways"]["fp32"]["ratio"] == {"median": 1, "low": 1, "high": 1, "n": 1}
    assert all(way["images_per_second"]["median"] > 0 for way in row["ways"].values())
    assert row["ratio_to_dataloader"] in (
        row["ratio_to_dataloader_0"],
        row["ratio_to_dataloader_2"],
    )


def test_what_kept_memory_gains_is_a_ratio_of_pairs() -> None:
    def side(speed: float, faults: float, peak: float) -> dict[str, float]:
        return {"images_per_second": speed, "faults": faults, "peak_mb": peak}

    pairs = [(side(12, 0, 102), side(10, 9, 100)), (side(28, 1, 104), side(20, 7, 100))]
    found = allocator.judge(pairs)
    assert found["speed_ratio"]["median"] == pytest.approx(1.3)
    assert found["peak_memory_ratio"]["median"] == pytest.approx(1.03)
    assert found["faults_per_step_by_default"]["median"] == 8
    assert found["images_per_second_kept"]["n"] == 2


def test_kept_memory_is_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.allocator", "--quick"]
    command += ["--out", str(tmp_path / "allocator.json")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["speed_ratio"]["vit tiny"] > 0


def test_a_family_counts_by_the_lower_of_its_scales() -> None:
    def row(compute: float, loader: float) -> dict[str, Any]:
        return {"ratio_to_compute": {"median": compute}, "ratio_to_dataloader": {"median": loader}}

    found = step.summary({"vit": {"tiny": row(0.98, 1.5), "small": row(0.99, 1.1)}})
    assert found["ratio_to_compute"] == {"vit": 0.98}
    assert found["ratio_to_dataloader"] == {"vit": 1.1}
    assert found["ratio_to_dataloader_by_scale"] == {"vit": {"tiny": 1.5, "small": 1.1}}


def test_ratios_are_of_neighbours_and_the_faster_loader_counts() -> None:
    found = step._ratios(
        {
            "engine": [50.0, 25.0, 100.0],  # the machine was half as fast in round two
            "compute": [100.0, 50.0, 100.0],
            "engine_alone": [50.0, 25.0],
            "dataloader_0": [25.0, 12.5],
            "dataloader_2": [40.0, 20.0],
        }
    )
    assert found["ratio_to_compute"] == {"median": 0.5, "low": 0.5, "high": 0.75, "n": 3}
    assert found["ratio_to_dataloader"]["median"] == 1.25
    assert found["ratio_to_dataloader_0"]["median"] == 2.0


def test_what_a_side_gains_is_paired_by_seed() -> None:
    def run(side: int, seed: int, top1: float) -> dict[str, Any]:
        cost = {"seconds": side / 10, "flops": side**2}
        return {"side": side, "seed": seed, "top1": top1, **cost}

    runs = [run(64, 0, 0.5), run(64, 1, 0.7), run(240, 0, 0.7), run(240, 1, 0.8), run(240, 2, 0.0)]
    found = resolution.judge(runs, 240)
    assert found["sides"]["64"]["top1"]["mean"] == pytest.approx(0.6)
    assert found["sides"]["240"]["top1"]["n"] == 3
    assert found["sides"]["240"]["seconds"] == 24.0
    gain = found["difference"]
    assert (gain["mean"], gain["n"]) == (pytest.approx(0.15), 2)
    paired = stats.ttest_rel([0.7, 0.8], [0.5, 0.7]).confidence_interval(0.95)
    assert gain["interval"] == pytest.approx([paired.low, paired.high])
    assert resolution.judge(runs[:2], 240)["difference"] is None


def test_sides_are_measured_in_pieces(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.resolution", "--quick", "--threads", "1"]
    command += ["--out", str(tmp_path / "resolution.json")]
    for piece in (["--side", "64", "--seeds", "0"], ["--side", "160", "--seeds", "0"]):
        ran = subprocess.run(
            [*command, *piece], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
    result = json.loads((tmp_path / "resolution.json").read_text())
    (images,) = result["data"].values()
    assert [(run["side"], run["seed"]) for run in images["runs"]] == [(64, 0), (160, 0)]
    assert images["difference"]["n"] == 1
    assert result["default_side"] == 160
    assert "tmp" not in json.dumps(images["settings"])
    assert json.loads(ran.stdout.splitlines()[-1])["summary"].keys() == {"cifar10"}


def test_the_encoded_store_is_measured_against_the_faster_loader() -> None:
    speeds = {
        "encoded_1": [300.0, 150.0],  # the machine was half as fast in round two
        "encoded_2": [320.0, 160.0],
        "dataloader_0": [100.0, 50.0],
        "dataloader_2": [200.0, 100.0],
    }
    found = feeding.ratios(speeds)
    assert found["ratio_one_process"]["median"] == 3.0
    assert found["ratio_two_processes"]["median"] == 1.6
    assert found["ratio_to_faster"] == {"median": 1.5, "low": 1.5, "high": 1.5, "n": 2}


def test_rivals_of_feeding_read_the_same_pictures(tmp_path: Path) -> None:
    feeding.collages(tmp_path / "pictures", 40, (60, 45))
    train = 32  # the store's split; the loader reads all
    whole = feeding.from_store(tmp_path, "encoded", 16, rank=0, workers=1)
    halves = [feeding.from_store(tmp_path, "encoded", 16, rank=r, workers=2) for r in range(2)]
    assert [whole(0), *(half(0) for half in halves)] == [train, train // 2, train // 2]
    assert feeding.from_store(tmp_path, "pixels", 16, rank=0, workers=1)(0) == train
    assert feeding.from_loader(tmp_path, 16, workers=0)(0) == 40
    assert feeding.memory_mb() > 10


def test_the_spread_of_one_value_is_that_value() -> None:
    assert spread([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 1}
    assert spread([1.0, 5.0, 2.0, 3.0, 4.0]) == {"median": 3.0, "low": 2.0, "high": 4.0, "n": 5}


def test_noise_is_a_parquet_that_the_engine_reads(tmp_path: Path) -> None:
    path = noise(tmp_path / "noise.parquet", images=64, classes=4)
    info = prepare(DataSpec(source=str(path), folder=str(tmp_path))).info
    assert (sum(info.counts.values()), info.height, len(info.class_names)) == (64, 32, 4)
    assert pictures(path, tmp_path) == path
    assert NOISE_IMAGES >= 1024


@pytest.mark.parametrize("family", ["vit", "resnet", "hybrid", "convnext"])
def test_the_reference_decays_what_the_engine_decays(family: str) -> None:
    recipe = Recipe()
    spec = BackboneSpec(family=family, weights="none")
    backbone = build(spec, num_classes=10, height=32, width=32)
    names = {id(p): name for name, p in backbone.module.named_parameters()}

    def by_decay(groups: list[dict[str, Any]]) -> set[tuple[float, str]]:
        return {(group["weight_decay"], names[id(p)]) for group in groups for p in group["params"]}

    assert by_decay(reference.groups(backbone.module)) == by_decay(
        backbone.parameter_groups(recipe)
    )


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_the_reference_has_the_rates_of_the_default_recipe(epochs: int) -> None:
    recipe = Recipe()
    for number in range(7 * epochs):
        ours = reference.PEAK * reference.rate(number, 7, epochs)
        assert ours == pytest.approx(rate_at((number + 1) / 7, recipe, epochs))
    same = (recipe.weight_decay, recipe.batch_size_per_worker, recipe.clip_grad_norm)
    assert same == (reference.DECAY, reference.BATCH, 1.0)
    plain = (recipe.optimizer, recipe.momentum, recipe.augment, recipe.flip, recipe.precision)
    assert plain == ("adamw", 0.9, "light", True, "fp32")
    unused = (recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.drop_path)
    assert not any((*unused, recipe.random_erasing, recipe.ema_decay))


def test_engine_and_reference_learn_from_the_same_pictures(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data = DataSpec(
        source=str(noise(tmp_path / "noise.parquet", images=200)),
        train_limit=128,
        folder=str(tmp_path),
    )
    for code in ("engine", "reference"):
        run = learning.Run(family="vit", code=code, seed=0, epochs=1, data=data)
        found = learning.train(run)
        assert (found["family"], found["code"], found["seed"]) == ("vit", code, 0)
        assert 0 <= found["top1"] <= 1
        assert found["seconds"] > 0


@pytest.mark.parametrize(
    ("engine", "plain", "no_worse"),
    [
        ([0.50, 0.51, 0.52], [0.50, 0.51, 0.52], True),
        ([0.49, 0.50, 0.51], [0.50, 0.51, 0.52], True),  # a point lower, as seeds differ
        ([0.490, 0.491, 0.492], [0.503, 0.504, 0.505], False),  # little lower, but surely so
        ([0.40, 0.49, 0.55], [0.50, 0.51, 0.52], False),  # noise excuses 1.5 points at most
    ],
)
def test_no_worse_is_within_noise_and_within_a_loss_that_matters(
    engine: list[float], plain: list[float], no_worse: bool
) -> None:
    results = [
        {"code": code, "top1": top1, "seconds": 1.0}
        for code, scores in (("engine", engine), ("reference", plain))
        for top1 in scores
    ]
    found = learning.judge(results)
    assert found["no_worse"] is no_worse
    low, high = found["interval"]
    assert low < found["difference"] < high


def test_asha_is_within_the_interval_or_is_not() -> None:
    def row(full: float, found: float) -> dict[str, dict[str, float]]:
        return {
            "none": {"epochs": 100, "truth": full},
            "possible": {"epochs": 0, "truth": 0.95},
            **{kind: {"epochs": 20, "truth": found} for kind in asha.KINDS},
        }

    same = asha.judge([row(0.90, 0.90), row(0.92, 0.92)])
    assert same["asha"]["within_interval"]
    assert same["asha"]["fraction"]["mean"] == pytest.approx(0.2)
    worse = asha.judge([row(0.900, 0.890), row(0.901, 0.890), row(0.902, 0.890)])
    assert not worse["asha"]["within_interval"]
    assert worse["random_search"]["true_top1"]["low"] < 0.901
    # Student's t with 2 degrees of freedom: 4.303 standard errors either way.
    assert worse["random_search"]["true_top1"]["low"] == pytest.approx(
        0.901 - 4.303 * 0.001 / 3**0.5
    )


def test_asha_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "asha.json"
    monkeypatch.setattr(sys, "argv", ["asha", "--smoke", "--out", str(out)])
    asha.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"asha_fraction", "pasha_fraction", "thresholds_met"} <= set(last)
    result = json.loads(out.read_text())
    assert result["settings"]["trials"] == asha.QUICK_TRIALS
    assert set(result["worlds"]) == set(asha.CURVES)
    assert set(last["top_k_less_asha"]) == {*result["worlds"], *result["recorded"]}


def test_top_k_goes_on_with_the_best_after_one_epoch_at_ashas_cost() -> None:
    found, _ = asha.synthetic("crossing", trials=27, seed=0)
    length = asha.MAX_EPOCHS
    kept = (found["top_k"]["epochs"] - 27) / (length - 1)
    assert kept == round(kept) >= 1
    assert abs(found["top_k"]["epochs"] - found["asha"]["epochs"]) <= length / 2
    assert found["none"]["epochs"] == 27 * length
    assert all(found[kind]["truth"] <= found["possible"]["truth"] for kind in asha.KINDS)


def test_intervals_by_other_metrics_are_held_against_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_intervals, "TRUTH_IMAGES", 2_000)
    metric_intervals._truths.cache_clear()
    names = ("macro_f1", "loss", "precision:0@0.8")
    made = metric_intervals.judge("few images", names, 3)
    assert made == metric_intervals.judge("few images", names, 3)
    for one in made.values():
        assert len(one.covered) == 2
        assert len(one.difference_covered) == 1
        assert one.said in {"better", *PairVerdict} - {PairVerdict.NOT_TESTED}
        assert (one.truth, one.right) == (0, False)
    out = tmp_path / "metric-intervals.json"
    command = ["metric_intervals", "--setting", "few images", "--repeats", "2", "--others", "1"]
    monkeypatch.setattr("sys.argv", [*command, "--out", str(out)])
    metric_intervals.main()
    written = json.loads(out.read_text())
    assert written["results"]["few images"]["macro_f1"]["coverage"]["n"] == 4
    assert {"criterion_met", "environment", "settings"} <= written.keys()
    metric_intervals._truths.cache_clear()


@pytest.mark.parametrize("name", [*metric_intervals.JUDGED, *metric_intervals.OTHERS])
def test_the_truth_is_what_many_images_have(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: one model of that skill on 40,000 images, its figure as a worker reports it."""
    rare = name.startswith("precision")  # of the smallest class alone
    monkeypatch.setattr(metric_intervals, "TRUTH_IMAGES", 32_000 if rare else 8_000)
    metric_intervals._truths.cache_clear()
    setting = metric_intervals.Setting(
        classes=4, images=40_000, ratio=2, searches=1, search_sd=1e-9, seed_sd=1e-9
    )
    rng = np.random.default_rng(0)
    labels = metric_intervals._labels(setting, rng)
    shared = rng.standard_normal((len(labels), setting.classes))
    _, finals = metric_intervals._draw_finals(setting, "a", 0.0, labels, shared, rng, tmp_path)
    names = tuple(map(str, range(4)))
    whole = metric_intervals.measured(metric_of(name), finals[0], names)
    truth = metric_intervals.truth_of(setting, name, setting.skill, 1e-9)
    assert whole == pytest.approx(truth, abs=0.025 if rare else 0.012)
    metric_intervals._truths.cache_clear()


def test_the_oracle_judges_a_whole_tournament_against_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    design = oracle.Design(searches=3, trials=4, final_seeds=1)
    one = oracle.judge("effect of 3 points", design, 0)
    assert one == oracle.judge("effect of 3 points", design, 0)
    assert {accuracy.family for accuracy in one.accuracies} == {"resnet", "vit"}
    assert one.printed["better"] == ("better than" in one.answer)
    assert sum(one.printed[key] for key in oracle.SENTENCES[:-1]) == 1
    # One search: the winners' recipes are what is compared.
    alone = oracle.judge("effect of 3 points", oracle.Design(searches=1, final_seeds=3), 0)
    assert "recipe" in alone.answer
    assert not alone.p_rivals
    out = tmp_path / "oracle.json"
    command = ["oracle", "--world", "null", "--repeats", "4", "--trials", "4", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    oracle.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    sentences = json.loads(out.read_text())["worlds"]["null"]["sentences"]
    # Two families that are the same: whatever is called better is called so wrongly.
    assert sentences["better"]["printed"] == sentences["better"]["wrong"]
    assert last["false_better_largest"] == sentences["better"]["wrong"]["share"]


def test_scale_measures_what_it_simulated() -> None:
    found = scale.measure(60)
    assert found["trials"] == 60
    assert found["events"] > found["epochs"] >= 60
    assert found["ledger_read_s"] < found["wall_s"]


def test_paces_count_the_time_in_which_every_slot_is_busy() -> None:
    records = [
        {"event": "started", "time": 0.0, "slot": "a"},
        {"event": "reported", "time": 1.0},
        {"event": "started", "time": 2.0, "slot": "b"},
        {"event": "reported", "time": 3.0},
        {"event": "reported", "time": 4.0},
        {"event": "started", "time": 6.0, "slot": "a"},
        {"event": "reported", "time": 8.0},
    ]
    found = throughput.paces(records)
    assert (found["results_per_s"], found["steady_s"]) == (0.5, 4.0)
    assert (found["results_per_s_whole"], found["results"]) == (0.5, 4)


def test_a_metric_that_mlflow_does_not_hold_is_lost(tmp_path: Path) -> None:
    ledger, database = Ledger(tmp_path / "ledger.jsonl"), tmp_path / "mlflow.db"
    ledger.append(
        "submitted", trial="t", family="vit", detail={"assignment": {"epochs": 2}, "axes": {}}
    )
    ledger.append("started", trial="t", attempt=1)
    for epoch in (1, 2):
        ledger.append("reported", trial="t", epoch=epoch, metrics={"val_top1": 0.1 * epoch})
    ledger.close()
    with sqlite3.connect(database) as store:
        store.execute("create table tags (run_uuid, key, value)")
        store.execute("create table metrics (run_uuid, key, value, timestamp, step)")
        store.execute("insert into tags values ('r', 'trial', 't')")
        store.execute("insert into metrics values ('r', 'val_top1', 0.1, 0, 1)")
        store.commit()
        assert throughput.lost(ledger.path, database) == 1
        store.execute("insert into metrics values ('r', 'val_top1', 0.2, 0, 2)")
        store.commit()
        assert throughput.lost(ledger.path, database) == 0


def test_bare_processes_replay_what_was_recorded(tmp_path: Path) -> None:
    sweep = family_sweep("vit", trials=2, max_epochs=3)
    data = replace(sweep.data, train_limit=64, folder=str(tmp_path / "stores"))
    sweep = replace(sweep, data=data)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for index in (0, 1):
        detail = {"assignment": sweep.assignment(index).as_dict()}
        ledger.append("submitted", trial=sweep.trial_name(index), family="vit", detail=detail)
    for name, epochs in (("vit-0001", 1), ("vit-0000", 2)):
        ledger.append("started", trial=name, attempt=1, slot="s")
        for epoch in range(1, epochs + 1):
            ledger.append("reported", trial=name, epoch=epoch, metrics={})
        ledger.append("finished", trial=name)
    work = bare.work_of(list(read(ledger.path)))
    assert [(a.trial_id, epochs) for a, epochs in work] == [("vit-0001", 1), ("vit-0000", 2)]

    out = tmp_path / "bare.jsonl"
    bare.serve(0, ledger.path, multiprocessing.Value("i", 0), out)
    records = list(read(out))
    told = [(r["event"], r.get("trial"), r.get("epoch")) for r in records]
    assert told == [
        ("ready", None, None),
        ("started", "vit-0001", None),
        ("reported", "vit-0001", 1),
        ("started", "vit-0000", None),
        ("reported", "vit-0000", 1),
        ("reported", "vit-0000", 2),
        ("waited", None, None),
    ]
    assert records[-1]["seconds"] < 0.1
    kept = [path.name for path in tmp_path.rglob("epoch-*")]
    assert sorted(kept) == ["epoch-0001", "epoch-0002"]


# A command whose child says every 20 ms that it is at work.
TALKER = """
import subprocess, sys
child = "import sys, time\\nfor _ in range(60): print(time.time(), flush=True); time.sleep(0.02)"
subprocess.run([sys.executable, "-c", child], stdout=open(sys.argv[1], "w"), check=True)
"""


def test_two_commands_take_turns_and_each_has_its_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.3)
    sides = []
    for name in "ab":
        command = [sys.executable, "-c", TALKER, str(tmp_path / name)]
        sides.append(turns.Side(command, tmp_path, os.environ))
        if name == "a":
            sides[0].hold()
    turns.take_turns(*sides)
    said = [[float(line) for line in (tmp_path / name).read_text().split()] for name in "ab"]
    assert [len(times) for times in said] == [60, 60]
    for side, mine, others in zip(sides, said, said[::-1], strict=True):
        meanwhile = [at for at in others if mine[0] < at < mine[-1]]
        assert meanwhile
        # While the other talks, this one's clock stands still.
        assert all(side.own(at + 1e-3) == pytest.approx(side.own(at), abs=1e-5) for at in meanwhile)
        own = side.own(mine[-1]) - side.own(mine[0])
        assert 0 < own < mine[-1] - mine[0] - turns.TURN_S
    broken = turns.Side([sys.executable, "-c", "1 / 0"], tmp_path, os.environ)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        broken.wait()
    waiting = turns.Side(
        [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path, os.environ
    )
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        turns.take_turns(broken, waiting)
    with pytest.raises(RuntimeError):
        waiting.wait()


def test_times_say_where_a_sweep_spends_its_time() -> None:
    def report(at: float, trial: str, epoch: int, seconds: float, **detail: Any) -> dict[str, Any]:
        metrics = {f"{purpose}_seconds": 0.0 for purpose in sweep_benchmark.PURPOSES}
        metrics["train_seconds"] = seconds
        fields = {"trial": trial, "epoch": epoch, "metrics": metrics, "detail": detail}
        return {"time": at, "event": "reported", **fields}

    def started(at: float, trial: str, slot: str, waited_s: float) -> dict[str, Any]:
        fields = {"trial": trial, "slot": slot, "waited_s": waited_s}
        return {"time": at, "event": "started", **fields}

    records = [
        {"time": 0.0, "event": "spawned"},
        started(20.0, "a", "s-0", 5.0),
        started(21.0, "b", "s-1", 1.0),
        report(30.0, "a", 1, 8.0, first_step_at=22.0),
        report(40.0, "a", 2, 9.5),
        started(40.5, "c", "s-0", 0.1),
        report(50.0, "b", 1, 20.0, first_step_at=30.0),
        report(60.0, "c", 1, 19.0, first_step_at=40.75),
        {"time": 70.0, "event": "exited"},
    ]
    records = [{"wall": record["time"], **record} for record in records]
    found = sweep_benchmark.times(records)
    assert (found["from_ready_s"], found["from_command_s"]) == (45.0, 60.0)
    assert (found["slot_ready_s"], found["cold_start_s"]) == (15.0, 22.0)
    assert found["warm_start_s"] == [0.25]
    assert found["epoch_gap_s"] == [0.5]
    assert found["handover_s"] == [0.5]
    assert (found["tail_s"], found["training_s"]) == (10.0, 56.5)
    assert (found["epochs"], found["trials"]) == (4, 3)


def test_a_gpus_ways_are_valid_recipes_and_compiled_ones_have_a_plain_one_beside() -> None:
    ways = execution.WAYS["cuda"]
    for name, way in ways.items():
        assert replace(Recipe(), **way).mistakes() == []
        assert way["compile"] == name.endswith("_compiled")
        assert name.removesuffix("_compiled") in ways


def of_level(level: str, of: str, seed: int, top1: float) -> dict[str, Any]:
    run = levels.Run(level=level, augment_set=of, seed=seed, epochs=1, images=8, data="x.parquet")
    return {**asdict(run), "top1": top1, "train_loss": 1.0, "seconds": 2.0}


def test_levels_are_compared_by_pairs_of_seeds() -> None:
    old, new = (0.30, 0.34, 0.31), (0.33, 0.36, 0.35)
    results = [
        of_level("heavy", of, seed, top1)
        for of, values in (("geometric", old), ("published", new))
        for seed, top1 in enumerate(values)
    ]
    results.append(of_level("heavy", "published", 3, 0.9))  # its partner is missing
    found = levels.difference(results, "heavy")
    assert found is not None
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(0.03)
    expected = stats.ttest_rel(new, old).confidence_interval(0.95)
    assert found["interval"] == pytest.approx([expected.low, expected.high])
    assert levels.difference(results, "medium") is None


def test_what_is_on_record_is_not_trained_again(tmp_path: Path) -> None:
    wanted = levels.runs(seeds=2, epochs=1, images=8, data="x.parquet")
    assert len(wanted) == 2 * len(levels.arms()) == 8
    assert [(run.level, run.seed) for run in wanted[:4]] == [("heavy", n) for n in (0, 0, 1, 1)]
    assert levels.on_record(tmp_path / "none.jsonl", wanted) == {}
    file = tmp_path / "runs.jsonl"
    other = {**of_level("heavy", "published", 1, 0.4), "epochs": 9}
    lines = [of_level("heavy", "published", 1, 0.5), other, of_level("medium", "published", 0, 0.2)]
    text = "\n".join(map(json.dumps, lines))
    file.write_text(text + '\n{"level": "medium", "augm')  # cut short by a crash
    done = levels.on_record(file, wanted)
    assert {(run.level, run.seed): r["top1"] for run, r in done.items()} == {
        ("heavy", 1): 0.5,
        ("medium", 0): 0.2,
    }


def test_a_level_is_trained_from_scratch(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    source = str(noise(tmp_path / "noise.parquet", images=200))
    data = DataSpec(source=source, train_limit=128, folder=str(tmp_path))
    run = levels.Run(
        level="heavy", augment_set="published", seed=0, epochs=1, images=128, data="noise.parquet"
    )
    found = levels.train(run, data)
    assert 0 <= found["top1"] <= 1
    assert found["train_loss"] > 0


def test_all_who_augment_give_batches_of_the_same_kind() -> None:
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    for name, augmented in augment.ways_of(32).items():
        batch = augmented(images)
        assert batch.shape == (3, 3, 32, 32), name
        assert batch.dtype == torch.float32
        assert batch.isfinite().all()


def test_imbalance_cuts_unequal_classes_and_takes_each_metrics_winner(tmp_path: Path) -> None:
    table = pq.read_table(noise(tmp_path / "noise.parquet", images=400))
    counts = {"train": (20, 3), "val": (6, 1), "test": (8, 2)}
    made = imbalance.unequal(table, counts, tmp_path / "cut", 0)
    seen: list[bytes] = []
    for split, (common, rare) in counts.items():
        part = pq.read_table(made / f"{split}.parquet")
        labels = np.bincount(part.column("label").to_numpy(), minlength=10)
        assert labels.tolist() == [common] * 5 + [rare] * 5
        seen += [row["bytes"] for row in part.column("image").to_pylist()]
    assert len(set(seen)) == len(seen)
    rows = [
        {"seed": seed, "top1": top1, "macro_f1": f1}
        for seed, top1, f1 in ((0, 0.9, 0.3), (0, 0.8, 0.5), (1, 0.7, 0.6), (1, 0.6, 0.4))
    ]
    winners = [(w["seed"], w["by"], w["top1"]) for w in imbalance.winners_of(rows)]
    assert winners == [
        (0, "top1", 0.9), (0, "macro_f1", 0.8), (1, "top1", 0.7), (1, "macro_f1", 0.7)
    ]  # fmt: skip
