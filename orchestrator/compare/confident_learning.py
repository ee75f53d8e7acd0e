"""Labels that are suspected to be wrong, by confident learning (Northcutt, Jiang and Chuang,
"Confident learning: estimating uncertainty in dataset labels", JAIR 70, 2021).

A class is confident of an image where its probability is at least the mean that the class has among
the images labelled as it (section 3.1). Images by their label and by the most probable class that
is confident make the confident joint, whose off-diagonal counts, calibrated to the number of labels
of each class, estimate how many labels are wrong.

Suspected are the images off that diagonal whose label is less probable than the confident class
(the paper's method 2, ``C``, section 3.2). cleanlab is the authors' own library; these forty lines
need no more than numpy, and the test compares them with the paper's definitions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.compare.runs import Array


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelErrors:
    """``suspected`` (N,) flags, the class that is ``suggested`` in place of each label (N,), and
    the ``joint`` (classes, classes): estimated share of images by given label and true class."""

    suspected: Array
    suggested: Array
    joint: Array

    @property
    def noise_share(self) -> float:
        """Estimated share of labels that are wrong."""
        return float(1.0 - np.trace(self.joint))


def label_errors(labels: Array, probabilities: Array) -> LabelErrors:
    """Of images with ``labels`` (N,) and out-of-sample ``probabilities`` (N, classes)."""
    count, num_classes = probabilities.shape
    rows = np.arange(count)
    own = probabilities[rows, labels].astype(np.float64)
    counts = np.bincount(labels, minlength=num_classes)
    # A class that no image is labelled as is never confident.
    sums = np.bincount(labels, weights=own, minlength=num_classes)
    thresholds = np.where(counts > 0, sums / np.maximum(1, counts), np.inf)  # (classes,)
    confident = np.where(probabilities >= thresholds.astype(probabilities.dtype), probabilities, -1)
    suggested = confident.argmax(1)  # (N,)
    is_confident = confident[rows, suggested] >= 0
    kept = is_confident & (suggested != labels)
    suspected = kept & (probabilities[rows, suggested] > probabilities[rows, labels])
    flat = labels[is_confident] * num_classes + suggested[is_confident]
    joint = np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)
    return LabelErrors(
        suspected=suspected,
        suggested=np.where(is_confident, suggested, labels),
        joint=_calibrated(joint.astype(np.float64), counts),
    )


def _calibrated(joint: Array, counts: Array) -> Array:
    """Rows scaled to the labels of each class, the whole to 1; a class without any confident image
    is taken at its labels."""
    empty = joint.sum(1) == 0
    joint[empty, empty] = 1.0
    scaled = joint / joint.sum(1, keepdims=True) * counts[:, None]
    return np.asarray(scaled / max(1, counts.sum()))
