"""What is probed while a model learns: a few numbers after every epoch, on validation images."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from trainables.assignment import SHIFT_IMAGES
from trainables.loop import from_rank_zero
from trainables.probes.probe import Subject, batches
from trainables.probes.shift import DIRECTIONS, agreement, shifted_predictions
from trainables.trial_state import Trial


@torch.inference_mode()
def shift_consistency(trial: Trial, offsets_px: Sequence[int]) -> dict[str, float]:
    """``shift_consistency_Npx`` for every offset N: the share of validation images that keep
    their predicted class when moved by N pixels along an axis, mean over both axes.

    The first ``SHIFT_IMAGES`` images, a fair sample because a store is in the order of digests.
    ``probe_seconds`` is what it took. Rank 0 looks for all workers.
    """
    found: dict[str, float] = {}
    if trial.world.rank == 0:
        began = time.perf_counter()
        subject = Subject.of(trial.learner)
        subject.module.eval()
        images = trial.store.split("val").images[:SHIFT_IMAGES]
        axes = {"axis": DIRECTIONS["axis"]}
        moved = torch.cat(
            [
                shifted_predictions(subject.logits, inputs, (0, *offsets_px), axes)["axis"]
                for _, inputs in batches(subject, images)
            ],
            dim=2,
        )  # (1 + offsets, ways, N)
        shares = agreement(moved[1:], moved[0, 0])
        found = {
            f"shift_consistency_{offset}px": share
            for offset, share in zip(offsets_px, shares, strict=True)
        }
        found["probe_seconds"] = time.perf_counter() - began
    return from_rank_zero(found, trial.world)
