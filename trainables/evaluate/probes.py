"""What accuracy does not say about a model: all probes in one call, a few after every epoch.

Shift consistency, calibration, occlusion and attention distance. How fast a model is, which no
other work may disturb, is measured in ``speed.py``.

Zhang 2019 ("Making convolutional networks shift-invariant again") calls classification consistency
how often two shifted versions of an image get the same class; Chaman & Dokmanic 2021 ("Truly
shift-invariant convolutional neural networks") compare the image with its shifted copy, as here.
Borders are reflected. A circular shift, which the latter use on CIFAR, puts a seam into the picture
that no model has seen, and crops out of a larger picture lose a margin that 32 pixels cannot spare;
reflection is what the engine's own augmentation does, so that what is measured is the shift.

Expected calibration error, whether a model is as sure as it is right: Guo et al. 2017 ("On
calibration of modern neural networks", section 2), equal-width bins as in Naeini et al. 2015; as
the model is, and after temperature scaling (section 4.2), which one number fitted on validation
images does to any model: what is left is what cannot be mended so cheaply.

Accuracy when parts of the picture are hidden: Naseer et al. 2021 ("Intriguing properties of vision
transformers", section 3.1) drop random cells of a grid. The grid here is 8 x 8 cells for every
family, 4 x 4 pixels each at 32, and hidden cells get the mean colour, as in random erasing.

How far a transformer looks: Dosovitskiy et al. 2021 ("An image is worth 16x16 words", figure 7 and
appendix D.7) average the distance between a query and all other positions, weighted by attention;
Raghu et al. 2021 ("Do vision transformers see like convolutional neural networks?", figure 3)
compare layers by it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.config import SHIFT_IMAGES
from trainables.data.rng import key_of, uniforms
from trainables.metrics import CONFIDENCE_BINS, binned_confidence, calibration_error, reliability
from trainables.train.augmentation import reflect
from trainables.train.loop import TrainedModel, broadcast, eval_batch
from trainables.train.trial import Trial

MOST_OFFSETS = 16  # beyond 0 and 1: each is three forward passes over all images
ATTENTION_IMAGES = 128  # as many as Dosovitskiy et al. 2021 average over

Probes = dict[str, Any]  # JSON by probe

TEMPERATURES = (0.05, 20.0)  # a model that makes no mistake on val would go to 0
GRID = 8  # cells a side; its square is the number of draws that an image has
SHARES = (0.25, 0.5, 0.75)  # of cells hidden
CHUNK = 8  # images at a time: explicit weights of 1024 tokens take 4 MB a head and image
# unit steps down and right; an axis offset is the mean over both axes
DIRECTIONS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "axis": ((0, 1), (1, 0)),
    "diagonal": ((1, 1),),
}


@torch.inference_mode()
def probe(
    model: TrainedModel,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    *,
    logits: Tensor | None = None,
    temperature: float | None = None,
) -> Probes:
    """Everything about a trained model that accuracy does not say, JSON-ready.

    ``images`` is (N, H, W, C) uint8 as stored, ``labels`` (N,) int64, and ``logits`` (N, classes)
    what the model predicts for them (``None``: predicted here). Returns ``images`` (N),
    ``top1``, ``image_size``, ``shift`` (offsets in pixels of the model's input, from 0 to the patch
    or to an eighth of the side where that is more, so that families have offsets in common; from
    16 on only some of them, evenly spaced),
    ``calibration`` (with a ``temperature`` also what scaling by it leaves, ``ece_scaled``),
    ``occlusion``, and for transformers ``attention_distance_px`` by layer and head. Shares lie in
    [0, 1]. Raises ``ValueError`` without images.
    """
    if not len(labels):
        raise ValueError("probes need an image at least; got 0")
    model.module.eval()
    side, patch = model.transform.image_size, model.geometry.patch
    offsets = shift_offsets(min(side - 1, max(patch or 1, side // 8)))
    truth = torch.from_numpy(np.array(labels)).to(model.device)
    if logits is None:
        logits = torch.cat([model.logits(inputs) for _, inputs in batches(model, images)])
    logits = logits.to(model.device)
    unmoved, moved, hidden = logits.argmax(1), [], []  # (N,)
    for rows, inputs in batches(model, images):
        moved.append(shifted_predictions(model.logits, inputs, offsets, unmoved[rows]))
        hidden.append(
            torch.stack([model.logits(occlude(inputs, rows, s)).argmax(1) for s in SHARES])
        )
    # (offsets, ways, N) by direction
    shifted = {name: torch.cat([part[name] for part in moved], 2) for name in DIRECTIONS}
    occluded = torch.cat(hidden, 1)  # (shares, N)
    calibrated = calibration(logits.softmax(1), truth)
    if temperature is not None:
        scaled = calibration((logits / temperature).softmax(1), truth)
        calibrated |= {"temperature": temperature, "ece_scaled": scaled["ece"]}
    measured = {
        "images": len(labels),
        "image_size": side,
        "top1": (unmoved == truth).double().mean().item(),
        "shift": {
            "padding": "reflect",
            "offsets_px": list(offsets),
            "consistency": {k: agreement(shifted[k], unmoved) for k in DIRECTIONS},
            "top1": {k: agreement(shifted[k], truth) for k in DIRECTIONS},
        },
        "occlusion": {
            "shares": list(SHARES),
            "top1": (occluded == truth).double().mean(1).tolist(),
        },
        "calibration": calibrated,
    }
    inputs = torch.cat([inputs for _, inputs in batches(model, images[:ATTENTION_IMAGES])])
    distances = attention_distances(model.module, inputs, patch=patch)
    return {**measured, "attention_distance_px": distances} if distances else measured


def shift_offsets(last: int) -> list[int]:
    """From 0 to ``last`` pixels, all of them where they are few; 1 is always one of them."""
    step = -(-last // MOST_OFFSETS) or 1
    return sorted({0, min(1, last), *range(step, last + 1, step)})


def batches(model: TrainedModel, images: npt.NDArray[np.uint8]) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers (B,) and model inputs (B, 3, S, S) of stored ``images``, in order."""
    size = eval_batch(model.transform.image_size)
    for start in range(0, len(images), size):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + size]))
        rows = torch.arange(start, start + len(pixels), device=model.device)
        yield rows, model.inputs(pixels)


