"""Optimizers, schedule, average and clipping, each against a plain reference."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import Lion
from torch import Tensor, nn

from trainables.backbones import Backbone, describe
from trainables.config import BackboneSpec, Recipe
from trainables.data.batches import BatchPlan
from trainables.train.learner import Batch, Learner, batch_loss
from trainables.train.loop import World
from trainables.train.optimizer import rate_at


def model(*, batch_norm: bool = False) -> nn.Sequential:
    """Without batch norm unless asked: a bias before one has a gradient of rounding alone."""
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(5) if batch_norm else nn.Tanh()
    return nn.Sequential(nn.Linear(6, 5), middle, nn.Linear(5, 3))


def groups(module: nn.Module, *, weight_decay: float = 0.1) -> list[dict[str, Any]]:
    parameters = dict(module.named_parameters())
    first = {name: p for name, p in parameters.items() if name.startswith("0")}
    last = {name: p for name, p in parameters.items() if not name.startswith("0")}
    return [
        {"params": list(part.values()), "names": list(part), "weight_decay": decay, "lr_scale": s}
        for part, decay, s in ((first, weight_decay, 0.5), (last, 0.0, 1.0))
    ]


def data(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)
    )


class InTwoGroups(Backbone):
    """A module that is no timm model, in the groups above."""

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        return groups(self.module, weight_decay=recipe.weight_decay)


def learner_of(module: nn.Module, **axes: Any) -> Learner:
    backbone = InTwoGroups(
        module=module,
        geometry=describe(BackboneSpec(family="resnet"), height=32, width=32),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    plan = BatchPlan(images=8, batch_size_per_worker=8, world_size=1)
    return Learner(backbone, Recipe(**axes), World(), plan)


def reference(name: str, module: nn.Module, rate: float) -> torch.optim.Optimizer:
    """The textbook optimizer with the learning rates written out per group."""
    plain: list[dict[str, Any]] = [
        {"params": g["params"], "lr": rate * g["lr_scale"], "weight_decay": g["weight_decay"]}
        for g in groups(module)
    ]
    if name == "adamw":
        return torch.optim.AdamW(plain, betas=(0.9, 0.999))
    if name == "sgd":
        return torch.optim.SGD(plain, momentum=0.9, nesterov=True)
    lion: torch.optim.Optimizer = Lion(plain, betas=(0.9, 0.99))
    return lion


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
@pytest.mark.parametrize("largest", [None, 0.05, 100.0])
def test_steps_are_the_textbooks(name: str, largest: float | None) -> None:
    """Per-group rates, decay and clipping reach the weights as torch's own parts would."""
    ours, theirs = model(), model()
    learner = learner_of(ours, optimizer=name, weight_decay=0.1, clip_grad_norm=largest)
    plain = reference(name, theirs, 0.01)
    for number in range(4):
        batch = data(number)
        learner.take_step(batch, 0.01)
        plain.zero_grad()
        loss = nn.functional.cross_entropy(theirs(batch.images), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if largest is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), largest)
        plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_layer_scale_reaches_the_weights() -> None:
    """SGD's first step without momentum or decay is the gradient times the group's own rate."""
    module = model()
    before = copy.deepcopy(module)
    axes = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "clip_grad_norm": None}
    learner = learner_of(module, **axes)
    learner.take_step(data(), 0.2)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [0.1, 0.2]
    for (name, a), b in zip(module.named_parameters(), before.parameters(), strict=True):
        assert a.grad is not None
        scale = 0.5 if name.startswith("0") else 1.0
        torch.testing.assert_close(b - a, 0.2 * scale * a.grad)


@given(
    st.floats(1e-5, 1.0), st.integers(1, 300), st.floats(0, 20), st.floats(0, 1), st.floats(0, 1)
)
def test_the_schedule_rises_then_falls(
    peak: float, epochs: int, warmup: float, low: float, at: float
) -> None:
    recipe = Recipe(learning_rate=peak, warmup_epochs=warmup, final_lr_fraction=low)
    at_epoch = partial(rate_at, recipe=recipe, epochs=epochs)
    top = min(warmup, epochs / 2)
    here, later = at * epochs, min(epochs, at * epochs + 0.01)
    assert 0 <= at_epoch(here) <= peak * (1 + 1e-9)
    assert math.isclose(at_epoch(top), peak)
    assert math.isclose(at_epoch(epochs), peak * low, abs_tol=1e-12 * peak)
    if later <= top:
        assert at_epoch(here) <= at_epoch(later)
    elif here >= top:
        assert at_epoch(here) >= at_epoch(later) - 1e-12
    middle = (top + epochs) / 2
    assert math.isclose(at_epoch(middle), peak * (1 + low) / 2, rel_tol=1e-6)


def test_warm_up_is_a_straight_line() -> None:
    recipe = Recipe(learning_rate=0.3, warmup_epochs=3)
    rates = [rate_at(epoch, recipe, 10) for epoch in (0.75, 1.5, 3)]
    assert rates == pytest.approx([0.075, 0.15, 0.3])


def test_the_average_is_the_recursion_written_out() -> None:
    module = model(batch_norm=True)
    learner = learner_of(module, ema_decay=0.9)
    expected = [p.detach().clone() for p in module.parameters()]
    for number in range(30):
        learner.take_step(data(number), 0.05)
        decay = min(0.9, (1 + number) / (10 + number))
        expected = [
            decay * e + (1 - decay) * p.detach()
            for e, p in zip(expected, module.parameters(), strict=True)
        ]
    ema = learner.ema
    assert ema is not None
    for a, e in zip(ema.module.parameters(), expected, strict=True):
        torch.testing.assert_close(a, e)
        assert not a.requires_grad
    batches = ema.module.get_buffer("1.num_batches_tracked")
    assert batches == 30
    assert not ema.module.get_buffer("1.running_mean").equal(module.get_buffer("1.running_mean"))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_gives_the_gradients_of_the_whole_batch(parts: int) -> None:
    whole, cut = model(), model()
    loss = learner_of(whole).gradients(data(), whole)
    again = learner_of(cut, accumulation_steps=parts).gradients(data(), cut)
    torch.testing.assert_close(loss, again)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_uneven_parts_are_weighted_by_their_images() -> None:
    whole, cut = model(), model()
    learner_of(whole).gradients(data(), whole)
    learner_of(cut, accumulation_steps=3).gradients(data(), cut)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_mixed_loss_is_the_loss_of_mixed_targets() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels, partner = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    weight = torch.tensor([0.3, 1.0, 0.0, 0.5])
    batch = Batch(torch.zeros(4), labels, partner, weight)

    def one_hot(classes: Tensor) -> Tensor:
        return nn.functional.one_hot(classes, 3).float()

    mixed = weight[:, None] * one_hot(labels) + (1 - weight[:, None]) * one_hot(partner)
    soft = 0.9 * mixed + 0.1 / 3
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(batch_loss(logits, batch, 0.1), expected)
    plain = batch_loss(logits, Batch(torch.zeros(4), labels), 0.1)
    torch.testing.assert_close(
        plain, nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    )
