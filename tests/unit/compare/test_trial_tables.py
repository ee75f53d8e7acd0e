"""The tables of trials and epochs, against the ledger and against the comparison."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.runs import load
from orchestrator.compare.table_files import table_of, write_table
from orchestrator.compare.trial_tables import (
    EPOCH_COLUMNS,
    TRIAL_COLUMNS,
    epoch_table,
    trial_table,
)
from orchestrator.ledger import cost
from tests.unit.compare.compare_runs import RunFolder, probes, search_run
from trainables.config import Recipe
from trainables.errors import UserError

EXAMPLES = Path(__file__).parents[3] / "examples"
TEST = {"top1": 0.5, "top5": 0.9, "loss": 1.25, "n": 200, "macro_f1": 0.4}


@pytest.mark.parametrize("name", ["cifar10-tournament", "published-to-tuned"])
def test_a_row_a_trial_and_a_row_an_epoch_that_cost_what_the_run_did(name: str) -> None:
    run = load(EXAMPLES / name)
    trials, epochs = trial_table([run]).to_pandas(), epoch_table([run]).to_pandas()
    assert list(trials) == list(TRIAL_COLUMNS)
    assert list(epochs) == list(EPOCH_COLUMNS)
    assert set(trials["trial"]) == set(run.state.trials)
    assert len(trials) == len(run.state.trials)
    assert len(epochs) == sum(len(trial.reports) for trial in run.state.trials.values())
    spent = cost.device_seconds(run.state)
    assert trials["device_seconds"].sum() == pytest.approx(spent)
    parts = [column for column in trials if column.endswith("_device_seconds")]
    assert trials[parts].to_numpy().sum() == pytest.approx(spent)
    reported = trials["device_seconds"] - trials["unreported_device_seconds"]
    assert epochs["device_seconds"].sum() == pytest.approx(reported.sum())


def test_the_table_says_what_the_comparison_says() -> None:
    run = load(EXAMPLES / "cifar10-tournament")
    trials = trial_table([run]).to_pandas()
    search, final = trials.query("stage == 'search'"), trials.query("stage == 'final'")
    for entry in compare([run], forests=False).families:
        own = search.query("candidate == @entry.family")
        assert (own["status"] == "finished").sum() == entry.finished
        assert (own["status"] == "pruned").sum() == entry.pruned
        assert own.query("status == 'finished'")["best_val_top1"].max() == entry.best_val_top1
        best = own.set_index("trial").loc[entry.best_trial]
        for name, value in (entry.best_recipe or {}).items():
            assert value is None or best[name] == value
        assert own["epochs"].sum() == entry.epochs
        assert entry.final
        tested = final.query("candidate == @entry.family")["test_top1"]
        assert tested.mean() == pytest.approx(entry.final.test_top1.mean)


def test_what_is_missing_is_null(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.4, math.nan, 0.6])
    run.trial("vit", [None], seconds=math.nan, flops=math.inf, end="failed")
    run.submit("vit")
    data = load(run.close())
    trials, epochs = trial_table([data]).to_pylist(), epoch_table([data]).to_pylist()
    assert [row["best_val_top1"] for row in trials] == [0.6, None, None]
    assert [row["status"] for row in trials] == ["finished", "failed", "queued"]
    assert [row["device_seconds"] for row in trials] == [pytest.approx(6.6), None, 0.0]
    assert [row["flops"] for row in trials] == [3e9, None, None]
    assert [row["val_top1"] for row in epochs] == [0.4, None, 0.6, None]
    assert epochs[-1]["train_seconds"] is None
    assert epochs[-1]["device_seconds"] is None
    assert not any(isinstance(v, float) and math.isnan(v) for r in trials for v in r.values())


def test_an_audited_trial_stands_as_its_search_saw_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.3, 0.4, 0.95], audited=2)
    run.trial("vit", [0.5, 0.6], end="pruned")
    data = load(run.close())
    audited, pruned = trial_table([data]).to_pylist()
    assert (audited["status"], audited["audited"], audited["epochs"]) == ("pruned", True, 2)
    assert (audited["best_val_top1"], audited["full_length_val_top1"]) == (0.4, 0.95)
    assert (pruned["audited"], pruned["full_length_val_top1"]) == (False, None)
    assert (audited["pruned_at_epoch"], pruned["pruned_at_epoch"]) == (2, 2)
    assert audited["device_seconds"] == pytest.approx(6.6)  # all three epochs were paid for
    after = [row["after_pruning"] for row in epoch_table([data]).to_pylist()]
    assert after == [False, False, True, False, False]


def test_a_final_has_its_test_and_its_speed_and_metrics_that_nobody_foresaw(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.5], stage="final", seed=7, test=TEST, probes=probes(4), winner="vit-0000")
    run.ledger.append(
        "reported", trial=run.submit("vit"), attempt=1, epoch=1, metrics={"val_auroc": 0.7}
    )
    data = load(run.close())
    final, other = trial_table([data]).to_pylist()
    assert (final["stage"], final["seed"], final["winner"]) == ("final", 7, "vit-0000")
    assert (final["test_top1"], final["test_images"], final["test_macro_f1"]) == (0.5, 200, 0.4)
    assert final["latency_ms"] == pytest.approx(probes(4)["speed"]["batch_1"]["latency_ms"])
    assert other["test_macro_f1"] is None
    assert epoch_table([data])["val_auroc"].to_pylist() == [None, 0.7]


def test_every_axis_of_a_recipe_is_a_column_with_its_value(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.submit("vit", learning_rate=0.002, ema_decay=0.9, augment="heavy")
    (row,) = trial_table([load(run.close())]).to_pylist()
    asked = Recipe(learning_rate=0.002, ema_decay=0.9, augment="heavy")
    wanted = {one.name: getattr(asked, one.name) for one in fields(Recipe)}
    assert {name: row[name] for name in wanted} == wanted


def test_several_runs_are_told_apart_by_name(tmp_path: Path) -> None:
    runs = [load(search_run(tmp_path / name, ("vit",), trials=2)) for name in ("a", "b")]
    table = trial_table(runs).to_pandas()
    assert table.groupby("run").size().to_dict() == {"a": 2, "b": 2}
    assert set(table["candidate"]) == {"vit"}
    assert not table.duplicated(["run", "trial"]).any()


def test_a_run_without_a_trial_has_the_columns(tmp_path: Path) -> None:
    data = load(RunFolder(tmp_path / "run").close())
    assert trial_table([data]).column_names == list(TRIAL_COLUMNS)
    assert epoch_table([data]).num_rows == 0


def test_parquet_keeps_types_and_descriptions_and_csv_the_values(tmp_path: Path) -> None:
    runs = [load(search_run(tmp_path / "run", ("vit", "resnet")))]
    for name in ("trials.parquet", "trials.csv", "vit-Epochs.CSV"):
        write_table(runs, tmp_path / name)
    stored = pq.read_table(tmp_path / "trials.parquet")
    assert stored.equals(trial_table(runs), check_metadata=True)
    texts = {field.name: field.metadata[b"description"].decode() for field in stored.schema}
    assert texts == {name: column.text for name, column in TRIAL_COLUMNS.items()}
    read = pd.read_csv(tmp_path / "trials.csv")
    wanted = stored.to_pandas()
    for column in ("trial", "status", "learning_rate", "best_val_top1", "device_seconds", "epochs"):
        pd.testing.assert_series_equal(read[column], wanted[column], check_dtype=False)
    assert len(pd.read_csv(tmp_path / "vit-Epochs.CSV")) == epoch_table(runs).num_rows


def test_a_file_says_by_its_name_which_table_it_is() -> None:
    assert table_of(Path("a/vit-trials.parquet")) == "trials"
    assert table_of(Path("EPOCHS.csv")) == "epochs"
    assert table_of(Path("report.html")) is None
    with pytest.raises(UserError, match=r"trials or epochs.*got 'all\.csv'.*--out trials\.csv"):
        table_of(Path("all.csv"))