@torch.inference_mode()
def shift_consistency(trial: Trial, offsets_px: Sequence[int]) -> dict[str, float]:
    """``shift_consistency_Npx`` for every offset N: the share of validation images that keep
    their predicted class when moved by N pixels along an axis, mean over both axes.

    The first ``SHIFT_IMAGES`` images, a fair sample because a store is in the order of digests.
    ``probe_seconds`` is what it took. Rank 0 measures for all workers.
    """
    shares: dict[str, float] = {}
    if trial.world.rank == 0:
        began = time.perf_counter()
        model = trial.learner.trained
        model.module.eval()
        images = trial.store.split("val").images[:SHIFT_IMAGES]
        axes = {"axis": DIRECTIONS["axis"]}
        moved = torch.cat(
            [
                shifted_predictions(model.logits, inputs, (0, *offsets_px), directions=axes)["axis"]
                for _, inputs in batches(model, images)
            ],
            dim=2,
        )  # (1 + offsets, ways, N)
        kept = agreement(moved[1:], moved[0, 0])
        shares = {f"shift_consistency_{px}px": k for px, k in zip(offsets_px, kept, strict=True)}
        shares["probe_seconds"] = time.perf_counter() - began
    return broadcast(shares, trial.world)


def calibration(probabilities: Tensor, labels: Tensor, *, bins: int = CONFIDENCE_BINS) -> Probes:
    """``ece`` and its reliability table, from (N, classes) probabilities and labels (N,).

    ``ece`` is the mean over images of |accuracy - confidence| of their bin, in [0, 1]; bin m of M
    holds confidences in ((m - 1) / M, m / M]. The table ``bins`` lists those that hold any:
    ``low``, ``high``, ``count``, ``accuracy``, ``confidence``. Raises ``ValueError`` on 0 images.
    """
    if not len(labels):
        raise ValueError("calibration needs an image at least; got 0")
    confidence, predicted = probabilities.double().max(1)  # (N,), (N,)
    right = (predicted == labels).double()
    binned = binned_confidence(confidence.cpu().numpy(), right.cpu().numpy(), bins=bins)
    return {"ece": calibration_error(binned), "bins": reliability(binned)}


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in ``TEMPERATURES`` with the least mean cross-entropy of ``logits / T`` (N, classes)
    against ``labels`` (N,): Guo et al. 2017, section 4.2. Raises ``ValueError`` on 0 images.

    The cross-entropy is convex in 1/T, hence has one minimum in log T.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        raise ValueError("a temperature needs an image at least; got 0")
    exact = logits.double()

    def loss(log_temperature: float) -> float:
        return functional.cross_entropy(exact / math.exp(log_temperature), labels).item()

    bounds = tuple(map(math.log, TEMPERATURES))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def occlude(images: Tensor, rows: Tensor, share: float, *, seed: int = 0) -> Tensor:
    """Hide ``share`` of the cells of (B, C, H, W) normalised ``images`` behind zeros; a copy.

    ``rows`` (B,) int64 are the images' numbers: which cells are hidden depends on seed and number
    alone, and cells hidden at one share are hidden at every larger one.
    """
    draws = uniforms(key_of(seed), rows, GRID * GRID)  # (B, cells)
    rank = draws.argsort(dim=1, stable=True).argsort(1)
    hidden = (rank < round(share * GRID * GRID)).view(-1, GRID, GRID)
    # the cell of each pixel, (H,) and (W,): equal parts where the grid divides the side
    height, width = images.shape[2:]
    down = torch.arange(height, device=images.device) * GRID // height
    right = torch.arange(width, device=images.device) * GRID // width
    return images.masked_fill(hidden[:, down][:, :, right][:, None], 0.0)


