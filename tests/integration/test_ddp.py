"""Two gloo workers against one at the same global batch: the same trial, told by its metrics.

The workers run every scenario once, in one pair of processes; the tests read what they wrote.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from sklearn import metrics as sk
from torch.multiprocessing.spawn import spawn

from tests.unit.train.engine_store import assignment, small_store
from trainables.config import DataSpec
from trainables.data import batches
from trainables.data.build import prepare
from trainables.errors import Diverged, Preempted
from trainables.evaluate.model import evaluate_split
from trainables.finetune import fine_tune
from trainables.metrics import metric_of
from trainables.train.learner import Batch
from trainables.train.loop import World, score
from trainables.train.trial import Trial

GLOBAL_BATCH = 16
CLASS_NAMES = ("a", "b", "c", "d", "e", "f")
JUDGED = ("top1", "auroc", "recall:c", "precision:b@0.8")
VAL = 51  # odd: the shards differ in length
SCENARIOS: dict[str, dict[str, Any]] = {
    "vit": {"family": "vit", "optimizer": "sgd", "learning_rate": 0.02},
    "vit adamw": {"family": "vit"},
    "vit mixed": {
        **{"family": "vit", "optimizer": "sgd", "learning_rate": 0.02, "augment": "heavy"},
        # The published level has stochastic depth, which each worker draws for itself.
        **{
            "augment_set": "geometric",
            "mixup": 0.5,
            "cutmix": 0.5,
            "ema_decay": 0.9,
            "accumulation_steps": 2,
        },
    },
    "resnet": {"family": "resnet", "optimizer": "sgd", "learning_rate": 0.02},
    "weighted": {
        **{"family": "vit", "optimizer": "sgd", "learning_rate": 0.02, "mixup": 0.5},
        **{"class_weights": "balanced", "label_smoothing": 0.1, "accumulation_steps": 2},
    },
    "drawn": {
        **{"family": "vit", "optimizer": "sgd", "learning_rate": 0.02, "sampler": "balanced"},
        "cutmix": 0.5,
    },
    "thaw": {"family": "vit", "optimizer": "sgd", "freeze": "head_then_full", "head_epochs": 1},
}


def scenario(name: str, workers: int, folder: Path, **fields: Any) -> Any:
    return assignment(
        **SCENARIOS[name],
        batch_size_per_worker=GLOBAL_BATCH // workers,
        checkpoint_folder=folder / f"{name.replace(' ', '-')}-{workers}",
        **fields,
    )


def elastic(folder: Path, name: str, **fields: Any) -> Any:
    """A trial whose batch is for three workers, who may be fewer."""
    place = folder / f"elastic-{name}"
    return assignment(
        **SCENARIOS["vit mixed"], batch_size_per_worker=6, checkpoint_folder=place, **fields
    )


def report_lines(wanted: Any, world: World, **fields: Any) -> list[dict[str, Any]]:
    reports = fine_tune(wanted, world, store=small_store(val=VAL), **fields)
    return [{**r.metrics, "checkpoint": r.checkpoint, "detail": r.detail} for r in reports]


def encoded_lines(folder: Path, world: World) -> list[dict[str, Any]]:
    """Trained from pictures that are read by row groups; each worker decodes its share."""
    spec = DataSpec(source=str(folder / "pictures"), folder=str(folder / "stores"), short_side=16)
    store = prepare(replace(spec, store="encoded"))
    wanted = scenario("vit", world.size, folder / "encoded")
    return [report.metrics for report in fine_tune(wanted, world, store=store)]


def write_pictures(folder: Path) -> None:
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (3, 3, 3, 3))
    for number in range(130):
        noise = generator.integers(-40, 40, (3, 3, 3))
        pixels = (colours[number % 3] + noise).clip(0, 255).astype(np.uint8)
        path = folder / f"class {number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((24, 20)).save(path)


def drawn_predictions(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, 6) and labels (N,), the same on every worker."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 6, (images,), generator=generator)
    logits = torch.randn(images, 6, generator=generator) + torch.eye(6)[labels]
    return logits, labels


def scores_of_shard(judged: str, images: int, world: World) -> dict[str, float]:
    """What a worker reports that predicts its shard of the images in batches of 4."""
    start, end = batches.shard(images, world.rank, world.size)
    logits, labels = (part[start:end] for part in drawn_predictions(images))
    parts = zip(logits.split(4), labels.split(4), strict=True) if end > start else iter(())
    return score(parts, world, judged=metric_of(judged), class_names=CLASS_NAMES, images=images)


def rehearse(world: World) -> dict[str, Any]:
    """A rehearsal, done on accelerators before the first step, where rank 1 has less room."""
    learner = Trial(assignment("resnet", batch_size_per_worker=8), world, small_store()).learner
    before = {name: value.clone() for name, value in learner.module.state_dict().items()}

    def allocate(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if world.rank == 1 and len(inputs[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    learner.module.register_forward_pre_hook(allocate)
    batch = Batch(torch.randn(8, 3, 16, 16), torch.arange(8) % 6)
    state = torch.get_rng_state()
    learner.rehearse(batch)
    after = learner.module.state_dict()
    untouched = all(value.equal(before[name]) for name, value in after.items())
    return {
        "accumulation": learner.accumulation,
        "notes": learner.notes,
        "untouched": untouched and torch.get_rng_state().equal(state),
        "loss": float(learner.take_step(batch, 0.1)),
    }


def work(rank: int, folder: Path) -> None:
    """What each of two workers does; results go to ``rank-R.json``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank=rank, size=2)
    results: dict[str, Any] = {
        name: report_lines(scenario(name, 2, folder), world) for name in SCENARIOS
    }
    smaller = World(rank=rank, size=2, full=3)
    results["elastic"] = report_lines(elastic(folder, "two"), smaller)
    batches.WINDOW_IMAGES = 32  # so few images are read by row groups
    results["encoded"] = encoded_lines(folder, world)
    asked = 0

    def told_at_ninth() -> bool:  # rank 1 alone hears of it, in the middle of the second epoch
        nonlocal asked
        asked += 1
        return rank == 1 and asked > 3

    try:
        report_lines(scenario("vit", 2, folder / "cut"), world, should_stop=told_at_ninth)
    except Preempted as notice:
        results["preempted"] = notice.checkpoint
        resumed = scenario("vit", 2, folder / "cut", checkpoint=notice.checkpoint)
        results["resumed"] = report_lines(resumed, world)
    try:
        wild: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 99.0, "clip_grad_norm": None}
        report_lines(assignment("vit", **wild, warmup_epochs=0, batch_size_per_worker=8), world)
    except Diverged as error:
        results["diverged"] = str(error)
    results["rehearsed"] = rehearse(world)
    results["metrics"] = {name: scores_of_shard(name, VAL, world) for name in JUDGED}
    results["metrics of one image"] = scores_of_shard("macro_f1", 1, world)
    done = results["vit"][-1]["checkpoint"]
    predicted = evaluate_split(
        scenario("vit", 2, folder), done, "val", world, store=small_store(val=VAL)
    )
    results["predicted"] = predicted.tolist()
    (folder / f"rank-{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ddp")
    write_pictures(made / "pictures")
    spawn(work, args=(made,), nprocs=2)  # type: ignore[no-untyped-call]
    return made


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: report_lines(scenario(name, 1, folder), World()) for name in SCENARIOS}


