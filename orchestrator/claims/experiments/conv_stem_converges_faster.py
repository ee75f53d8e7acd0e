"""Does a ViT over a convolutional stem reach an accuracy sooner than one over patches?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np

from orchestrator.claims.claim import Arm, Setting
from orchestrator.claims.effects import Effect, Json, Measured, NoVerdict, diagram, line, points
from orchestrator.claims.results import RATE, Array, TrialResult, by_rate, grouped, reached

FAMILIES = ("vit", "hybrid")
FAILED_COUNT = True
TIMES_RATE = (0.3, 1.0, 3.0)  # of the usual rate
SHARES = (0.1, 0.2, 0.3)  # of the way from chance to perfect: the accuracies to reach
SHOWN = 0.2
THRESHOLDS = {"accuracies to reach": SHARES, "accuracy shown": SHOWN}

ByFamily = dict[str, list[TrialResult]]


def arms(setting: Setting) -> list[Arm]:
    """Architecture x learning rate."""
    (usual,) = setting.rates("vit")
    return [
        Arm(family, setting.preset.epochs, {RATE: float(f"{usual * times:.3g}")})
        for times in TIMES_RATE
        for family in FAMILIES
    ]


def measure(results: Sequence[TrialResult]) -> Measured:
    """log10 of the ViT's restricted mean time over the hybrid's, in epochs and in seconds.

    A run that never reaches an accuracy, or failed, counts with the whole time that was given
    (Royston & Parmar 2013, restricted mean survival time).
    """
    if not events(results, SHARES[0])[1].any():
        raise NoVerdict(f"no run came {SHARES[0]:.0%} of the way from chance to perfect")
    by_family: ByFamily = grouped(results, lambda result: result.trial.family)
    effects = []
    for unit in ("epochs", "seconds"):
        times = _restricted(results, unit)
        ratios = np.log10(times["vit"] / times["hybrid"])
        effects.append(Effect(f"{unit} of ViT over those of the hybrid", ratios.tolist(), "ratio"))
    tables = {family: by_rate(by_family[family])[1] for family in FAMILIES}  # (rates, n) each
    loss = {family: table.max(axis=0) - table.mean(axis=0) for family, table in tables.items()}
    more = {"loss from a learning rate that is off, ViT over hybrid": loss["vit"] - loss["hybrid"]}
    return Measured(
        effects=effects,
        others=points(more),
        pictures=lambda: [_survival(by_family), _curves(by_family)],
        notes=[
            *(_arrivals(family, by_family[family]) for family in FAMILIES),
            "Both see the same images in an epoch, so the ratio of images is that of epochs.",
        ],
    )


def spent(result: TrialResult, unit: str) -> Array:
    """Epochs, or seconds of training, after each epoch; (E,)."""
    return result.epochs if unit == "epochs" else np.cumsum(result.curve("train_seconds"))


def time_to(result: TrialResult, share: float, unit: str) -> float:
    """What it took to come ``share`` of the way from chance to perfect; inf if it never did."""
    if not result.trial.reports:
        return math.inf
    goal = result.chance + share * (1 - result.chance)
    took = reached(result, goal, spent(result, unit))
    return math.inf if took is None else took


def _restricted(results: Sequence[TrialResult], unit: str) -> dict[str, Array]:
    """Mean over rates and accuracies of the time to reach them, by family; (n,)."""
    means: dict[str, list[float]] = {family: [] for family in FAMILIES}
    by_seed = grouped(results, lambda result: result.seed)
    for seed, of_seed in sorted(by_seed.items()):
        ends = [float(spent(result, unit)[-1]) for result in of_seed if result.finished]
        if not ends:
            raise NoVerdict(f"no trial of seed {seed + 1} was trained to its end")
        horizon = min(ends)
        for family, values in means.items():
            times = [
                min(time_to(result, share, unit), horizon)
                for result in of_seed
                if result.trial.family == family
                for share in SHARES
            ]
            values.append(float(np.mean(times)))
    return {family: np.array(values) for family, values in means.items()}


def events(results: Sequence[TrialResult], share: float) -> tuple[Array, Array]:
    """Epochs to the accuracy, or to the end of a run that never reached it, and whether it did."""
    took = np.array([time_to(result, share, "epochs") for result in results])
    arrived = np.isfinite(took)
    return np.where(arrived, took, [result.trial.assignment.epochs for result in results]), arrived


def _arrivals(family: str, results: Sequence[TrialResult]) -> str:
    arrived, failed = events(results, SHOWN)[1], [r for r in results if not r.finished]
    return (
        f"{family}: {arrived.sum()} of {len(results)} runs came {100 * SHOWN:.0f} % of the way "
        f"from chance to perfect; {len(failed)} failed."
    )


def _survival(by_family: ByFamily) -> Json:
    """Kaplan & Meier's estimate (1958) of the share of runs that have reached the accuracy."""
    from scipy.stats import CensoredData, ecdf, logrank

    curves, samples = [], []
    horizon = max(result.trial.assignment.epochs for result in chain(*by_family.values()))
    for place, family in enumerate(FAMILIES):
        lasted, arrived = events(by_family[family], SHOWN)
        samples.append(CensoredData(uncensored=lasted[arrived], right=lasted[~arrived]))
        estimate = ecdf(samples[-1]).cdf
        x = np.array([0.0, *estimate.quantiles, horizon])
        shares = np.array([[0.0, *estimate.probabilities, estimate.probabilities[-1]]])
        curves.append(line(family, place, x, shares, stepped=True))
    p_value = float(logrank(*samples).pvalue)
    # Runs of one seed are not independent: the test describes, it decides nothing.
    log_rank = f"; log-rank p = {p_value:.2g}, as if runs were independent"
    test = log_rank if np.isfinite(p_value) else ""
    title = f"Runs {100 * SHOWN:.0f} % of the way from chance to perfect{test}"
    return diagram(title, "epochs", curves, y_label="share of runs, %")


def _curves(by_family: ByFamily) -> Json:
    """Accuracy against epochs, mean over the learning rates of those trained to the end."""
    series = []
    for place, family in enumerate(FAMILIES):
        finished = grouped((r for r in by_family[family] if r.finished), lambda r: r.seed)
        means = [
            np.mean([result.accuracy for result in of_seed], axis=0)  # (E,)
            for _, of_seed in sorted(finished.items())
        ]
        if means:
            x = np.arange(1, len(means[0]) + 1)
            series.append(line(family, place, x, np.stack(means)))
    return diagram("Accuracy against epochs, mean over learning rates", "epoch", series)
