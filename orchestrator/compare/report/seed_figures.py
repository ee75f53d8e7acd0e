"""Figures of means over seeds: a claim's effects against the smallest that would matter and what it
measured, then the final models: what they measured on test, that against what it costs, and their
probes, one mark, line or bar a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.compare.choice import Basis, Front, Price, Tradeoffs
from orchestrator.compare.families import CandidateSummary
from orchestrator.compare.probes import PooledProbes, ReliabilityBin
from orchestrator.compare.report import figures
from orchestrator.compare.report.figures import Figure, Places
from orchestrator.compare.runs import Array, Values
from orchestrator.compare.statistics import MeanInterval
from orchestrator.compare.table import price_text
from orchestrator.wording import MISSING, NONE, axis_of, count, figure
from trainables.metrics import metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNIT_WORDS = {"points": "points", "ratio": "times", "decades": "decades"}
LONGEST_NAME = 32  # of a candidate in a figure, in characters
DISTANCE, LATENCY = "attention_distance_px", "speed.batch_1.latency_ms"
# (series, what was done at its steps, title, axis labels) of shares against what was done.
BY_STEP = (
    ("shift.consistency.axis", "shift.offsets_px", "Shift consistency",
     ("offset, pixels", "same answer, %")),
    ("occlusion.top1", "occlusion.shares", "Occlusion", ("share hidden, %", "accuracy, %")),
)  # fmt: skip


def claim_figures(claim: Values, verdict: Values, name: str) -> list[Figure]:
    """The effects, where there are any, then every diagram of the verdict."""
    if not verdict:
        return []
    effects = [_effects(claim, verdict, name)] if verdict["effects"] else []
    return effects + [_lines(one, f"{name}-{i}") for i, one in enumerate(verdict["pictures"])]


def on_axis(value: float, unit: str) -> float:
    """An effect's value on its axis."""
    return {"points": 100 * value, "ratio": 10**value}.get(unit, value)


def effect_text(value: float | None, unit: str) -> str:
    """An effect's value on its axis, to three digits."""
    return NONE if value is None else f"{on_axis(value, unit):.3g}"


