"""How far a transformer looks: mean attention distance of every head, in pixels.

Dosovitskiy et al. 2021 ("An image is worth 16x16 words", figure 7 and appendix D.7) average the
distance between a query and all other positions, weighted by attention; Raghu et al. 2021 ("Do
vision transformers see like convolutional neural networks?", figure 3) compare layers by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 8  # images at a time: explicit weights of 1024 tokens take 4 MB a head and image


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
    count, prefix = patch_count(module), getattr(module, "num_prefix_tokens", 0)
    side = math.isqrt(count)
    if not count or side * side != count:
        return []
    pixels = images.shape[-1] / side if patch is None else patch
    distances = token_distances(side, pixels).to(images.device)
    square = (prefix + count, prefix + count)
    sums: dict[int, Tensor] = {}  # (heads,) by layer
    for part in torch.split(images, CHUNK):
        layers: list[Tensor] = []

        def keep(weights: Tensor, images: int = len(part), seen: list[Tensor] = layers) -> None:
            if len(weights) == images and weights.shape[2:] == square:
                seen.append(mean_distances(weights, distances).sum(0))

        with explicit_attention(module, keep):
            module.forward(part)  # not module(): a compiled module would run without its hooks
        sums = {i: sums.get(i, 0) + layer for i, layer in enumerate(layers)}
    return [(total / len(images)).tolist() for total in sums.values()]


def patch_count(module: nn.Module) -> int:
    """Patches per picture of a timm transformer; 0 for a model that cuts no patches."""
    embed: Any = getattr(module, "patch_embed", None)
    count: int = getattr(embed, "num_patches", None) or 0
    return count


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
