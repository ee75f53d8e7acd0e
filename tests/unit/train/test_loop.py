"""Batches, evaluation and accounting, each against a plain reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.unit.train.engine_store import small_store
from trainables.backbones import describe
from trainables.config import BackboneSpec
from trainables.data import batches
from trainables.data.batches import BatchPlan, Pixels, load_pixels, shard
from trainables.errors import Diverged
from trainables.train.augmentation import InputTransform
from trainables.train.learner import count_flops
from trainables.train.loop import (
    EVAL_BATCH,
    EVAL_PIXELS,
    TrainedModel,
    World,
    eval_batch,
    predict,
    score,
)
from trainables.train.trial import Clock

TRANSFORM = InputTransform(image_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CPU = torch.device("cpu")


@contextmanager
def patched(**values: int) -> Iterator[None]:
    """Row groups and windows so small that few images make many."""
    before = {name: getattr(batches, name) for name in values}
    try:
        vars(batches).update(values)
        yield
    finally:
        vars(batches).update(before)


def steps_of(images: int, per_worker: int, workers: int, seed: int, epoch: int) -> list[list[int]]:
    """Images of each step, all workers together, sorted."""
    plan = BatchPlan(images=images, batch_size_per_worker=per_worker, world_size=workers)
    rows = torch.arange(images) * 10  # rows need not be 0..n-1
    parts = [list(plan.batches(rows, seed=seed, epoch=epoch, rank=rank)) for rank in range(workers)]
    assert all(len(part) == plan.steps for part in parts)
    return [sorted(torch.cat(step).tolist()) for step in zip(*parts, strict=True)]


@given(st.integers(1, 200), st.sampled_from([(8, 1), (4, 2), (2, 4), (1, 8)]), st.integers(0, 3))
def test_a_step_sees_the_same_images_for_any_number_of_workers(
    images: int, shape: tuple[int, int], epoch: int
) -> None:
    together = steps_of(images, *shape, seed=1, epoch=epoch)
    seen = [row for step in together for row in step]
    assert len(seen) == len(set(seen))  # none twice in an epoch
    if images >= 8:
        assert together == steps_of(images, 8, 1, seed=1, epoch=epoch)
        assert len(seen) == images // 8 * 8
    else:  # one step of as many as can be shared evenly
        assert len(seen) == images // shape[1] * shape[1]


@given(
    st.integers(1, 300), st.integers(1, 12), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)
)
def test_fewer_workers_share_the_batch_of_a_full_group(
    images: int, per_worker: int, parts: int, full: int, missing: int
) -> None:
    workers = max(1, full - missing)
    whole = BatchPlan(images=images, batch_size_per_worker=per_worker, world_size=full)
    plan = replace(whole, world_size=workers, full_size=full)
    assert (plan.global_batch, plan.steps) == (whole.global_batch, whole.steps)
    if not plan.steps:
        return
    rows = torch.arange(images)
    shares = [list(plan.batches(rows, seed=0, epoch=1, rank=rank)) for rank in range(workers)]
    wanted = [list(whole.batches(rows, seed=0, epoch=1, rank=rank)) for rank in range(full)]
    for step in range(plan.steps):
        ours, theirs = ([int(i) for part in one for i in part[step]] for one in (shares, wanted))
        assert ours == theirs
    sizes = [len(plan.share(rank)) for rank in range(workers)]
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= 2
    # pairs, which are mixed with each other, are the same
    full_share = len(whole.share(0))
    assert full_share % 2 or not any(plan.share(rank)[0] % 2 for rank in range(workers))
    # no micro-batch is larger than one that had room
    largest = -(-max(sizes) // plan.micro_batches(parts))
    assert largest <= -(-full_share // parts)
    assert whole.micro_batches(parts) == parts


def test_the_order_is_of_seed_and_epoch() -> None:
    plan = BatchPlan(images=50, batch_size_per_worker=8, world_size=1)
    first = plan.order(0, 0)
    assert first.equal(plan.order(0, 0))
    assert sorted(first.tolist()) == list(range(50))
    assert not first.equal(plan.order(0, 1))
    assert not first.equal(plan.order(1, 0))


def test_batches_resume_in_the_middle() -> None:
    plan = BatchPlan(images=50, batch_size_per_worker=8, world_size=1)
    whole = list(plan.batches(torch.arange(50), seed=0, epoch=2, rank=0))
    rest = list(plan.batches(torch.arange(50), seed=0, epoch=2, rank=0, first_step=4))
    assert [r.tolist() for r in rest] == [w.tolist() for w in whole[4:]]


@given(st.integers(0, 1000), st.integers(1, 9))
def test_shards_cover_each_image_once(count: int, size: int) -> None:
    bounds = [shard(count, rank, size) for rank in range(size)]
    assert [i for start, end in bounds for i in range(start, end)] == list(range(count))
    lengths = [end - start for start, end in bounds]
    assert max(lengths) - min(lengths) <= 1


# Images, images per step, workers, rows per group, images of a window.
CUTS = st.tuples(
    st.integers(1, 400),
    st.sampled_from([(8, 1), (4, 2), (2, 4), (1, 8), (6, 1), (2, 3), (5, 1), (1, 5)]),
    st.integers(1, 40),
    st.integers(1, 200),
)


@given(CUTS, st.integers(0, 3), st.sampled_from([1.0, 0.3]))
def test_an_order_by_row_groups_keeps_the_laws(
    cut: tuple[int, tuple[int, int], int, int], epoch: int, share: float
) -> None:
    stored, (per_worker, workers), rows_per_group, window = cut
    rows = np.flatnonzero(np.random.default_rng(0).random(stored) <= share)
    plan = BatchPlan(images=len(rows), batch_size_per_worker=per_worker, world_size=workers)
    if not plan.steps:
        return
    alone = replace(plan, batch_size_per_worker=plan.global_batch, world_size=1)
    numbers = rows // rows_per_group
    with patched(WINDOW_IMAGES=window, ROWS_PER_GROUP=rows_per_group):
        order = plan.order(1, epoch, numbers)
        steps = [
            list(
                plan.batches(
                    torch.from_numpy(rows), seed=1, epoch=epoch, rank=rank, row_groups=numbers
                )
            )
            for rank in range(workers)
        ]
        whole = list(
            alone.batches(torch.from_numpy(rows), seed=1, epoch=epoch, rank=0, row_groups=numbers)
        )
        again = plan.order(1, epoch, numbers)
    assert order.equal(again)
    assert sorted(order.tolist()) == list(range(len(rows)))  # each image once
    for step, block in enumerate(whole):
        assert torch.cat([steps[rank][step] for rank in range(workers)]).equal(block)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_a_worker_needs_the_row_groups_of_its_lanes_in_every_epoch(workers: int) -> None:
    plan = BatchPlan(images=2000, batch_size_per_worker=16 // workers, world_size=workers)
    rows = torch.arange(2000)
    with patched(WINDOW_IMAGES=320, ROWS_PER_GROUP=10):
        numbers = rows.numpy() // 10
        used: list[set[int]] = []
        for rank in range(workers):
            epochs = [
                torch.cat(list(plan.batches(rows, seed=0, epoch=e, rank=rank, row_groups=numbers)))
                for e in range(3)
            ]
            assert not epochs[0].equal(epochs[1])
            used.append({int(row) // 10 for epoch in epochs for row in epoch})
    # Neighbours share the row group on their border, where there is one.
    assert sum(map(len, used)) <= 200 + workers - 1
    assert all(max(groups) - min(groups) < 200 / workers + 1 for groups in used)


def test_a_window_reads_few_row_groups_and_an_epoch_shuffles_them() -> None:
    plan = BatchPlan(images=4800, batch_size_per_worker=16, world_size=1)
    with patched(WINDOW_IMAGES=320, ROWS_PER_GROUP=10):
        numbers = np.arange(4800) // 10
        orders = [plan.order(0, epoch, numbers).numpy() for epoch in range(2)]
        # 16 lanes, 2 row groups of each in a window
        for order in orders:
            windows = (numbers[order] for order in np.split(order, 15))
            assert all(len(np.unique(window)) == 32 for window in windows)
        different = plan.order(1, 0, numbers).numpy()
    assert (orders[0] != orders[1]).mean() > 0.9
    assert (orders[0] != different).mean() > 0.9
    # A lane's images come from all of its length: the first step's mean rank is near the middle.
    first = orders[0][:320].reshape(20, 16) - np.arange(16) * 300
    assert ((first >= 0) & (first < 300)).all()
    assert len(np.unique(first // 10)) > 10


def test_few_images_come_in_the_pixel_stores_order() -> None:
    plan = BatchPlan(images=500, batch_size_per_worker=16, world_size=1)
    assert plan.order(3, 2, np.arange(500) // 64).equal(plan.order(3, 2))


def test_pixels_on_the_cpu_are_the_map_itself() -> None:
    store = small_store(val=9)
    images = store.split("val").images
    pixels = load_pixels(store, "val", CPU)
    assert isinstance(images, np.ndarray)
    assert isinstance(pixels.images, torch.Tensor)
    assert pixels.images.data_ptr() == images.ctypes.data
    cut, positions = pixels.cut(torch.tensor([3, 1]))
    assert cut[positions].equal(torch.from_numpy(images[[3, 1]].copy()))


def network(classes: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, classes))


def trained(module: nn.Module) -> TrainedModel:
    geometry = describe(BackboneSpec(family="resnet"), height=16, width=16)
    return TrainedModel(module=module, transform=TRANSFORM, geometry=geometry, device=CPU)


def evaluate(module: nn.Module, pixels: Pixels) -> dict[str, float]:
    return score(predict(trained(module), pixels, world=World()), World())


@pytest.mark.parametrize("val", [50, 256, 700])
def test_evaluation_counts_every_image_once(val: int) -> None:
    store, module = small_store(val=val), network()
    split = store.split("val")
    pixels = load_pixels(store, "val", CPU)
    scores = evaluate(module, pixels)
    floats = split.images.transpose(0, 3, 1, 2) / 255.0
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (TRANSFORM.mean, TRANSFORM.std))
    with torch.no_grad():
        logits = module(torch.from_numpy(((floats - mean) / std).astype(np.float32))).double()
    order = logits.argsort(1, descending=True).numpy()
    hits = order == split.labels[:, None]
    assert scores["top1"] == pytest.approx(hits[:, 0].mean(), abs=1e-12)
    assert scores["top5"] == pytest.approx(hits[:, :5].any(1).mean(), abs=1e-12)
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(split.labels))
    assert scores["loss"] == pytest.approx(float(loss), rel=1e-6)


def test_the_shards_of_all_workers_make_up_the_split() -> None:
    store, module = small_store(val=71), network()
    pixels = load_pixels(store, "val", CPU)
    parts = [
        pair
        for rank in range(3)
        for pair in predict(trained(module), pixels, world=World(rank=rank, size=3))
    ]
    (whole, labels), *rest = predict(trained(module), pixels, world=World())
    assert not rest
    torch.testing.assert_close(torch.cat([logits for logits, _ in parts]), whole)
    assert torch.cat([some for _, some in parts]).equal(labels)


def test_large_images_are_evaluated_fewer_at_once() -> None:
    """Upsampled on the device, by interpolation; the logits are those of all at once."""
    store = small_store(val=70)
    pixels = load_pixels(store, "val", CPU)
    module = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(16 * 16 * 3, 6))
    transform = replace(TRANSFORM, image_size=512)
    model = replace(trained(module), transform=transform)
    parts = list(predict(model, pixels, world=World()))
    assert [len(labels) for _, labels in parts] == [16, 16, 16, 16, 6]
    with torch.no_grad():
        floats = TRANSFORM.normalise(pixels.images)
        large = nn.functional.interpolate(floats, (512, 512), mode="bilinear")
        torch.testing.assert_close(torch.cat([logits for logits, _ in parts]), module(large))


@given(st.integers(8, 1024))
def test_no_batch_of_evaluation_has_more_pixels_than_that_of_small_images(side: int) -> None:
    images = eval_batch(side)
    assert images == EVAL_BATCH or (images + 1) * side**2 > EVAL_PIXELS
    assert 1 <= images <= EVAL_BATCH
    assert images * side**2 <= EVAL_PIXELS


def test_top5_is_absent_where_it_would_say_nothing() -> None:
    store = small_store(classes=4)
    pixels = load_pixels(store, "val", CPU)
    assert "top5" not in evaluate(network(4), pixels)
    assert "top5" in evaluate(network(5), load_pixels(small_store(classes=5), "val", CPU))


def test_a_broken_model_does_not_score() -> None:
    store, module = small_store(), network()
    nn.init.constant_(module[1].weight, float("nan"))  # type: ignore[index]
    pixels = load_pixels(store, "val", CPU)
    with pytest.raises(Diverged):
        evaluate(module, pixels)


# --- accounting -------------------------------------------------------------------------------


def test_a_purpose_within_another_is_charged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    clock = Clock()
    with clock.on("train"):
        now = 5.0
        with clock.on("data"):
            now = 7.0
        now = 8.0
    now = 100.0
    with clock.on("eval"):
        now = 101.0
    assert clock.seconds == {"train": 6.0, "eval": 1.0, "checkpoint": 0.0, "data": 2.0}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_flops_are_two_a_multiply_add(groups: int) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=groups),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    first, second, last = 2 * 256 * 8 * 3 * 9, 2 * 256 * 8 * (8 // groups) * 9, 2 * 8 * 10
    counts = count_flops(module, 16)
    assert counts.forward == first + second + last
    # backward: gradients of weights and inputs; the image itself needs none
    assert counts.forward_backward == 3 * counts.forward - first
    module[:4].requires_grad_(False)
    assert count_flops(module, 16).forward_backward == counts.forward + last


def test_counting_touches_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    count_flops(module, 8)
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
