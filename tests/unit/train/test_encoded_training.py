"""Training from encoded pictures: the same as from pixels, and exactly resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.train.engine_store import assignment
from trainables.config import DataSpec, EpochReport
from trainables.data import batches, encoded
from trainables.data.batches import load_pixels
from trainables.data.build import prepare
from trainables.data.store import ImageStore
from trainables.errors import Preempted
from trainables.evaluate.model import evaluate_split, evaluate_test
from trainables.finetune import fine_tune
from trainables.train import loop

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageStore, ImageStore]:
    """As pixels and encoded: JPEGs of three classes that can be told apart, in odd sizes."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (3, 3, 4, 3))
    for number in range(150):
        noise = generator.integers(-40, 40, (3, 4, 3))
        pixels = (coarse[number % 3] + noise).clip(0, 255).astype(np.uint8)
        path = root / f"class {number % 3}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        size = (int(generator.integers(20, 60)), int(generator.integers(20, 60)))
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
    spec = DataSpec(source=str(root), folder=str(root.parent / "stores"), short_side=16)
    return prepare(replace(spec, store="pixels")), prepare(replace(spec, store="encoded"))


@pytest.fixture
def by_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows so small that so few images are read by row groups."""
    monkeypatch.setattr(batches, "WINDOW_IMAGES", 32)


def facts(report: EpochReport) -> dict[str, float]:
    skipped = ("seconds", "images_per_second")
    return {name: v for name, v in report.metrics.items() if not name.endswith(skipped)}


def test_training_and_evaluation_are_those_from_pixels(
    stores: tuple[ImageStore, ImageStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "EVAL_BATCH", 4)  # several batches of few images
    reports, predicted, tests = [], [], []
    for name, store in zip(("pixels", "encoded"), stores, strict=True):
        asked = assignment(checkpoint_folder=tmp_path / name)
        done = list(fine_tune(asked, store=store))
        reports.append([facts(report) for report in done])
        checkpoint = str(done[-1].checkpoint)
        predicted.append(evaluate_split(asked, checkpoint, "val", store=store, limit=5))
        tests.append(evaluate_test(asked, checkpoint, store=store))
    assert reports[0] == reports[1]
    assert len(predicted[0]) == 5
    np.testing.assert_array_equal(*predicted)
    assert tests[0] == tests[1]


@pytest.mark.usefixtures("by_row_groups")
def test_a_resume_in_the_middle_of_an_epoch_is_exact(
    stores: tuple[ImageStore, ImageStore], tmp_path: Path
) -> None:
    _, store = stores
    whole = [facts(r) for r in fine_tune(assignment(epochs=2, mixup=0.2), store=store)]
    asked, questions = assignment(epochs=2, mixup=0.2, checkpoint_folder=tmp_path), 0

    def should_stop() -> bool:
        nonlocal questions
        questions += 1
        return questions == 4

    with pytest.raises(Preempted) as stopped:
        list(fine_tune(asked, store=store, should_stop=should_stop))
    checkpoint = stopped.value.checkpoint
    assert checkpoint is not None
    assert "image" in Path(checkpoint).name
    rest = fine_tune(replace(asked, checkpoint=checkpoint), store=store)
    assert [facts(report) for report in rest] == whole


@pytest.mark.usefixtures("by_row_groups")
def test_an_order_by_row_groups_trains_on_every_image(
    stores: tuple[ImageStore, ImageStore],
) -> None:
    pixels, store = stores
    groups = load_pixels(store, "train", CPU).row_groups(torch.arange(120))
    assert groups is not None
    assert load_pixels(pixels, "train", CPU).row_groups(torch.arange(120)) is None
    (by_groups,), (at_random,) = (
        list(fine_tune(assignment(epochs=1), store=one)) for one in (store, pixels)
    )
    assert by_groups.metrics["images_seen"] == at_random.metrics["images_seen"]
    assert by_groups.metrics["train_loss"] != at_random.metrics["train_loss"]


def test_blocks_come_with_their_rows(stores: tuple[ImageStore, ImageStore]) -> None:
    mapped, decoded = (load_pixels(store, "train", CPU) for store in stores)
    blocks = [torch.tensor([5, 1, 7]), torch.tensor([0]), torch.tensor([9, 9])]
    got = list(decoded.cut_all(blocks))
    assert [rows.tolist() for rows, _, _ in got] == [block.tolist() for block in blocks]
    wanted = list(mapped.cut_all(blocks))
    for (rows, images, positions), (_, expected, places) in zip(got, wanted, strict=True):
        assert images[positions].equal(expected[places])
        assert images.equal(decoded.cut(rows)[0])
    for (images, labels), (expected, others) in zip(
        decoded.in_order(3, 60, 25), mapped.in_order(3, 60, 25), strict=True
    ):
        assert images.equal(expected)
        assert labels.equal(others)


def test_a_trial_that_ends_leaves_no_decoding_behind(
    stores: tuple[ImageStore, ImageStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[encoded._Block] = []
    block = encoded._Block

    def noted(*given: object) -> encoded._Block:
        begun.append(block(*given))  # type: ignore[arg-type]
        return begun[-1]

    monkeypatch.setattr(encoded, "_Block", noted)
    pixels = load_pixels(stores[1], "train", CPU)
    blocks = pixels.cut_all(torch.arange(start, start + 30) for start in range(0, 120, 30))
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert len(begun) == 1 + encoded.BLOCKS_AHEAD
    assert all(task.done() for one in begun for task in one._tasks)