def test_all_workers_report_the_same(both: list[dict[str, Any]]) -> None:
    for name in SCENARIOS:
        for ours, theirs in zip(both[0][name], both[1][name], strict=True):
            assert {**ours, "detail": None} == {**theirs, "detail": None}
    assert both[0]["vit"][0]["detail"]["num_workers"] == 2


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        # No batch statistics: only the order of float32 sums differs, about 1e-7 a step, and
        # twelve steps of SGD pass it on without blowing it up.
        ("vit", 1e-5),
        ("vit mixed", 1e-5),
        ("thaw", 1e-5),
        ("weighted", 1e-5),
        ("drawn", 1e-5),
        # Adam divides by the root of the second moment: where a gradient is all rounding, its
        # sign decides a whole step, in a few of 250,000 weights.
        ("vit adamw", 1e-4),
        # Each worker normalises with the statistics of its own 8 images, as DDP does: another
        # estimate of the same thing, so another trajectory of the same quality.
        ("resnet", 0.1),
    ],
)
def test_two_workers_train_what_one_does(
    both: list[dict[str, Any]],
    alone: dict[str, list[dict[str, Any]]],
    name: str,
    tolerance: float,
) -> None:
    for ours, theirs in zip(both[0][name], alone[name], strict=True):
        for metric in ("train_loss", "val_loss"):
            assert ours[metric] == pytest.approx(theirs[metric], rel=tolerance)
        for metric in ("val_top1", "val_top5"):
            images = 0 if tolerance < 1e-3 else 0.1 * VAL
            assert abs(ours[metric] - theirs[metric]) * VAL <= images + 1e-9
        for metric in ("epoch", "images_seen", "lr", "flops"):
            assert ours[metric] == theirs[metric]


