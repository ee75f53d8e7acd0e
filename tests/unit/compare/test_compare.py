"""The compare JSON and the terminal table, against what the ledger says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import report_html
from orchestrator.compare.runs import load
from orchestrator.compare.table import _columns
from tests.unit.compare.compare_runs import DATASET, RunFolder, compared, search_run, shown
from trainables.errors import UserError

FAMILY_KEYS = {
    "family", "backbone", "trials", "finished", "pruned", "failed", "epochs", "images_seen",
    "device_seconds", "flops", "best_val_top1", "best_recipe", "convergence", "final",
}  # fmt: skip


def by_family(comparison: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["family"]: entry for entry in comparison["families"]}


def test_json_has_the_agreed_keys_and_no_nan(tmp_path: Path) -> None:
    made = compared(search_run(tmp_path / "demo"))
    assert made["schema"] == 1
    assert {"dataset", "test_opened_at", "families", "pairs", "budget", "audit"} <= made.keys()
    assert (made["dataset"], made["test_opened_at"], made["audit"]) == ("digits", None, None)
    assert made["pairs"] == []
    assert [entry["family"] for entry in made["families"]] == ["resnet", "vit", "hybrid"]
    assert all(entry.keys() >= FAMILY_KEYS and entry["final"] is None for entry in made["families"])
    assert made["budget"]["ranking"].keys() == {"trials", "device_seconds", "flops"}


def test_numbers_are_the_ledgers(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "demo", trials=5)
    made = by_family(compared(folder))
    records = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    for family, entry in made.items():
        mine = [r for r in records if r.get("trial", "").startswith(family)]
        reports = [r for r in mine if r["event"] == "reported"]
        finished = {r["trial"] for r in mine if r["event"] == "finished"}
        best = max((r for r in reports if r["trial"] in finished),
                   key=lambda r: r["metrics"]["val_top1"])  # fmt: skip
        submitted = next(
            r for r in mine if r["event"] == "submitted" and r["trial"] == best["trial"]
        )
        for status in ("finished", "pruned", "failed"):
            assert entry[status] == sum(r["event"] == status for r in mine)
        assert entry["trials"] == 5
        assert entry["epochs"] == len(reports)
        assert entry["images_seen"] == 100 * len(reports)
        assert entry["device_seconds"] == pytest.approx(
            sum(r["metrics"]["train_seconds"] + r["metrics"]["eval_seconds"] for r in reports)
        )
        last = {r["trial"]: r["metrics"]["flops"] for r in reports}
        assert entry["flops"] == sum(last.values())
        assert entry["best_val_top1"] == best["metrics"]["val_top1"]
        assert entry["best_epoch"] == best["epoch"]
        assert entry["best_recipe"] == submitted["detail"]["assignment"]["recipe"]
        assert entry["device"] == "cpu"


def test_device_seconds_count_every_worker(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "two", ("vit",))
    run.trial("vit", [0.5, 0.6], seconds=10.0, workers=2)
    assert by_family(compared(run.close()))["vit"]["device_seconds"] == pytest.approx(44.0)


def test_device_seconds_keep_their_former_name_only_on_gpus(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.5, 0.6])
    comparison = compare([load(run.close())])
    assert "gpu_seconds" not in by_family(comparison.as_dict())["vit"]

    on_gpus = [replace(family, device="cuda") for family in comparison.families]
    plain = replace(comparison, families=tuple(on_gpus)).as_dict()
    vit = by_family(plain)["vit"]
    assert vit["gpu_seconds"] == vit["device_seconds"]
    assert plain["budget"]["ranking"]["gpu_seconds"] == ["vit"]


def test_a_pruned_trial_is_never_ranked_beside_finished_ones(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.trial("vit", [0.99], end="pruned", learning_rate=0.003)
    run.trial("vit", [0.5, 0.6], learning_rate=0.001)
    run.trial("resnet", [0.98, 0.97], end="failed")
    run.trial("resnet", [0.6, 0.7])
    made = compared(run.close())
    entries = by_family(made)
    assert entries["vit"]["best_val_top1"] == 0.6
    assert entries["resnet"]["best_val_top1"] == 0.7
    for unit in ("trials", "device_seconds", "flops"):
        assert not {0.99, 0.98} & set(made["budget"]["best_val_top1"][unit].values())
    assert "99.0" not in shown(run.folder)
    assert "98.0" not in shown(run.folder)


def test_convergence_by_hand(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.2, 0.5, 0.74, 0.8], seconds=10.0)
    found = by_family(compared(run.close()))["vit"]["convergence"]
    assert (found["share"], found["epochs"], found["images"]) == (0.9, 3, 300)
    assert found["seconds"] == pytest.approx(33.0)
    assert found["auc"] == pytest.approx((0.35 + 0.62 + 0.77) / 3)
    assert [(m["share"], m["epochs"]) for m in found["to_share"]] == [
        (0.5, 2), (0.75, 3), (0.9, 3), (0.95, 4),
    ]  # fmt: skip


def test_budgets_by_hand(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.trial("vit", [0.3, 0.5], seconds=1.0, flops=9e9)
    run.trial("vit", [0.4, 0.9], seconds=1.0, flops=9e9)
    run.trial("vit", [0.1], end="failed", seconds=1.0, flops=9e9)
    run.trial("resnet", [0.6, 0.7], seconds=50.0, flops=1e9)
    run.trial("resnet", [0.2, 0.5], seconds=50.0, flops=1e9)
    made = compared(run.close())["budget"]
    assert made["at"]["trials"] == 2
    assert made["at"]["device_seconds"] == pytest.approx(5.5)
    assert made["at"]["flops"] == pytest.approx(4e9)
    # Of vit's 0.5, 0.9 and a failure, two are drawn.
    assert made["best_val_top1"]["trials"] == pytest.approx({"resnet": 0.7, "vit": 2.3 / 3})
    assert made["ranking"]["trials"] == ["vit", "resnet"]
    # 5.5 device seconds pay for none of resnet's trials, 4 GFLOPs for none of vit's.
    assert made["ranking"]["device_seconds"] == ["vit"]
    assert made["unranked"]["device_seconds"] == ["resnet"]
    assert made["ranking"]["flops"] == ["resnet"]
    assert (made["equal_in"], made["flips"]) == (None, False)


def test_a_budget_between_two_trials_lies_between_their_values(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.trial("vit", [0.6], seconds=3.0)
    run.trial("resnet", [0.4], seconds=2.0)
    run.trial("resnet", [0.8], seconds=2.0)
    made = compared(run.close())["budget"]
    assert made["best_val_top1"]["device_seconds"]["resnet"] == pytest.approx((0.6 + 0.8) / 2)
    assert made["low"]["device_seconds"]["resnet"] < 0.7 < made["high"]["device_seconds"]["resnet"]


def test_an_audited_trial_counts_only_as_the_search_saw_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    trial = run.trial("vit", [0.3, 0.4, 0.95], end=None)
    run.ledger.append("audited", trial=trial, rung=2, epoch=2)
    run.ledger.append("finished", trial=trial)
    run.trial("vit", [0.5, 0.6, 0.7])
    entry = by_family(compared(run.close()))["vit"]
    assert (entry["finished"], entry["pruned"], entry["epochs"]) == (1, 1, 5)
    assert entry["best_val_top1"] == 0.7


def test_not_a_number_is_missing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.4, math.nan, 0.6])
    run.trial("vit", [math.nan, math.inf], end="failed")
    run.trial("vit", [None, None])
    made = compared(run.close())
    entry = by_family(made)["vit"]
    assert (entry["best_val_top1"], entry["finished"], entry["failed"]) == (0.6, 2, 1)
    json.dumps(made, allow_nan=False)


def test_a_missing_cost_is_missing_not_smaller(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.trial("vit", [0.5], flops=math.nan)
    run.trial("vit", [0.6])
    run.trial("resnet", [0.6])
    made = compared(run.close())
    assert by_family(made)["vit"]["flops"] is None
    assert made["budget"]["unranked"]["flops"] == ["vit"]
    assert "missing" in shown(run.folder)


def unfinished_runs(folder: Path) -> dict[str, Path]:
    empty = RunFolder(folder / "empty")
    failed = RunFolder(folder / "failed")
    failed.trial("vit", [], end="failed", reason="out of memory: <64 images> & more")
    failed.trial("resnet", [0.1], end="failed")
    going = RunFolder(folder / "going")
    going.trial("vit", [0.2, 0.4], end=None)
    going.submit("vit")
    pruned = RunFolder(folder / "pruned")
    pruned.trial("vit", [0.2], end="pruned")
    stopped = RunFolder(folder / "stopped")
    stopped.trial("vit", [0.2], end=None)
    return {
        "empty": empty.close(None), "failed": failed.close(), "going": going.close(None),
        "pruned": pruned.close(), "stopped": stopped.close("stopped"),
    }  # fmt: skip


def test_runs_with_nothing_finished_still_print(tmp_path: Path) -> None:
    status = {}
    for name, folder in unfinished_runs(tmp_path).items():
        made = compared(folder)
        status[name] = made["runs"][0]["status"]
        text = shown(folder)
        assert "nothing can be ranked" in " ".join(text.split())
        assert "missing" in text
        assert all(entry["best_val_top1"] is None for entry in made["families"])
    assert status == {
        "empty": "empty", "failed": "failed", "going": "interrupted", "pruned": "done",
        "stopped": "stopped",
    }  # fmt: skip


def test_a_running_familys_best_is_labelled_with_its_state(tmp_path: Path) -> None:
    folder = unfinished_runs(tmp_path)["going"]
    entry = by_family(compared(folder))["vit"]
    assert entry["best_unfinished"] == {
        "trial": "vit-0000", "status": "running", "value": 0.4, "val_top1": 0.4, "epoch": 2,
    }  # fmt: skip
    assert (entry["unfinished"], entry["without_report"]) == (2, 1)
    # The run was interrupted: nothing of it runs.
    assert "vit-0000 (has not ended) reached 40.0 %" in shown(folder)


def test_the_headline_names_a_candidate_without_a_finished_trial(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("resnet", "vit", "hybrid"))
    run.trial("resnet", [0.5, 0.6])
    run.trial("hybrid", [0.5, 0.7])
    run.trial("vit", [0.9], end=None)
    text = " ".join(shown(run.close(None)).split())
    assert "hybrid 70.0 %, resnet 60.0 %; no trial has finished of vit." in text


def test_failures_are_grouped_by_reason(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    for _ in range(3):
        run.trial("vit", [0.1, 0.1], end="failed", reason="diverged: loss is nan at epoch 3")
    assert compared(run.close())["failures"] == [
        {"family": "vit", "reason": "diverged: loss is nan at epoch 3", "trials": 3,
         "first_trial": "vit-0000", "epochs": 6}
    ]  # fmt: skip


def test_what_differed_is_told_apart_from_what_did_not(tmp_path: Path) -> None:
    rows = {row["what"]: row for row in compared(search_run(tmp_path / "demo"))["differences"]}
    assert rows["stem"] == {
        "what": "stem", "values": {"resnet": "small", "vit": None, "hybrid": None},
        "same": False,
    }  # fmt: skip
    assert rows["tokens"]["same"]
    assert rows["optimizer"]["values"] == dict.fromkeys(("resnet", "vit", "hybrid"), "adamw")


def test_the_same_family_of_two_runs_carries_the_runs_name(tmp_path: Path) -> None:
    first = search_run(tmp_path / "first", ("vit", "resnet"))
    second = search_run(tmp_path / "second", ("vit",), seed=1)
    made = compared(first, second)
    assert [entry["family"] for entry in made["families"]] == [
        "vit (first)", "resnet", "vit (second)",
    ]  # fmt: skip
    alone = by_family(compared(second))["vit"]
    assert by_family(made)["vit (second)"] == {**alone, "family": "vit (second)"}


def test_two_runs_of_one_name_stay_apart(tmp_path: Path) -> None:
    made = compared(
        search_run(tmp_path / "a" / "demo", ("vit",)), search_run(tmp_path / "b" / "demo", ("vit",))
    )
    assert len({entry["family"] for entry in made["families"]}) == 2


def test_runs_on_different_images_are_refused(tmp_path: Path) -> None:
    digits = RunFolder(tmp_path / "one", ("vit",)).close()
    other = {**DATASET, "name": "cifar10", "content_hash": "beef"}
    cifar = RunFolder(tmp_path / "two", ("vit",), dataset=other).close()
    with pytest.raises(UserError, match=r"digits c0ffee00 \(run one\), cifar10 beef \(run two\)"):
        compared(digits, cifar)


def test_a_folder_without_a_readable_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has none.*Fix"):
        load(tmp_path / "nowhere")
    folder = search_run(tmp_path / "torn")
    path = folder / "ledger.jsonl"
    path.write_text(path.read_text().replace('{"time"', '{"ti', 3))
    with pytest.raises(UserError, match=r"line 1, is damaged.*Fix: .*--repair") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="at least one run"):
        compare([])


def test_the_table_fits_80_columns(tmp_path: Path) -> None:
    families = ("resnet", "vit", "timm:a_model_of_a_very_long_name.with_pretraining")
    run = RunFolder(tmp_path / "a-run-of-a-long-name", families)
    for family in families:
        run.trial(family, [0.5], seconds=1e5, flops=1e18, learning_rate=1e-4, weight_decay=0.15)
        run.trial(family, [0.5], end=None)
        run.trial(family, [0.5], end="failed", reason="out of memory: " + "batch of 512 " * 20)
    text = shown(run.close(None))
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_the_answer_claims_no_more_than_the_search_did(tmp_path: Path) -> None:
    answer = compared(search_run(tmp_path / "demo"))["answer"]
    assert "hybrid has the best finished trial" in answer
    for honest in ("val only", "no finals", "test was never opened", "not a verdict"):
        assert honest in answer


def test_one_family_is_not_said_to_lead(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.trial("vit", [0.5])
    answer = compared(run.close())["answer"]
    assert answer.startswith("On digits, the best finished of 1 vit trials has a validation")


def test_equal_bests_tie(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.trial("vit", [0.5])
    run.trial("resnet", [0.5])
    made = compared(run.close())
    assert "resnet and vit tie" in made["answer"]
    assert made["budget"]["flips"] is False


def test_notes_are_passed_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    run.ledger.append("noted", reason="3 corrupt images were left out")
    made = compared(run.close())
    assert made["notes"] == ["3 corrupt images were left out"]
    assert "3 corrupt images" in shown(run.folder)


def test_best_trial_of_equals_is_the_earlier(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", ("vit",))
    values = np.linspace(0.1, 0.5, 3).tolist()
    run.trial("vit", values)
    run.trial("vit", values)
    assert by_family(compared(run.close()))["vit"]["best_trial"] == "vit-0000"


def test_a_leak_between_the_splits_is_in_the_answer_and_its_images_are_named(
    tmp_path: Path,
) -> None:
    copies = [
        {"split": split, "row": 3, "label": "7", "place": f"{split}/7/x.png"}
        for split in ("train", "test")
    ]
    leaky = {
        "groups": 1, "images": 2, "mislabelled": 0, "within": {},
        "between": {"test/train": 1, "val/train": 0}, "near": {"test/train": 4},
        "examples": [{"images": 2, "copies": copies}],
    }  # fmt: skip
    run = RunFolder(tmp_path / "run", ("vit",), dataset={**DATASET, "duplicates": leaky})
    run.final("vit", np.ones(9, bool), seed=0)
    folder = run.close()
    made = compared(folder)
    assert "1 of the test images are in train too" in made["answer"]
    assert "1 of test in train" in made["data_warnings"][0]
    assert made["dataset_info"]["duplicates"]["examples"][0]["copies"] == copies
    assert "share images" in shown(folder)
    page = report_html(compare([load(folder)]))
    assert "train/7/x.png (train, 7) = test/7/x.png (test, 7)" in page
    assert "4 of test like one of train" in page


def test_names_are_cut_off_only_where_they_stay_apart() -> None:
    long, numbers = "tf_efficientnet_lite", ["0" * 9] * 6
    (alone,) = _columns([[long + "0", *numbers]]).splitlines()
    assert len(alone) == 80
    both = _columns([[long + "0", *numbers], [long + "1", *numbers]])
    assert [line.split()[0] for line in both.splitlines()] == [long + "0", long + "1"]
