"""Is the model as sure as it is right? Expected calibration error.

Guo et al. 2017 ("On calibration of modern neural networks", section 2), equal-width bins as in
Naeini et al. 2015.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 15


def calibration(probabilities: Tensor, labels: Tensor, *, bins: int = BINS) -> dict[str, Any]:
    """``ece`` and its reliability table, from (N, classes) probabilities and labels (N,).

    ``ece`` is the mean over images of |accuracy - confidence| of their bin, in [0, 1]; bin m of M
    holds confidences in ((m - 1) / M, m / M]. The table ``bins`` lists those that hold any:
    ``low``, ``high``, ``count``, ``accuracy``, ``confidence``. Raises ``ValueError`` on 0 images.
    """
    if not len(labels):
        raise ValueError("calibration needs an image at least; got 0")
    confidence, predicted = probabilities.double().max(1)  # (N,), (N,)
    right = (predicted == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    index = torch.bucketize(confidence, edges[1:-1])  # (N,): intervals closed on the right
    counts = torch.bincount(index, minlength=bins).tolist()
    table = []
    for m, count in enumerate(counts):
        if count:
            inside = index == m
            table.append(
                {
                    "low": edges[m].item(),
                    "high": edges[m + 1].item(),
                    "count": count,
                    "accuracy": right[inside].mean().item(),
                    "confidence": confidence[inside].mean().item(),
                }
            )
    gaps = [row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table]
    return {"ece": sum(gaps) / len(labels), "bins": table}
