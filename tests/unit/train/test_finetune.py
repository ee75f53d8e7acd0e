"""The generator of epochs: reports, axes, freezing, failures, resume to the bit."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.train.engine_store import assignment, small_store
from trainables.backbones import model
from trainables.config import Assignment, EpochReport
from trainables.errors import Diverged, OutOfMemory, Preempted, UserError
from trainables.evaluate.model import evaluate_split
from trainables.finetune import fine_tune
from trainables.storage.trial_files import STATE_FILE
from trainables.train import checkpoint
from trainables.train.learner import Batch
from trainables.train.loop import World
from trainables.train.trial import Trial

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("vit", "resnet", "hybrid", "convnext")
SECONDS = ("train_seconds", "eval_seconds", "checkpoint_seconds", "data_seconds")
EVERYTHING: dict[str, Any] = {
    "augment": "heavy",
    "mixup": 0.2,
    "cutmix": 1.0,
    "drop_path": 0.2,
    "ema_decay": 0.9,
    "label_smoothing": 0.1,
    "layer_decay": 0.8,
    "head_lr_multiplier": 3.0,
    "accumulation_steps": 2,
}


def run(wanted: Assignment, **store: Any) -> list[EpochReport]:
    return list(fine_tune(wanted, store=small_store(**store)))


def timeless(report: EpochReport) -> dict[str, float]:
    return {
        name: value
        for name, value in report.metrics.items()
        if name not in (*SECONDS, "images_per_second")
    }


def weights(report: EpochReport, name: str = "model") -> dict[str, Tensor]:
    assert report.checkpoint is not None
    return checkpoint.read_tensors(Path(report.checkpoint), name)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(value.equal(theirs[name]) for name, value in ours.items())


# --- reports ----------------------------------------------------------------------------------


def test_reports_carry_the_agreed_names(tmp_path: Path) -> None:
    reports = run(assignment("vit", checkpoint_folder=tmp_path))
    assert [report.epoch for report in reports] == [1, 2]
    for number, report in enumerate(reports, 1):
        metrics = report.metrics
        assert metrics.keys() == {
            *("epoch", "val_top1", "val_top5", "val_loss", "train_loss", "lr", "images_seen"),
            *("val_macro_f1", "val_balanced_accuracy", "val_auroc"),
            *("images_per_second", "flops", *SECONDS),
        }
        assert metrics["epoch"] == number
        assert metrics["images_seen"] == 96 * number
        assert all(metrics[name] > 0 for name in ("flops", "train_seconds", "eval_seconds"))
        assert 0 <= metrics["val_top1"] <= metrics["val_top5"] <= 1
        json.dumps(report.detail)
    facts = reports[0].detail
    assert facts["model"] == "test_vit"
    assert facts["tokens"] == 16
    assert facts["params_m"] == pytest.approx(0.254, abs=0.01)
    assert (facts["num_workers"], facts["device"], facts["precision"]) == (1, "cpu", "fp32")
    assert facts["steps_per_epoch"] == 6
    per_epoch = reports[1].metrics["flops"] - reports[0].metrics["flops"]
    forward = facts["gflops_per_image"] * 1e9
    assert 96 * 2.8 * forward + 50 * forward < per_epoch < 96 * 3.1 * forward + 50 * forward
    assert reports[1].detail == {}
    assert reports[1].metrics["lr"] == pytest.approx(1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(family: str) -> None:
    axes: dict[str, Any] = {"learning_rate": 3e-3, "augment": "none", "batch_size_per_worker": 8}
    reports = run(assignment(family, epochs=4, **axes))
    assert reports[-1].metrics["val_top1"] > 0.5  # chance is 0.17
    assert reports[-1].metrics["train_loss"] < reports[0].metrics["train_loss"]


def test_the_purposes_add_up_to_the_wall_time(tmp_path: Path) -> None:
    wanted = assignment("resnet", epochs=6, checkpoint_folder=tmp_path)
    epochs = fine_tune(wanted, store=small_store(train=800, val=200))
    next(epochs)  # builds the trial
    for _ in range(5):
        started = time.perf_counter()
        report = next(epochs)
        wall = time.perf_counter() - started
        # Both sides of one run: a slower machine stretches them alike.
        assert sum(report.metrics[name] for name in SECONDS) == pytest.approx(wall, rel=0.03)


def test_checkpoints_come_when_due(tmp_path: Path) -> None:
    from dataclasses import replace

    wanted = replace(
        assignment("resnet", epochs=5, checkpoint_folder=tmp_path),
        checkpoint_every_epochs=2,
    )
    written = [report.checkpoint is not None for report in run(wanted)]
    assert written == [False, True, False, True, True]
    assert run(assignment("resnet", epochs=1))[0].checkpoint is None


def test_close_ends_it() -> None:
    reports = fine_tune(assignment("vit"), store=small_store())
    next(reports)
    reports.close()  # type: ignore[attr-defined]
    assert list(reports) == []


def test_a_share_of_the_data_is_what_is_trained_on() -> None:
    wanted = assignment("resnet", epochs=1, data={"fraction": 0.5})
    report = run(wanted)[0]
    assert report.detail["train_images"] == 48
    assert report.metrics["images_seen"] == 48


def test_mistakes_come_before_any_work() -> None:
    with pytest.raises(UserError, match="learning_rate"):
        run(assignment("vit", learning_rate=-1.0))
    with pytest.raises(UserError, match=r"backbone\.patch"):
        run(assignment("vit", backbone={"patch": 5}))


# --- resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "axes"),
    [
        ("vit", EVERYTHING),
        ("resnet", {"optimizer": "sgd", "learning_rate": 0.05, "ema_decay": 0.9}),
        ("hybrid", {"optimizer": "lion", "learning_rate": 1e-4, "channels_last": True}),
        ("resnet", {"freeze": "head_then_full", "drop_path": 0.1, "optimizer": "sgd"}),
        ("resnet", {**EVERYTHING, "sampler": "balanced"}),
    ],
)
def test_resume_is_exact_to_the_bit(family: str, axes: dict[str, Any], tmp_path: Path) -> None:
    def made(folder: str, **fields: Any) -> Assignment:
        return assignment(family, epochs=3, checkpoint_folder=tmp_path / folder, **axes, **fields)

    whole = run(made("whole"))
    for done in (1, 2):
        rest = run(made(f"rest-{done}", checkpoint=whole[done - 1].checkpoint))
        assert [timeless(r) for r in rest] == [timeless(r) for r in whole[done:]]
        for name in ("model", "optimizer", "ema"):
            assert same(weights(rest[-1], name), weights(whole[-1], name))


def stop_after(calls: int) -> Callable[[], bool]:
    """True from the given call on, as a preemption notice that arrives then."""
    left = calls

    def should_stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    return should_stop


@pytest.mark.parametrize(
    ("calls", "axes"),
    [
        *((calls, {}) for calls in (0, 1, 4, 6, 9)),
        (9, {"class_weights": "balanced"}),
        (9, {"sampler": "balanced"}),
    ],
)
def test_a_preempted_epoch_goes_on_from_its_step(
    calls: int, axes: dict[str, Any], tmp_path: Path
) -> None:
    def made(folder: str, **fields: Any) -> Assignment:
        folder_path = tmp_path / folder
        return assignment("resnet", checkpoint_folder=folder_path, **EVERYTHING, **axes, **fields)

    whole = run(made("whole"))
    reports = fine_tune(made("cut"), store=small_store(), should_stop=stop_after(calls))
    before = list(itertools.islice(reports, calls // 7))
    with pytest.raises(Preempted) as notice:
        next(reports)
    folder = notice.value.checkpoint
    assert folder is not None
    progress = checkpoint.read_state(Path(folder))["progress"]
    # asked before each of 6 steps and at the end of the epoch: no finished step is lost
    assert (progress["epoch"], progress["images"]) == (calls // 7, calls % 7 * 16)
    rest = run(made("rest", checkpoint=folder))
    both = [timeless(report) for report in (*before, *rest)]
    assert both == [timeless(report) for report in whole]
    for name in ("model", "optimizer", "ema"):
        assert same(weights(rest[-1], name), weights(whole[-1], name))
    assert rest[0].metrics["train_seconds"] > 0


def test_a_checkpoint_of_before_goes_on_with_its_own_levels(tmp_path: Path) -> None:
    """It does not name their set: there was one."""
    axes: dict[str, Any] = {"augment": "heavy", "augment_set": "geometric"}
    whole = run(assignment("vit", checkpoint_folder=tmp_path / "whole", **axes))
    file = Path(str(whole[0].checkpoint)) / STATE_FILE
    state = json.loads(file.read_text())
    del state["identity"]["recipe.augment_set"], state["digests"]
    file.write_text(json.dumps(state))
    again = {"checkpoint": whole[0].checkpoint, "checkpoint_folder": tmp_path / "rest"}
    rest = run(assignment("vit", **again, **axes))
    assert same(weights(rest[-1]), weights(whole[-1]))
    with pytest.raises(UserError, match=r"recipe\.augment_set"):
        run(assignment("vit", **again, augment="heavy"))


def test_a_checkpoint_is_resumed_by_what_wrote_it(tmp_path: Path) -> None:
    first = run(assignment("resnet", epochs=1, checkpoint_folder=tmp_path))[0]
    for change, said in (
        ({"learning_rate": 0.5}, r"recipe\.learning_rate"),
        ({"seed": 3}, "seed"),
        ({"data": {"fraction": 0.5}}, r"data\.fraction"),
    ):
        wanted = assignment("resnet", checkpoint=first.checkpoint, **change)
        with pytest.raises(UserError, match=said):
            run(wanted)
    again = run(assignment("resnet", epochs=2, checkpoint=first.checkpoint))
    assert [report.epoch for report in again] == [2]
    assert run(assignment("resnet", epochs=1, checkpoint=first.checkpoint)) == []


# --- axes -------------------------------------------------------------------------------------

STILL: dict[str, Any] = {"learning_rate": 1e-30, "epochs": 1, "augment": "none"}


@pytest.mark.parametrize(
    "axes",
    [
        {"label_smoothing": 0.2},
        {"mixup": 0.5},
        {"cutmix": 1.0},
        {"augment": "light"},
        {"augment": "medium"},
        {"augment": "heavy"},
        {"augment": "medium", "augment_set": "geometric"},
        {"augment": "heavy", "augment_set": "geometric"},
        {"random_erasing": 1.0},
        {"drop_path": 0.5},
    ],
)
def test_training_axes_change_training_alone(axes: dict[str, Any]) -> None:
    """With weights that do not move, validation is the same to the bit; the train loss is not."""
    plain = run(assignment("vit", **STILL))[0].metrics
    made = run(assignment("vit", **{**STILL, **axes}))[0].metrics
    for name in ("val_loss", "val_top1", "val_top5", "images_seen", "flops"):
        assert made[name] == plain[name]
    assert made["train_loss"] != plain["train_loss"]


@pytest.mark.parametrize(
    ("axes", "neutral"),
    [
        ({"clip_grad_norm": 1e6}, {"clip_grad_norm": None}),
        ({"layer_decay": 1.0, "warmup_epochs": 0.0}, {"warmup_epochs": 0.0}),
        ({"head_lr_multiplier": 1.0}, {}),
        ({"freeze": "head_then_full", "head_epochs": 0}, {}),
        ({"augment": "none", "flip": True}, {"augment": "none", "flip": False}),
    ],
)
def test_neutral_values_change_nothing(
    axes: dict[str, Any], neutral: dict[str, Any], tmp_path: Path
) -> None:
    reports = [
        run(assignment("vit", epochs=1, checkpoint_folder=tmp_path / name, **chosen))[0]
        for name, chosen in (("a", axes), ("b", neutral))
    ]
    assert timeless(reports[0]) == timeless(reports[1])
    assert same(weights(reports[0]), weights(reports[1]))


@pytest.mark.parametrize(
    "axes",
    [
        {"optimizer": "sgd"},
        {"optimizer": "lion"},
        {"learning_rate": 2e-3},
        {"weight_decay": 0.5},
        {"momentum": 0.5},
        {"layer_decay": 0.5},
        {"head_lr_multiplier": 5.0},
        {"warmup_epochs": 0.0},
        {"final_lr_fraction": 0.9},
        {"freeze": "head"},
        {"batch_size_per_worker": 8},
        {"clip_grad_norm": 0.01},
        {"flip": False},
        {"precision": "bf16"},
        {"class_weights": "balanced"},
        {"class_weights": "effective"},
        {"sampler": "balanced"},
    ],
)
def test_optimization_axes_change_the_weights(axes: dict[str, Any], tmp_path: Path) -> None:
    made = [
        weights(run(assignment("vit", epochs=1, checkpoint_folder=tmp_path / n, **a))[0])
        for n, a in (("plain", {}), ("changed", axes))
    ]
    assert not same(*made)


def test_the_average_is_judged_and_training_does_not_notice(tmp_path: Path) -> None:
    plain = run(assignment("resnet", checkpoint_folder=tmp_path / "a"))
    averaged = run(assignment("resnet", checkpoint_folder=tmp_path / "b", ema_decay=0.9))
    assert same(weights(plain[-1]), weights(averaged[-1]))
    assert plain[-1].metrics["train_loss"] == averaged[-1].metrics["train_loss"]
    assert plain[-1].metrics["val_loss"] != averaged[-1].metrics["val_loss"]
    assert not same(weights(averaged[-1]), weights(averaged[-1], "ema"))


@pytest.mark.parametrize("axes", [{"accumulation_steps": 4}, {"channels_last": True}])
def test_execution_axes_change_rounding_alone(axes: dict[str, Any]) -> None:
    chosen: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.02, "epochs": 1}
    plain, made = (run(assignment("vit", **chosen, **extra))[0].metrics for extra in ({}, axes))
    assert made["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)
    assert made["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-3)


def test_half_precision_computes_nearly_the_same() -> None:
    chosen: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.02, "epochs": 1}
    reports = [run(assignment("vit", precision=p, **chosen))[0] for p in ("fp32", "bf16")]
    assert reports[1].detail["precision"] == "bf16"
    losses = [report.metrics["val_loss"] for report in reports]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_signs_are_not_mirrored() -> None:
    chosen: dict[str, Any] = {"epochs": 1}
    signs = [
        timeless(run(assignment("vit", flip=flip, **chosen), mirror_safe=False)[0])
        for flip in (True, False)
    ]
    assert signs[0] == signs[1]
    assert signs[0] != timeless(run(assignment("vit", **chosen), mirror_safe=True)[0])


# --- freezing ---------------------------------------------------------------------------------


def split_head(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    heads = ("fc.", "head.weight", "head.bias", "head.fc.")
    head = {name: value for name, value in tensors.items() if name.startswith(heads)}
    return head, {name: value for name, value in tensors.items() if name not in head}


@pytest.mark.parametrize("family", FAMILIES)
def test_head_freezing_changes_no_backbone_tensor(family: str, tmp_path: Path) -> None:
    """Batch statistics included: a frozen backbone runs in evaluation mode."""
    start = run(assignment(family, checkpoint_folder=tmp_path / "0", **STILL, freeze="head"))[0]
    chosen: dict[str, Any] = {"freeze": "head", "weight_decay": 0.5, "drop_path": 0.5}
    end = run(assignment(family, checkpoint_folder=tmp_path / "1", **chosen))[-1]
    (head, rest), (head_after, rest_after) = split_head(weights(start)), split_head(weights(end))
    assert same(rest, rest_after)
    assert not same(head, head_after)
    full = run(assignment(family, epochs=1))[0].metrics["flops"]
    assert start.metrics["flops"] < 0.6 * full


def test_head_then_full_thaws_on_time(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"epochs": 3, "freeze": "head_then_full", "head_epochs": 2}
    reports = run(assignment("resnet", checkpoint_folder=tmp_path, **chosen))
    bodies = [split_head(weights(report))[1] for report in reports]
    assert same(bodies[0], bodies[1])
    changed = {name for name, value in bodies[2].items() if not value.equal(bodies[1][name])}
    assert changed == bodies[2].keys()


# --- failures ---------------------------------------------------------------------------------


def test_divergence_is_named_with_its_recipe(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 99.0, "clip_grad_norm": None}
    wanted = assignment("vit", checkpoint_folder=tmp_path, **chosen, warmup_epochs=0)
    with pytest.raises(Diverged, match=r"vit-0000, epoch \d: .*not finite.*learning_rate=99"):
        run(wanted)


def limited(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """A device with room for so many images at a time while training: the one thing that
    cannot be had on a CPU, which is killed instead."""
    real = model.build

    def build(*arguments: Any, **fields: Any) -> Any:
        backbone = real(*arguments, **fields)

        def allocate(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training and len(inputs[0]) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")

        backbone.module.register_forward_pre_hook(allocate)
        return backbone

    monkeypatch.setattr("trainables.train.trial.build", build)


def test_out_of_memory_halves_the_micro_batch_once_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen: dict[str, Any] = {"epochs": 1}
    wanted = run(assignment("vit", accumulation_steps=2, **chosen))[0]
    limited(monkeypatch, room=8)
    made = run(assignment("vit", checkpoint_folder=tmp_path, **chosen))[0]
    assert timeless(made) == timeless(wanted)  # the same global batch, step by step
    (note,) = made.detail["notes"]
    assert "micro-batches of 8" in note
    again = assignment("vit", **{**chosen, "epochs": 2}, checkpoint=made.checkpoint)
    assert "notes" not in run(again)[0].detail  # what fitted is remembered


def test_out_of_memory_twice_ends_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, room=4)
    with pytest.raises(OutOfMemory, match=r"micro-batch of 8 images.*learning_rate=0\.001"):
        run(assignment("vit"))


def test_other_errors_are_not_taken_for_memory() -> None:
    learner = Trial(assignment("vit"), World(), small_store()).learner
    with pytest.raises(RuntimeError, match="channels"):
        learner.take_step(Batch(torch.zeros(2, 4, 16, 16), torch.zeros(2, dtype=torch.int64)), 0.1)


# --- afterwards -------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [{}, {"ema_decay": 0.9}])
def test_predictions_are_the_reported_models(axes: dict[str, Any], tmp_path: Path) -> None:
    wanted = assignment("resnet", checkpoint_folder=tmp_path, **axes)
    last = run(wanted)[-1]
    assert last.checkpoint is not None
    store = small_store()
    predicted = evaluate_split(wanted, last.checkpoint, "val", store=store)
    assert predicted.shape == (50,)
    accuracy = np.mean(predicted == store.split("val").labels)
    assert accuracy == pytest.approx(last.metrics["val_top1"])
