"""What models are judged by: the closed list of metrics, and their figures on one split.

One ``Metric`` of a run drives rungs, winners, finals and verdicts; the others are recorded beside
it. scikit-learn computes those that are no mean over images. Classes without an image in the split
say nothing of a model and are left out of every mean over classes; a figure that cannot be had is
absent, never 0.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trainables.errors import UserError

if TYPE_CHECKING:  # the command line reads names of metrics, and does without numpy
    import numpy as np
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]
    Matrix = npt.NDArray[np.float32]

RECALL, PRECISION = "recall", "precision"
TOP5_CLASSES = 5
# The area under the curves sorts all images once for each class. Up to so many images times classes
# that takes a second or less; beyond it, the area is measured where the run is judged by it.
AUROC_SCORES = 1_000_000
CONFIDENCE_BINS = 15  # Guo et al. 2017, section 3


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to judge a model. ``name`` is as it is typed, ``noun`` as people say it, ``source``
    the paper or the convention that defines it. Of ``recall:CLASS`` and ``precision:CLASS@RECALL``
    ``class_name`` is the class, of the latter ``least_recall`` the recall.

    Figures are kept and shown as they are; ``score`` is where they are compared.
    """

    name: str
    noun: str
    definition: str
    source: str
    larger_is_better: bool = True
    class_name: str | None = None
    least_recall: float | None = None

    @property
    def val_key(self) -> str:
        """Its name in an epoch's report."""
        return f"val_{self.name}"

    @property
    def test_key(self) -> str:
        """Its name among what finals measured on test, where these have a prefix."""
        return f"test_{self.name}"

    @property
    def is_share(self) -> bool:
        """Whether it lies in [0, 1] and is read in percent."""
        return self.larger_is_better

    @property
    def is_image_share(self) -> bool:
        """Whether it is the share of images that a model gets right, so that one image more or less
        changes it by as much as any other."""
        return self.name in ("top1", "top5")

    @property
    def needs_probabilities(self) -> bool:
        """Whether predicted classes alone do not tell it."""
        return self.name == "auroc" or self.least_recall is not None

    def score(self, value: Any) -> Any:
        """``value``, or an array of them, on the scale where figures are compared: in [0, 1], a
        larger one is better. A loss is the geometric mean of the probabilities that images' own
        classes were given, ``exp(-loss)``: a model that never came to be has a score of 0."""
        if self.larger_is_better:
            return value
        import numpy as np

        return np.exp(np.negative(value))

    def of_score(self, score: Any) -> Any:
        """The figure with that score: the inverse of :meth:`score`."""
        if self.larger_is_better:
            return score
        import numpy as np

        with np.errstate(divide="ignore"):
            return np.negative(np.log(score)) + 0.0

    def advantage(self, a: float, b: float) -> float:
        """By how much ``a`` is better than ``b``, in the figures' own unit."""
        return a - b if self.larger_is_better else b - a

    def chance(self, classes: int) -> float | None:
        """What guessing reaches among so many classes, as many images of each; ``None`` where that
        takes more than their number to tell."""
        return {"top1": 1 / classes, "top5": min(1.0, 5 / classes)}.get(self.name)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "noun": self.noun,
            "larger_is_better": self.larger_is_better,
            "definition": self.definition,
            "source": self.source,
        }