def _effects(claim: Values, verdict: Values, name: str) -> Figure:
    """Each effect with its interval and its seeds, against the smallest one of interest."""
    unit, effects = claim["unit"], [*verdict["effects"], *verdict["others"]]
    shown = [effect for effect in effects if effect["unit"] == unit][::-1]
    with figures.new_plot(size=(4.4, 0.8 + 0.48 * len(shown)), grid="x") as axes:
        for place, effect in enumerate(shown):
            ink = figures.color(0) if "verdict" in effect else figures.MUTED
            seeds = [on_axis(value, unit) for value in effect["values"]]
            axes.plot(seeds, [place] * len(seeds), "|", color=figures.MUTED, markersize=7)
            if effect["low"] is not None:
                low, high = (on_axis(effect[end], unit) for end in ("low", "high"))
                axes.hlines(place, low, high, color=ink, linewidth=2.2)
            axes.plot(on_axis(effect["mean"], unit), place, "o", color=ink, markersize=6)
            axes.annotate(effect["name"], (0, place + 0.3), xycoords=axes.get_yaxis_transform(),
                          fontsize=8.5)  # fmt: skip
        smallest = on_axis(claim["smallest_effect"], unit)
        axes.axvline(on_axis(0.0, unit), color=figures.MUTED, linewidth=0.9)
        axes.axvline(smallest, color=figures.INK, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set(yticks=[], ylim=(-0.4, len(shown) - 0.1), xlabel=UNIT_WORDS[unit])
        axes.spines["left"].set_visible(False)
        if unit == "ratio":
            _plain_log(axes)
        names = ", ".join(effect["name"] for effect in shown[::-1])
        label = f"Effects with their intervals: {names}"
        return figures.figure_of(axes, f"{name}-effects", "Effects", label, effects)


def _plain_log(axes: Axes) -> None:
    """A logarithmic axis whose labels are numbers as people write them; over less than a factor
    of 5 it stays linear, where a logarithmic one would hold a single label."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    if low > 0 and high / low < 5:
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    within = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=within))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _lines(diagram: Values, name: str) -> Figure:
    """One diagram: a line a series, its interval shaded."""
    with figures.new_plot() as axes:
        for series in diagram["series"]:
            place, x = series["place"], series["x"]
            mean = 100 * np.array(series["mean"])
            low, high = (
                None if series[end] is None else 100 * np.array(series[end], dtype=float)
                for end in ("low", "high")
            )
            if series["stepped"]:
                axes.step(x, mean, where="post", color=figures.color(place), linewidth=1.8)
            else:
                figures.mean_line(axes, place, x, mean, low, high)
        if diagram["x_log"]:
            _plain_log(axes)
        if diagram["ticks"]:
            axes.set_xticks(range(len(diagram["ticks"])), diagram["ticks"])
        axes.set(xlabel=diagram["x_label"], ylabel=diagram["y_label"])
        names = ", ".join(series["name"] for series in diagram["series"])
        title = diagram["title"]
        return figures.figure_of(axes, name, title, f"{title}: {names}", diagram)


def finals_figure(
    entries: Sequence[CandidateSummary], finals: Mapping[str, Sequence[float]], places: Places
) -> Figure | None:
    """What each candidate that has ``finals`` reached on test by the judged metric, the best on
    top: its mean with its interval, a tick a final. ``None`` without any."""
    shown = [(entry, entry.final.test) for entry in entries if entry.final and entry.final.test]
    if not shown:
        return None
    metric = metric_of(shown[0][0].metric)
    shown.sort(key=lambda one: float(metric.score(one[1].mean)))  # upwards
    with figures.new_plot(size=(4.4, 0.8 + 0.5 * len(shown)), grid="x") as axes:
        for row, (entry, test) in enumerate(shown):
            ink, mark = figures.color(places[entry.family]), figures.marker(places[entry.family])
            ticks = figures.on_axis(np.array(finals[entry.family]), metric)
            axes.plot(ticks, [row] * len(ticks), "|", color=figures.MUTED, markersize=9)
            if test.low is not None and test.high is not None:
                ends = figures.on_axis(np.array([test.low, test.high]), metric)
                axes.hlines(row, *ends, color=ink, linewidth=2.2)
            axes.plot(figures.on_axis(test.mean, metric), row, mark, color=ink, markersize=6.5)
            name = entry.family if len(entry.family) <= LONGEST_NAME else f"…{entry.family[-31:]}"
            axes.annotate(f"{name}  {figure(test.mean, metric)}", (0, row + 0.24), fontsize=9.5,
                          xycoords=axes.get_yaxis_transform())  # fmt: skip
        axes.set(yticks=[], ylim=(-0.5, len(shown) - 0.25), xlabel=f"test {axis_of(metric)}")
        axes.spines["left"].set_visible(False)
        names = ", ".join(
            f"{entry.family} {figure(one.mean, metric)}" for entry, one in shown[::-1]
        )
        label = f"Test {metric.noun} with 95 % intervals: {names}"
        data = [entry for entry, _ in shown[::-1]]
        return figures.figure_of(axes, "finals", f"Test {metric.noun} of the finals", label, data)


PRICE_LABELS = {
    Price.LATENCY: ("Latency", "milliseconds for one image"),
    Price.MEMORY: ("GPU memory", "GB in training"),
    Price.DEVICE_SECONDS: ("Device time", "device seconds of the search"),
    Price.USD: ("Dollars", "dollars of the search"),
}


def front_figures(tradeoffs: Tradeoffs, places: Places) -> list[Figure]:
    """What the finals are judged by against each price that two candidates and more have; none of
    validation, of which the table says all."""
    if tradeoffs.basis is Basis.VALIDATION:
        return []
    return [
        made
        for front in tradeoffs.fronts
        if not front.why and (made := _front(tradeoffs, front, places)) is not None
    ]


def _front(tradeoffs: Tradeoffs, front: Front, places: Places) -> Figure | None:
    """A mark a candidate with its figure's interval; the front is the stepped line."""
    metric = metric_of(tradeoffs.metric)
    shown = [
        (standing, standing.judged, price)
        for standing in tradeoffs.candidates
        if standing.judged and (price := standing.price(front.price)) is not None
    ]
    if len(shown) < 2:
        return None
    title, unit = PRICE_LABELS[front.price]
    with figures.new_plot() as axes:
        ends = []
        for standing, judged, price in shown:
            place = places[standing.label]
            low = judged.mean if judged.low is None else judged.low
            high = judged.mean if judged.high is None else judged.high
            ink, ends_on_axis = figures.color(place), figures.on_axis(np.array([low, high]), metric)
            axes.vlines(price, *ends_on_axis, color=ink, linewidth=1.4)
            mean = figures.on_axis(judged.mean, metric)
            axes.plot(price, mean, figures.marker(place), color=ink)
            ends += [low, high]
        on_front = {s.label: (price, judged.mean) for s, judged, price in shown}
        x, y = np.transpose([on_front[label] for label in front.candidates])
        steps = figures.on_axis(y, metric)
        axes.step(x, steps, where="post", color=figures.MUTED, linewidth=1.2, zorder=1)
        axes.set_xlim(left=0)
        limits = figures.figure_limits(ends, metric)
        axes.set(ylim=limits, xlabel=unit, ylabel=f"test {axis_of(metric)}")
        label = f"Test {metric.noun} against {unit}: {', '.join(on_front)}"
        data = [
            (s.label, price_text(front.price, price), figure(judged.mean, metric),
             s.label in front.candidates)
            for s, judged, price in shown
        ]  # fmt: skip
        return figures.figure_of(axes, f"front-{front.price}", title, label, data)


def probe_figures(pooled: Mapping[str, PooledProbes], places: Places) -> list[Figure]:
    """A figure for each probe that a candidate has; ``pooled`` are by candidate."""
    drawn = []
    for series, steps, title, what in BY_STEP:
        if having := {f: probes for f, probes in pooled.items() if series in probes.series}:
            drawn.append(_by_step(having, places, series, steps, title, what))
    series_of = {f: p.series[DISTANCE].mean for f, p in pooled.items() if DISTANCE in p.series}
    if distances := {candidate: mean for candidate, mean in series_of.items() if mean.ndim == 2}:
        drawn.append(_attention(distances, places))
    if bins := {f: probes.reliability for f, probes in pooled.items() if probes.reliability}:
        drawn.append(_reliability(bins, places))
    if latencies := {f: p.numbers[LATENCY] for f, p in pooled.items() if LATENCY in p.numbers}:
        drawn.append(_latency(latencies, places))
    return drawn


def number(value: MeanInterval | None, scale: float = 1, unit: str = "") -> str:
    """A mean over seeds with its 95 % interval in brackets."""
    if value is None:
        return MISSING
    mean = f"{_digits(scale * value.mean)}{unit}"
    if value.low is None or value.high is None:
        return mean
    return f"{mean} ({_digits(scale * value.low)}–{_digits(scale * value.high)})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}".replace("-", "−")


def _by_step(
    pooled: Mapping[str, PooledProbes],
    places: Places,
    series: str,
    steps: str,
    title: str,
    what: tuple[str, str],
) -> Figure:
    """A share against what was done to the image: offset in pixels, hidden share in percent."""
    shown: dict[str, tuple[list[float], list[float]]] = {}
    with figures.new_plot() as axes:
        for candidate, probes in pooled.items():
            curve = probes.series[series]
            x = _steps(probes.facts.get(steps), len(curve.mean), percent="shares" in steps)
            low, high = (
                None if edge is None else 100 * np.clip(edge, 0, 1)
                for edge in (curve.low, curve.high)
            )
            figures.mean_line(axes, places[candidate], x, 100 * curve.mean, low, high)
            shown[candidate] = x, curve.mean.tolist()
        limits = figures.share_limits([share for _, mean in shown.values() for share in mean])
        axes.set(ylim=limits, xlabel=what[0], ylabel=what[1])
        name, label = title.split()[0].lower(), f"{what[1]} against {what[0]}: {', '.join(pooled)}"
        return figures.figure_of(axes, f"probe-{name}", title, label, (what, shown))


def _steps(asked: Any, n: int, *, percent: bool) -> list[float]:
    """What was done at each of ``n`` steps, shares in percent; their places where unknown."""
    if not isinstance(asked, list) or len(asked) != n:
        return list(range(n))
    return [100 * share for share in asked] if percent else asked


def _attention(heads: Mapping[str, Array], places: Places) -> Figure:
    """Mean attention distance by layer: a dot a head, the line their mean.

    ``heads``: for each candidate pixels by layer and head, shape (layers, heads).
    """
    with figures.new_plot() as axes:
        for candidate, mean in heads.items():
            layers, mark = np.arange(1, len(mean) + 1), figures.marker(places[candidate])
            ink, of_head = figures.color(places[candidate]), np.repeat(layers, mean.shape[1])
            axes.plot(of_head, mean.ravel(), mark, color=ink, alpha=0.45, markersize=3.5,
                      linestyle="none")  # fmt: skip
            axes.plot(layers, mean.mean(axis=1), color=ink, linewidth=1.8)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="layer, first to last", ylabel="attention distance, pixels")
        label = f"Mean attention distance by layer and head: {', '.join(heads)}"
        return figures.figure_of(axes, "probe-attention", "Attention distance", label, heads)


