"""Does a ViT over a convolutional stem reach an accuracy sooner than one over patches?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Claim, Setting
from orchestrator.claims.effects import Effect, Measured, NoVerdict, Picture, Series, points
from orchestrator.claims.results import (
    RATE,
    TrialResult,
    all_seeds,
    by_rate,
    final_or_chance,
    reached,
    select,
)

Array = np.ndarray
FAMILIES = ("vit", "hybrid")
TIMES_RATE = (0.3, 1.0, 3.0)  # of the usual rate
SHARES = (0.1, 0.2, 0.3)  # of the way from chance to perfect: the accuracies to reach
SHOWN = 0.2


def arms(setting: Setting) -> list[Arm]:
    """Architecture x learning rate."""
    (usual,) = setting.rates("vit")
    return [
        Arm(
            family=family,
            epochs=setting.preset.epochs,
            levels={RATE: float(f"{usual * times:.3g}")},
        )
        for times in TIMES_RATE
        for family in FAMILIES
    ]


def measure(results: Sequence[TrialResult]) -> Measured:
    """log10 of the ViT's restricted mean time over the hybrid's, in epochs and in seconds.

    A run that never reaches an accuracy, or failed, counts with the whole time that was given
    (Royston & Parmar 2013, restricted mean survival time).
    """
    seeds = all_seeds(results)
    if not any(times_to(result, SHARES[0], "epochs") is not None for result in results):
        raise NoVerdict(f"no run came {SHARES[0]:.0%} of the way from chance to perfect")
    by_unit = {unit: _restricted(results, seeds, unit) for unit in ("epochs", "seconds")}
    shortfall = {family: _shortfall(results, family) for family in FAMILIES}
    return Measured(
        seeds=len(seeds),
        effects=tuple(
            Effect(name=f"{unit} of ViT over those of the hybrid", unit="ratio",
                   values=tuple(map(float, np.log10(times["vit"] / times["hybrid"]))))
            for unit, times in by_unit.items()
        ),
        others=(
            points("loss from a learning rate that is off, ViT over hybrid",
                   shortfall["vit"] - shortfall["hybrid"]),
        ),
        pictures=lambda: [_survival(results), _curves(results, seeds)],
        notes=_notes(results),
    )  # fmt: skip


def spent(result: TrialResult, unit: str) -> Array:
    """Epochs, or seconds of training, after each epoch; (E,)."""
    return result.epochs if unit == "epochs" else np.cumsum(result.curve("train_seconds"))


def times_to(result: TrialResult, share: float, unit: str) -> float | None:
    """What it took to come ``share`` of the way from chance to perfect; None if it never did."""
    if not result.trial.reports:
        return None
    goal = result.chance + share * (1 - result.chance)
    return reached(result, goal, spent(result, unit))


def _restricted(
    results: Sequence[TrialResult], seeds: Sequence[int], unit: str
) -> dict[str, Array]:
    """Mean over rates and accuracies of the time to reach them, by family; (n,)."""
    means: dict[str, list[float]] = {family: [] for family in FAMILIES}
    for seed in seeds:
        finished = [result for result in select(results, seed=seed) if result.finished]
        if not finished:
            raise NoVerdict(f"no trial of seed {seed + 1} was trained to its end")
        horizon = min(float(spent(result, unit)[-1]) for result in finished)
        for family in FAMILIES:
            times = [
                horizon if (took := times_to(result, share, unit)) is None else min(took, horizon)
                for result in select(results, family=family, seed=seed)
                for share in SHARES
            ]
            means[family].append(float(np.mean(times)))
    return {family: np.array(values) for family, values in means.items()}


def _shortfall(results: Sequence[TrialResult], family: str) -> Array:
    """Final accuracy at the best rate less the mean over rates, (n,); a failed one is at chance."""
    _, table = by_rate(select(results, family=family), final_or_chance)
    return np.asarray(table.max(axis=0) - table.mean(axis=0))


def events(results: Sequence[TrialResult], share: float) -> tuple[Array, Array]:
    """Epochs to the accuracy, or to the end of a run that never reached it, and whether it did."""
    took = [times_to(result, share, "epochs") for result in results]
    lasted = [float(c.asked_epochs) if t is None else t for c, t in zip(results, took, strict=True)]
    return np.array(lasted), np.array([time is not None for time in took])


def _survival(results: Sequence[TrialResult]) -> Picture:
    """Kaplan & Meier's estimate (1958) of the share of runs that have reached the accuracy."""
    from scipy.stats import CensoredData, ecdf, logrank

    curves, samples = [], []
    horizon = float(max(result.asked_epochs for result in results))
    for place, family in enumerate(FAMILIES):
        lasted, arrived = events(select(results, family=family), SHOWN)
        samples.append(CensoredData(uncensored=lasted[arrived], right=lasted[~arrived]))
        estimate = ecdf(samples[-1]).cdf
        x = (0.0, *map(float, estimate.quantiles), horizon)
        shares = (0.0, *estimate.probabilities, estimate.probabilities[-1])
        heights = np.array([shares])
        curves.append(Series(name=family, place=place, x=x, values=heights, stepped=True))
    p_value = float(logrank(*samples).pvalue)
    # Runs of one seed are not independent: the test describes, it decides nothing.
    log_rank = f"; log-rank p = {p_value:.2g}, as if runs were independent"
    test = log_rank if np.isfinite(p_value) else ""
    return Picture(
        title=f"Runs {100 * SHOWN:.0f} % of the way from chance to perfect{test}",
        x_label="epochs",
        y_label="share of runs, %",
        series=curves,
    )


def _curves(results: Sequence[TrialResult], seeds: Sequence[int]) -> Picture:
    """Accuracy against epochs, mean over the learning rates of those trained to the end."""
    means: dict[str, list[Array]] = {}
    for family in FAMILIES:
        for seed in seeds:
            finished = [r for r in select(results, family=family, seed=seed) if r.finished]
            if finished:
                mean = np.mean([result.accuracy for result in finished], axis=0)  # (E,)
                means.setdefault(family, []).append(mean)
    return Picture(
        title="Accuracy against epochs, mean over learning rates",
        x_label="epoch",
        series=[
            Series(
                name=family,
                place=FAMILIES.index(family),
                x=tuple(map(float, range(1, len(rows[0]) + 1))),
                values=np.stack(rows),
            )
            for family, rows in means.items()
        ],
    )


def _notes(results: Sequence[TrialResult]) -> tuple[str, ...]:
    notes = []
    for family in FAMILIES:
        runs = select(results, family=family)
        arrived = int(events(runs, SHOWN)[1].sum())
        notes.append(
            f"{family}: {arrived} of {len(runs)} runs came {100 * SHOWN:.0f} % of the way from "
            f"chance to perfect; {sum(not result.finished for result in runs)} failed."
        )
    notes.append("Both see the same images in an epoch, so the ratio of images is that of epochs.")
    return tuple(notes)


CLAIM = Claim.declared(__file__, families=FAMILIES, arms=arms, measure=measure)