def shift(images: Tensor, down: int, right: int) -> Tensor:
    """Move the content of (B, C, H, W) by whole pixels, borders reflected; offsets below the side.

    Negative offsets move up and left. The border pixel itself is not repeated. Raises
    ``ValueError`` for an offset of a whole side.
    """
    height, width = images.shape[2:]
    for side, offset in ((height, down), (width, right)):
        if abs(offset) >= side:
            raise ValueError(
                f"a shift must be smaller than the side of {side} pixels; got {offset}"
            )
    rows = reflect(torch.arange(height, device=images.device) - down, height)
    columns = reflect(torch.arange(width, device=images.device) - right, width)
    return images[:, :, rows][:, :, :, columns]


def shifted_predictions(
    classify: Callable[[Tensor], Tensor],
    images: Tensor,
    offsets: Sequence[int],
    unmoved: Tensor | None = None,
    *,
    directions: Mapping[str, tuple[tuple[int, int], ...]] = DIRECTIONS,
) -> dict[str, Tensor]:
    """Predicted classes of (B, C, H, W) ``images`` under shifts, by name in ``directions``.

    ``classify`` maps images to logits (B, classes). Each value is (offsets, ways, B) int64, where
    ways are the direction's steps. Offset 0 is ``unmoved`` (B,), predicted once where not given.
    """
    still = classify(images).argmax(1) if unmoved is None else unmoved  # (B,)

    def predicted(offset: int, down: int, right: int) -> Tensor:
        if offset == 0:
            return still
        return classify(shift(images, offset * down, offset * right)).argmax(1)

    return {
        name: torch.stack(
            [torch.stack([predicted(offset, *way) for way in ways]) for offset in offsets]
        )
        for name, ways in directions.items()
    }