TOP1 = Metric(
    name="top1",
    noun="accuracy",
    definition="share of images whose most probable class is their own",
    source="the accuracy of ILSVRC (Russakovsky et al. 2015, section 4.1)",
)
PLAIN = {
    metric.name: metric
    for metric in (
        TOP1,
        Metric(
            name="top5",
            noun="top-5 accuracy",
            definition=(
                "share of images whose own class is among the five most probable; from 5 classes on"
            ),
            source="the top-5 accuracy of ILSVRC (Russakovsky et al. 2015, section 4.1)",
        ),
        Metric(
            name="macro_f1",
            noun="macro F1",
            definition=(
                "mean over classes of F1, the harmonic mean of a class's precision and recall: a "
                "rare class counts as much as a frequent one"
            ),
            source="sklearn.metrics.f1_score, average='macro' (Opitz and Burst 2019: mean of F1s)",
        ),
        Metric(
            name="balanced_accuracy",
            noun="balanced accuracy",
            definition="mean over classes of recall: accuracy as if all classes had as many images",
            source="sklearn.metrics.balanced_accuracy_score (Brodersen et al. 2010)",
        ),
        Metric(
            name="auroc",
            noun="AUROC",
            definition=(
                "mean over classes of the area under the ROC curve of a class against all others, "
                "by its probability; at least two classes need images"
            ),
            source=(
                "sklearn.metrics.roc_auc_score, multi_class='ovr', average='macro' (Fawcett 2006, "
                "section 9)"
            ),
        ),
        Metric(
            name="loss",
            noun="loss",
            definition="mean cross-entropy of images' own classes, in nats; lower is better",
            source="sklearn.metrics.log_loss; torch.nn.functional.cross_entropy",
            larger_is_better=False,
        ),
    )
}
FORMS = (*PLAIN, "recall:CLASS", "precision:CLASS@RECALL")
OTHER_NAMES = {"accuracy": "top1", "acc": "top1", "acc1": "top1", "error": "top1", "f1": "macro_f1"}
MEANS: Collection[str] = ("top1", "top5", "loss")  # over images
# Recorded of every epoch and of test where they can be had, in this order.
RECORDED = ("top1", "top5", "loss", "macro_f1", "balanced_accuracy", "auroc")


@lru_cache(maxsize=256)
def metric_of(text: str) -> Metric:
    """The metric that ``text`` names, ``macro_f1`` or ``precision:CLASS@RECALL``.

    A class is named as the data set names it, whatever characters that has; RECALL is a fraction
    above 0, after the last ``@``. Raises ``UserError``, whose line lists the valid ones.
    """
    if text in PLAIN:
        return PLAIN[text]
    kind, colon, rest = text.partition(":")
    if kind == RECALL and rest:
        return Metric(
            name=text,
            noun=f"recall of {rest}",
            definition=f"share of the images of {rest} whose most probable class is {rest}",
            source="sklearn.metrics.recall_score",
            class_name=rest,
        )
    class_name, _, number = rest.rpartition("@")
    recall = _fraction(number)
    if kind == PRECISION and class_name and recall is not None:
        return Metric(
            name=text,
            noun=f"precision of {class_name} at recall {number}",
            definition=(
                f"best share of true ones among the images taken for {class_name}, at any bar to "
                f"its probability that finds {number} or more of its images"
            ),
            source="sklearn.metrics.precision_recall_curve (Davis and Goadrich 2006)",
            class_name=class_name,
            least_recall=recall,
        )
    near = difflib.get_close_matches(kind if colon else text, FORMS, n=1, cutoff=0.4)
    if text.lower() in OTHER_NAMES:
        near = [OTHER_NAMES[text.lower()]]
    raise UserError(
        f"metric must be one of {', '.join(FORMS)} (RECALL in (0, 1]); got {text!r}. "
        f"Fix: --metric {near[0] if near else 'macro_f1'}"
    )


