"""Whole sweeps on a local Ray: crashes, stops, several workers, a user's own images."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from orchestrator.ledger.state import State
from tests.integration.conftest import NATURAL, Shell

pytestmark = pytest.mark.ray

GONE_PATIENCE_S = 10
QUICK = ("--set", "data.train_limit=200", "--set", "recipe.batch_size_per_worker=50")


def epochs(state: State) -> int:
    return sum(len(trial.reports) for trial in state.trials.values())


def mlflow_runs(shell: Shell, sweep: str) -> list[tuple[str, str]]:
    """(trial, status) of each child run of a sweep, from MLflow's own tables."""
    with sqlite3.connect(shell.cwd / "runs" / "mlflow.db") as store:
        return store.execute(
            "select t.value, r.status from runs r join tags t on r.run_uuid = t.run_uuid "
            "join tags s on r.run_uuid = s.run_uuid "
            "where t.key = 'trial' and s.key = 'sweep' and s.value = ? order by t.value",
            (sweep,),
        ).fetchall()


def test_a_backbone_that_takes_no_step_is_refused_while_ray_starts(shell: Shell) -> None:
    """Batch normalisation over one image of one position."""
    code, _, err = shell(
        "sweep", "timm:resnet18", "--weights", "none", "--name", "x",
        "--set", "recipe.batch_size_per_worker=1", "--set", "backbone.image_size=32",
    )  # fmt: skip
    assert code == 2, err
    assert "starting Ray" in err
    assert "a backbone must take a training step before a run starts" in err.splitlines()[-1]
    assert "Fix: two images or more" in err
    assert not shell.folder("x").exists()  # the name is not used up
    assert shell.processes("raylet") == []


def test_two_workers_lose_one_and_the_trial_goes_on(shell: Shell) -> None:
    driver = shell.start(
        "sweep", "resnet", "--name", "w", "--trials", "1", "--max-epochs", "8", "--workers", "2",
        *QUICK,
    )  # fmt: skip
    shell.wait_for("w", lambda state: epochs(state) >= 2)
    workers = shell.processes("RayTrainWorker")
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    _, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, err
    trial = shell.state("w").trials["resnet-0000"]
    assert trial.status == "finished"
    assert trial.attempt == 2
    assert sorted(trial.reports) == list(range(1, 9))
    assert shell.reported_twice("w") == []
    assert trial.detail["num_workers"] == 2
    # All 180 images of the validation set, whatever the number of workers.
    assert (trial.reports[1].metrics["val_top1"] * 180) % 1 == pytest.approx(0, abs=1e-6)


def test_a_stop_in_a_long_epoch_ends_with_its_own_exit_code(shell: Shell) -> None:
    """The slot is still at work, and its thread in Ray, when the run leaves."""
    driver = shell.start(
        "sweep", "resnet", "--name", "long", "--trials", "1", "--scale", "small",
        "--weights", "none",
    )  # fmt: skip
    shell.wait_for(
        "long", lambda state: any(one.status == "running" for one in state.trials.values())
    )
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, out + err
    assert "nothing is lost" in err
    assert shell.records("long")[-1]["event"] == "stopped"
    assert epochs(shell.state("long")) == 0
    deadline = time.monotonic() + GONE_PATIENCE_S
    while shell.processes("raylet/raylet"):
        assert time.monotonic() < deadline, "its Ray stays"
        time.sleep(0.1)


def test_a_folder_of_pictures_sweeps_without_configuration_within_its_budget(shell: Shell) -> None:
    rng = np.random.default_rng(0)
    for index in range(400):
        kind = ("stripes", "noise")[index % 2]
        height, width = (int(side) for side in rng.integers(30, 90, 2))
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        if kind == "stripes":
            pixels[:] = (np.arange(width) % 8 < 4)[None, :, None] * 255
        place = shell.cwd / "pictures" / kind
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index}.{('png', 'jpg')[index % 3 == 0]}")
    asked = ("sweep", "resnet", "--dataset", "pictures", "--trials", "2", "--max-epochs", "9")
    code, _, err = shell(*asked, "--no-measure", "--budget", "cpu_hours=1")
    assert code == 0, err
    code, out, _ = shell("compare", "resnet-pictures", "--json")
    assert code == 0
    comparison = json.loads(out)
    assert comparison["dataset"] == "pictures"
    assert comparison["forecast"]["basis"] == "estimated from FLOPs"
    assert comparison["forecast"]["ratio"] > 0
    (entry,) = comparison["runs"]
    assert entry["checkpoint_bytes"] > 1e6
    _, out, _ = shell("status", "resnet-pictures", "--json")
    (seen,) = json.loads(out)["runs"]
    assert seen["budget"] == {"unit": "cpu_hours", "amount": 1.0, "spent": entry["device_hours"]}
    assert comparison["families"][0]["best_val_top1"] > 0.6