def test_two_workers_train_on_encoded_pictures_what_one_does(
    both: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW_IMAGES", 32)
    single = encoded_lines(folder, World())
    assert len(single) == len(both[0]["encoded"])
    assert all(map(same_trial, both[0]["encoded"], single))


def test_told_to_stop_all_stop_at_one_step_and_go_on(both: list[dict[str, Any]]) -> None:
    assert both[0]["preempted"] == both[1]["preempted"]
    assert "image" in Path(both[0]["preempted"]).name
    ours, theirs = both[0]["resumed"][-1], both[0]["vit"][-1]
    # the loss of the epoch that was cut is averaged over workers in float64
    for metric in ("train_loss", "val_loss", "val_top1", "images_seen", "flops"):
        assert ours[metric] == pytest.approx(theirs[metric], rel=1e-6)


def same_trial(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """To the tolerance of float32 sums in another order; counts are equal."""
    close = all(
        ours[metric] == pytest.approx(theirs[metric], rel=1e-5)
        for metric in ("train_loss", "val_loss", "val_top1")
    )
    return close and all(ours[one] == theirs[one] for one in ("epoch", "images_seen", "lr"))


def test_fewer_workers_train_what_three_would(both: list[dict[str, Any]], folder: Path) -> None:
    """Two share 18 images as 8 and 10; one takes all in micro-batches that are no larger."""
    pair = both[0]["elastic"]
    assert pair[0]["detail"]["global_batch"] == 18
    axes = {**SCENARIOS["vit mixed"], "accumulation_steps": 1}
    whole = report_lines(assignment(**axes, batch_size_per_worker=18), World())
    single = report_lines(elastic(folder, "one"), World(full=3))
    rest = elastic(folder, "rest", checkpoint=pair[0]["checkpoint"])
    assert all(map(same_trial, pair, whole))
    assert all(map(same_trial, single, whole))
    (last,) = report_lines(rest, World(full=3))
    assert same_trial(last, whole[-1])


def test_one_goes_on_in_the_middle_of_an_epoch_that_two_began(
    both: list[dict[str, Any]], folder: Path
) -> None:
    wanted = scenario("vit", 2, folder / "alone", checkpoint=both[0]["preempted"])
    last = report_lines(wanted, World(full=2))[-1]
    assert same_trial(last, both[0]["vit"][-1])


def test_divergence_on_all_at_once(both: list[dict[str, Any]]) -> None:
    assert both[0]["diverged"] == both[1]["diverged"]
    assert "not finite" in both[0]["diverged"]


def test_where_one_has_no_room_all_take_smaller_parts(both: list[dict[str, Any]]) -> None:
    for results in both:
        assert results["rehearsed"]["accumulation"] == 2
        assert results["rehearsed"]["untouched"]
        assert results["rehearsed"]["loss"] > 0
    assert "another worker" in both[0]["rehearsed"]["notes"][0]
    assert "micro-batch of 8" in both[1]["rehearsed"]["notes"][0]


@pytest.mark.parametrize("judged", JUDGED)
def test_metrics_of_two_workers_are_scikit_learns(both: list[dict[str, Any]], judged: str) -> None:
    logits, labels = (part.numpy() for part in drawn_predictions(VAL))
    probabilities, predicted = torch.from_numpy(logits).softmax(1).numpy(), logits.argmax(1)
    precision, recall, _ = sk.precision_recall_curve(labels == 1, probabilities[:, 1])
    expected = {
        "top1": sk.accuracy_score(labels, predicted),
        "top5": sk.top_k_accuracy_score(labels, logits, k=5),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "auroc": np.mean([sk.roc_auc_score(labels == c, probabilities[:, c]) for c in range(6)]),
        "loss": -np.log(probabilities[np.arange(VAL), labels]).mean(),
        "recall:c": sk.recall_score(labels == 2, predicted == 2),
        "precision:b@0.8": precision[recall >= 0.8].max(),
    }
    single = scores_of_shard(judged, VAL, World())
    assert judged in single
    for measured in (single, both[0]["metrics"][judged], both[1]["metrics"][judged]):
        assert measured == pytest.approx({name: expected[name] for name in single}, rel=1e-6)


def test_a_worker_without_an_image_has_the_figures_of_all(both: list[dict[str, Any]]) -> None:
    single = scores_of_shard("macro_f1", 1, World())
    assert both[0]["metrics of one image"] == both[1]["metrics of one image"] == single


def test_predictions_are_gathered_whole(both: list[dict[str, Any]], folder: Path) -> None:
    assert both[0]["predicted"] == both[1]["predicted"]
    store = small_store(val=VAL)
    assert len(both[0]["predicted"]) == VAL
    accuracy = np.mean(np.array(both[0]["predicted"]) == store.split("val").labels)
    assert accuracy == pytest.approx(both[0]["vit"][-1]["val_top1"])
    done = both[0]["vit"][-1]["checkpoint"]
    single = evaluate_split(scenario("vit", 2, folder), done, "val", store=store)
    assert single.tolist() == both[0]["predicted"]