def _fraction(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value <= 1 else None


def class_mistakes(metric: Metric, class_names: Sequence[str]) -> list[str]:
    """Why images of these classes cannot be judged by ``metric``; empty where they can."""
    if metric.name == "top5" and len(class_names) < TOP5_CLASSES:
        return [
            f"metric top5 needs {TOP5_CLASSES} classes; got {len(class_names)}. Fix: --metric top1"
        ]
    if metric.class_name is None or metric.class_name in class_names:
        return []
    near = difflib.get_close_matches(metric.class_name, class_names, n=3, cutoff=0.4)
    nearest = near or list(class_names[:3])
    fix = metric.name.replace(f":{metric.class_name}", f":{nearest[0]}", 1) if nearest else "top1"
    return [
        f"metric {metric.name} needs a class of the images; got {metric.class_name!r}; "
        f"{'near' if near else 'valid'}: {', '.join(nearest)} "
        f"(of {len(class_names)}). Fix: --metric '{fix}'"
    ]


def is_area_recorded(images: int, classes: int) -> bool:
    """Whether ``auroc`` is measured of so many images where the run is judged by another metric."""
    return images * classes <= AUROC_SCORES


def figure_of(
    metric: Metric,
    labels: Labels,
    predicted: Labels,
    probabilities: Matrix | None = None,
    class_names: Sequence[str] = (),
) -> float | None:
    """The metric, one that is no mean over images, of ``labels`` (N,) and ``predicted`` (N,), most
    probable classes; by ``probabilities`` (N, classes) where it ``needs_probabilities``.

    ``None`` where the split has no image that tells it. Raises ``ValueError`` for a class that is
    not in ``class_names``.
    """
    import numpy as np
    from sklearn import metrics as sk  # a second of imports, once in a process

    present = np.unique(labels)
    if not len(present):
        return None
    if metric.name == "macro_f1":
        return float(sk.f1_score(labels, predicted, labels=present, average="macro",
                                 zero_division=0))  # fmt: skip
    if metric.name == "balanced_accuracy":
        return float(sk.recall_score(labels, predicted, labels=present, average="macro",
                                     zero_division=0))  # fmt: skip
    if metric.name == "auroc":
        assert probabilities is not None
        if len(present) < 2:
            return None
        areas = [sk.roc_auc_score(labels == c, probabilities[:, c]) for c in present]
        return math.fsum(areas) / len(areas)
    index = class_names.index(str(metric.class_name))
    own = labels == index
    if not own.any():
        return None
    if metric.least_recall is None:
        return float(np.mean(predicted[own] == index))
    assert probabilities is not None
    precision, recall, _ = sk.precision_recall_curve(own, probabilities[:, index])
    return float(precision[recall >= metric.least_recall].max())


def beside_means(
    judged: Metric,
    labels: Labels,
    predicted: Labels,
    probabilities: Matrix | None,
    class_names: Sequence[str],
) -> dict[str, float]:
    """By name, all figures of labels and predicted classes, (N,) each, that are no mean over
    images: those that are recorded and the ``judged`` one, without those that are missing;
    ``auroc`` where there are ``probabilities`` (N, classes). Images train where scikit-learn is not
    installed: then there are none, unless the run is judged by one."""
    if judged.name in MEANS and importlib.util.find_spec("sklearn") is None:
        return {}
    wanted = [PLAIN[name] for name in RECORDED if name not in MEANS]
    if judged.name not in RECORDED:
        wanted.append(judged)
    figures = {
        metric.name: figure_of(metric, labels, predicted, probabilities, class_names)
        for metric in wanted
        if probabilities is not None or not metric.needs_probabilities
    }
    return {name: value for name, value in figures.items() if value is not None}


def binned_confidence(
    confidence: npt.NDArray[Any], right: npt.NDArray[Any], *, bins: int = CONFIDENCE_BINS
) -> npt.NDArray[np.float64]:
    """(3, bins): images, right ones and the sum of confidences by bin, of ``confidence`` (N,), the
    probability of the predicted class, and ``right`` (N,), whether it is the label's. Bin m of M
    holds confidences in ((m - 1) / M, m / M]."""
    import numpy as np

    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    index = np.searchsorted(inner_edges, confidence.astype(np.float64))  # closed on the right
    weights: list[Any] = [None, right, confidence]
    return np.stack([np.bincount(index, weights=each, minlength=bins) for each in weights])


def reliability(binned: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """Of (3, bins), each bin that holds images: its ends ``low`` and ``high``, their ``count``,
    ``accuracy`` and mean ``confidence``."""
    bins = binned.shape[1]
    return [
        {
            "low": m / bins,
            "high": (m + 1) / bins,
            "count": int(count),
            "accuracy": float(right / count),
            "confidence": float(confidence / count),
        }
        for m, (count, right, confidence) in enumerate(binned.T)
        if count
    ]


def calibration_error(binned: npt.NDArray[np.float64]) -> float:
    """The expected calibration error of (3, bins), in [0, 1]: mean over images of |accuracy -
    confidence| of their bin (Guo et al. 2017, section 2). Raises ``ZeroDivisionError`` without
    images."""
    import numpy as np

    count, right, confidence = binned
    return float(np.abs(right - confidence).sum()) / int(count.sum())