def _reliability(bins: Mapping[str, Sequence[ReliabilityBin]], places: Places) -> Figure:
    """Accuracy against confidence; on the diagonal a model is as sure as it is right."""
    with figures.new_plot() as axes:
        axes.plot([0, 100], [0, 100], color=figures.MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        for candidate, entries in bins.items():
            x = [100 * entry.confidence for entry in entries]
            figures.mean_line(
                axes, places[candidate], x, [100 * entry.accuracy for entry in entries]
            )
        axes.set(xlim=(0, 101), ylim=(0, 101), xlabel="confidence, %", ylabel="accuracy, %")
        label = f"Accuracy against confidence: {', '.join(bins)}"
        return figures.figure_of(axes, "probe-calibration", "Calibration", label, bins)


def _latency(values: Mapping[str, MeanInterval], places: Places) -> Figure:
    """Milliseconds for one image, a bar a candidate, with the interval over models or rounds."""
    upwards = list(values)[::-1]
    names = [candidate if len(candidate) <= 16 else f"{candidate[:15]}…" for candidate in upwards]
    colors = [figures.color(places[candidate]) for candidate in upwards]
    means = [values[candidate].mean for candidate in upwards]
    ends = [
        (one.mean, one.mean) if one.low is None or one.high is None else (max(0, one.low), one.high)
        for one in (values[candidate] for candidate in upwards)
    ]
    with figures.new_plot(size=(4.1, 1.2 + 0.35 * len(values)), grid="x") as axes:
        figures.bars(axes, names, means, ends, colors)
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds for one image")
        label = f"Latency: {', '.join(values)}"
        return figures.figure_of(axes, "probe-latency", "Latency", label, values)