def agreement(predictions: Tensor, wanted: Tensor) -> list[float]:
    """Share of (offsets, ways, N) ``predictions`` that equal ``wanted`` (N,), by offset.

    Against the predictions at offset 0 this is the shift consistency, against the labels the
    accuracy on shifted images. Both lie in [0, 1].
    """
    return (predictions == wanted).double().mean((1, 2)).tolist()


def token_distances(side: int, patch: float) -> Tensor:
    """Euclidean distance in pixels between the centres of a grid's patches, (T, T) float32.

    ``side`` is tokens per side, T = side squared in row-major order, ``patch`` pixels per token.
    """
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centres = torch.stack((rows.flatten(), columns.flatten()), 1).double()  # (T, 2)
    return (torch.cdist(centres, centres) * patch).float()


def mean_distances(weights: Tensor, distances: Tensor) -> Tensor:
    """Attention-weighted mean distance of each head and image, (B, heads) float32.

    ``weights`` is (B, heads, P + T, P + T), rows are queries, where P prefix tokens (class,
    registers) come first; ``distances`` is (T, T). Prefix tokens have no place in the picture: they
    are left out as queries and as keys, and each query's other weights are scaled to sum to 1.
    """
    patches = len(distances)
    between = weights[..., -patches:, -patches:].float()  # (B, heads, T, T)
    # a query that gives every patch exactly nothing looks nowhere: distance 0
    mass = between.sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    weighted = torch.einsum("bhqk,qk->bhq", between, distances)
    return (weighted / mass).mean(-1)


@torch.no_grad()
def attention_distances(
    module: nn.Module, images: Tensor, *, patch: int | None = None
) -> list[list[float]]:
    """Mean attention distance in pixels over ``images`` by layer and head, layers in forward order.

    ``images`` is (N, 3, S, S) as the model takes them; ``patch`` is pixels per token (``None``: S
    over the grid's side). Empty for a model without attention over all patches of a picture: a
    residual network, windows. Attention is switched to its explicit form meanwhile.
    """
    count: int = getattr(getattr(module, "patch_embed", None), "num_patches", None) or 0
    prefix = getattr(module, "num_prefix_tokens", 0)
    side = math.isqrt(count)
    if not count or side * side != count:
        return []
    pixels = images.shape[-1] / side if patch is None else patch
    distances = token_distances(side, pixels).to(images.device)
    square = (prefix + count, prefix + count)
    sums: list[Tensor] = []  # (heads,) of each layer, chunk after chunk
    chunks = torch.split(images, CHUNK)

    def keep(weights: Tensor) -> None:
        if len(weights) <= CHUNK and weights.shape[2:] == square:
            sums.append(mean_distances(weights, distances).sum(0))

    with explicit_attention(module, keep):
        for chunk in chunks:
            module.forward(chunk)  # not module(): a compiled module would run without its hooks
    layers = len(sums) // len(chunks)
    return [(torch.stack(sums[i::layers]).sum(0) / len(images)).tolist() for i in range(layers)]


@contextmanager
def explicit_attention(module: nn.Module, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Call ``keep`` with each attention's weights after softmax, (B, heads, queries, keys).

    timm's attentions have ``fused_attn``, which hides the weights, and pass them through
    ``attn_drop`` where it is off. Afterwards the module is as it was.
    """
    attentions: list[Any] = [
        part
        for part in module.modules()
        if hasattr(part, "fused_attn") and isinstance(getattr(part, "attn_drop", None), nn.Module)
    ]
    fused = [part.fused_attn for part in attentions]
    hooks = [
        part.attn_drop.register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
        for part in attentions
    ]
    try:
        for part in attentions:
            part.fused_attn = False
        yield
    finally:
        for part, was in zip(attentions, fused, strict=True):
            part.fused_attn = was
        for hook in hooks:
            hook.remove()