def test_a_tournament_of_timm_models_ends_with_three_candidates(shell: Shell) -> None:
    weights = shell.cwd / "first.safetensors"
    model = timm.create_model("test_vit", num_classes=10)
    save_file(model.state_dict(), weights)
    code, _, err = shell(
        "tournament", "timm:test_resnet", "timm:test_vit", f"own.one=timm:test_vit={weights}",
        "--name", "pool", "--weights", "none", "--trials", "1", "--max-epochs", "1",
        "--searches", "1", "--final-seeds", "1", "--no-measure",
        "--set", "own.one.recipe.learning_rate=0.002", "--set", "backbone.image_size=32", *QUICK,
    )  # fmt: skip
    assert code == 0, err
    labels = ["test_resnet", "test_vit", "own.one"]
    code, out, _ = shell("compare", "pool", "--json")
    assert code == 0
    comparison = json.loads(out)
    assert [
        (entry["label"], entry["family"], entry["model"], entry["weights"])
        for entry in comparison["candidates"]
    ] == [
        ("test_resnet", "timm", "test_resnet", "none"),
        ("test_vit", "timm", "test_vit", "none"),
        ("own.one", "timm", "test_vit", str(weights)),
    ]
    assert all(entry["final"]["test_top1"] for entry in comparison["families"])
    report = (shell.folder("pool") / "report.html").read_text(encoding="utf-8")
    assert all(label in report for label in labels)
    with sqlite3.connect(shell.cwd / "runs" / "mlflow.db") as store:
        tagged = store.execute(
            "select c.value, m.value, w.value, count(*) from tags c "
            "join tags m on c.run_uuid = m.run_uuid and m.key = 'model' "
            "join tags w on c.run_uuid = w.run_uuid and w.key = 'weights' "
            "where c.key = 'candidate' group by 1, 2, 3 order by 1"
        ).fetchall()
    assert tagged == [
        ("own.one", "test_vit", str(weights), 2),
        ("test_resnet", "test_resnet", "none", 2),
        ("test_vit", "test_vit", "none", 2),
    ]
    assert {name for name, _ in mlflow_runs(shell, "pool")} == {
        *(f"{label}-0000" for label in labels), *(f"{label}-final-00" for label in labels)
    }  # fmt: skip
    with sqlite3.connect(shell.cwd / "runs" / "mlflow.db") as store:
        models = store.execute("select name from logged_models order by name").fetchall()
    assert models == [("pool-own-one",), ("pool-test_resnet",), ("pool-test_vit",)]
    code, out, err = shell("export", "pool", "--to", "registry", "--candidate", "own.one")
    assert (code, out) == (0, "models:/pool@own-one\n"), err


@pytest.mark.shared
@pytest.mark.skipif(not NATURAL.exists(), reason="no natural images beside the checkout")
def test_two_families_learn_natural_images_in_two_epochs(shell: Shell) -> None:
    code, _, err = shell(
        "tournament", "vit", "resnet", "--dataset", str(NATURAL), "--name", "n", "--trials", "1",
        "--searches", "1", "--final-seeds", "0", "--max-epochs", "2",
        "--set", "data.train_limit=5000",
        "--set", "scheduler.kind=none", "--set", "recipe.learning_rate=0.002",
        "--set", "recipe.augment=none", "--set", "recipe.batch_size_per_worker=50",
        "--set", "published_first=false",  # those are recipes for hundreds of epochs
    )  # fmt: skip
    assert code == 0, err
    trials = shell.state("n").trials.values()
    for family in ("vit", "resnet"):
        best = max(trial.best()[0] or 0.0 for trial in trials if trial.family == family)
        # Ten classes: chance is 0.10, with a standard error of 0.004 over 5,000 images.
        assert best > 0.2


@pytest.mark.parametrize(
    ("arguments", "expected", "code"),
    [
        (("vit", "--workers", "64"), "64 workers ask for 64 CPU", 3),
        (("vit", "--tracking-uri", "http://127.0.0.1:9"), "127.0.0.1:9", 2),
    ],
)
def test_what_cannot_run_is_refused_with_nothing_half_written(
    shell: Shell, arguments: tuple[str, ...], expected: str, code: int
) -> None:
    found, _, err = shell("sweep", *arguments)
    assert found == code
    assert expected in err
    assert "Traceback" not in err
    assert "Fix:" in err
    assert not (shell.cwd / "runs").exists()


def test_a_ray_address_that_does_not_answer_is_refused(shell: Shell) -> None:
    shell.env["RAY_ADDRESS"] = "127.0.0.1:9"
    code, _, err = shell("sweep", "vit")
    assert code == 2
    assert "RAY_ADDRESS must name a running cluster" in err
    assert not (shell.folder("vit-digits") / "ledger.jsonl").exists()
