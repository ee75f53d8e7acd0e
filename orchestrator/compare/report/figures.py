"""The report's figures: matplotlib drawings as SVG, each with the data behind it.

A figure's file has the colours of the light page; inside the page it takes colours and font from
the CSS around it. First what all figures share, then those of a search: the judged figure against
cost, learning curves, expected best and best so far over budget, the recipe's axes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup

from orchestrator.compare.budget import BudgetCurve, spending
from orchestrator.compare.comparison import Comparison
from orchestrator.compare.recipe_axes import Importance, Trials, trials_of
from orchestrator.compare.runs import Array, CandidateTrials, Curve, best_score, best_trial
from orchestrator.wording import axis_name, axis_of, value_text
from trainables.metrics import TOP1, Metric, metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Candidates = Mapping[str, Sequence[Curve]]
Places = Mapping[str, int]  # a candidate's place in the order of colours and marks

INK = "#010203"
MUTED = "#8b919b"
BAD = "#d03b3b"
FAMILY = (
    "#1f6fc4", "#b44e08", "#0b7a6c", "#7f4fd0", "#876400", "#b82a76", "#4b7416", "#5a6b80",
)  # fmt: skip
VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted-line)",
    BAD: "var(--bad)",
    **{color: f"var(--family-{index})" for index, color in enumerate(FAMILY)},
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FILE_SCALE = 2.0  # pixels of a figure's file for each of its points
VECTOR_POINTS = 20_000  # beyond it, lines become one picture inside the SVG
VECTOR_MARKS = 2_000
FEW_POINTS = 15  # up to so many on a line of means, each is marked
LEVELS = 6  # choices that are written beside an axis
BEYOND_AXES = 1e3  # a bound that is endless is drawn there
LINES = 300  # of more trials across the axes, the best third of so many is drawn, others at random
TEXT = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
STROKES = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
STYLE: Any = {
    **dict.fromkeys(TEXT, INK),
    **dict.fromkeys(STROKES, MUTED),
    "svg.fonttype": "none",
    "svg.hashsalt": "compare",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the report.

    ``name`` begins each id inside ``svg``, whose colours are those of the light page; ``candidate``
    is the index of the candidate whose colour stands before the title. ``data`` is what the
    template makes the table behind the figure of.
    """

    name: str
    title: str
    svg: str
    data: Any
    candidate: int | None = None

    @property
    def inline(self) -> Markup:
        """The SVG for the page: its colours are the page's CSS variables."""
        text = self.svg
        for value, variable in VARIABLES.items():
            text = text.replace(value, variable)
        return Markup(text)

    @property
    def file_name(self) -> str:
        """``curve-vit.svg``: the kind of figure and its title."""
        kind, title = re.sub(r"-\d+$", "", self.name), self.title.lower()
        name = title if title.startswith(kind) else f"{kind} {title}"
        return f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}.svg"

    @property
    def file_text(self) -> str:
        """The SVG as a file that stands alone."""
        sides = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', self.svg)[0]
        width, height = (FILE_SCALE * float(side) for side in sides)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            'style="background:white;font-family:sans-serif"'
        )
        return self.svg.replace("<svg", head, 1)


def color(index: int) -> str:
    """Colour of the candidate at ``index``; it repeats after eight."""
    return FAMILY[index % len(FAMILY)]


def marker(index: int) -> str:
    """Mark of the candidate at ``index``; it repeats after eight."""
    return MARKERS[index % len(MARKERS)]


@contextmanager
def new_plot(
    size: tuple[float, float] = (4.1, 2.9), *, grid: Literal["x", "y"] | None = "y"
) -> Iterator[Axes]:
    """The axes of a matplotlib figure of ``size`` inches; inside the block the style is ours."""
    import matplotlib
    from matplotlib.figure import Figure as Plot

    with matplotlib.rc_context(STYLE):
        axes = Plot(figsize=size, layout="constrained").add_subplot()
        if grid:
            axes.grid(axis=grid)
        yield axes


def figure_of(
    axes: Axes, name: str, title: str, label: str, data: Any, *, candidate: int | None = None
) -> Figure:
    """What was drawn on ``axes``, inside :func:`new_plot`: no ids but its own, no address,
    ``label`` as its alt text."""
    plot, target = axes.get_figure(root=True), io.StringIO()
    assert plot is not None
    with warnings.catch_warnings():
        # Text stays text in the SVG: whoever looks at it has the fonts of its script.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        plot.savefig(target, format="svg", transparent=True, dpi=160)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\s(xmlns(:xlink)?|width|height|version)="[^"]*"', "", text, count=5)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]+;?", "", text)
    svg = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()
    return Figure(name=name, title=title, svg=svg, data=data, candidate=candidate)


def mean_line(
    axes: Axes, place: int, x: Any, mean: Any, low: Array | None = None, high: Array | None = None
) -> None:
    """Means over ``x`` in the colour of the candidate at ``place``, their interval shaded."""
    mark = marker(place) if len(x) <= FEW_POINTS else ""
    axes.plot(x, mean, f"{mark}-", color=color(place), linewidth=1.8, markersize=4.5)
    if low is not None and high is not None:
        axes.fill_between(x, low, high, color=color(place), alpha=0.13, linewidth=0)


def bars(axes: Axes, names: Sequence[str], means: Any, ends: Any, colors: Any) -> None:
    """A bar a name, upwards, each with a line between its ``ends`` (bars, 2)."""
    rows = range(len(names))
    axes.barh(rows, means, color=colors, alpha=0.55, height=0.6)
    axes.hlines(rows, *np.transpose(ends), color=INK, linewidth=1.2)
    axes.set_yticks(rows, names)


def on_axis(values: Any, metric: Metric = TOP1) -> Any:
    """Figures as an axis has them: shares in percent, losses as they are."""
    return 100 * values if metric.is_share else values


def share_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits in percent that hold accuracies given as fractions, with a margin inside [0, 100]."""
    if not values:
        return 0.0, 100.0
    low, high = 100 * min(values), 100 * max(values)
    margin = max(1.0, 0.06 * (high - low))
    return max(0.0, low - margin), min(101.0, high + margin)


def figure_limits(values: Sequence[float], metric: Metric) -> tuple[float, float]:
    """Limits of an axis that holds the finite ones of ``values``, with a margin."""
    finite = [value for value in values if np.isfinite(value)]
    if metric.is_share or not finite:
        return share_limits(finite)
    margin = max(0.01, 0.06 * (max(finite) - min(finite)))
    return max(0.0, min(finite) - margin), max(finite) + margin


def against_cost(search: Candidates, metric: Metric) -> list[Figure]:
    """Finished trials, best figure against their whole cost: device seconds and FLOPs."""
    from matplotlib.ticker import EngFormatter

    reached, figures = _finished_best(search), []
    if not reached:
        return []
    for cost, title in (("seconds", "Device seconds"), ("flops", "FLOPs")):
        what = "FLOPs" if cost == "flops" else "device seconds"
        trials: list[tuple[float, float, Curve]] = []  # cost, NaN if missing; figure; trial
        with new_plot() as axes:
            for index, curves in enumerate(search.values()):
                finished = [(c, c.best[0]) for c in curves if c.status == "finished" and c.best]
                of_candidate = [(float(getattr(c, cost)[-1]), best, c) for c, best in finished]
                trials += of_candidate
                marks = [
                    (spent, on_axis(best, metric))
                    for spent, best, _ in of_candidate
                    if np.isfinite(spent)
                ]
                _marks(axes, marks, marker(index), color(index), markersize=5.5, alpha=0.85)
            priced = [
                (spent, float(metric.score(best)))
                for spent, best, _ in trials
                if np.isfinite(spent)
            ]
            if priced:
                x, scores = np.transpose(pareto(priced))
                y = on_axis(metric.of_score(scores), metric)
                axes.step(x, y, where="post", color=MUTED, linewidth=1.2, zorder=1)
            positive = [spent for spent, _ in priced if spent > 0]
            if positive and max(positive) > 20 * min(positive):
                axes.set_xscale("log")
            elif positive:
                axes.set_xlim(left=0)
            if cost == "flops":
                axes.xaxis.set_major_formatter(EngFormatter())
            limits = figure_limits(reached, metric)
            axes.set(ylim=limits, xlabel=f"{what} of one training")
            axes.set_ylabel(f"best validation {axis_of(metric)}")
            label = f"Best validation {metric.noun} of {len(priced)} finished trials against {what}"
            best_first = sorted(trials, key=lambda trial: -float(metric.score(trial[1])))
            figures.append(figure_of(axes, f"cost-{cost}", title, label, best_first))
    return figures


def _finished_best(search: Candidates) -> list[float]:
    trials = chain(*search.values())
    return [trial.best[0] for trial in trials if trial.status == "finished" and trial.best]


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in both, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def learning_curves(search: Candidates, metric: Metric) -> list[Figure]:
    """A figure a candidate, all on the same axes; candidates without a reported epoch are left
    out."""
    reported = [c for curves in search.values() for c in curves if c.epoch.size]
    values = [value for c in reported for value in c.values.tolist()]
    limits = figure_limits(values, metric)
    epochs = max((int(c.epoch[-1]) for c in reported), default=0)
    return [
        _curves(curves, index, limits, epochs)
        for index, curves in enumerate(search.values())
        if any(c.epoch.size for c in curves)
    ]


def _curves(
    curves: Sequence[Curve], index: int, limits: tuple[float, float], epochs: int
) -> Figure:
    """The judged figure against epoch: rungs dotted, × pruned, + failed, the best finished trial
    thick."""
    from matplotlib.ticker import MaxNLocator

    best, metric = best_trial(curves), curves[0].metric
    styles: dict[str, dict[str, Any]] = {
        "pruned": {"color": MUTED, "linewidth": 0.9, "alpha": 0.7},
        "failed": {"color": BAD, "linewidth": 0.9, "alpha": 0.8},
        "running": {"color": color(index), "linewidth": 1.0, "linestyle": "dashed"},
        "finished": {"color": color(index), "linewidth": 1.1, "alpha": 0.65},
    }
    with new_plot() as axes:
        for rung in sorted({rung for curve in curves for rung in curve.state.rungs}):
            axes.axvline(rung, color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        for status, style in styles.items():
            others = [c for c in curves if c.status == status and c is not best]
            _lines(axes, [(c.epoch, on_axis(c.values, metric)) for c in others], **style)
        after_rung = [
            (c.audit.epoch[c.epoch.size - 1 :], on_axis(c.audit.values[c.epoch.size - 1 :], metric))
            for c in curves
            if c.audit and c.audit.epoch.size > c.epoch.size
        ]
        _lines(axes, after_rung, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
        _marks(axes, _ends(curves, "pruned"), "x", MUTED, zorder=3)
        _marks(axes, _ends(curves, "failed"), "+", BAD, zorder=3)
        if best is not None:
            axes.plot(best.epoch, on_axis(best.values, metric), color=color(index), linewidth=2.6)
            _marks(axes, _ends([best], "finished"), "o", color(index), zorder=3)
        axes.set(xlim=(0.5, epochs + 0.5), ylim=limits, xlabel="epoch")
        axes.set_ylabel(f"validation {axis_of(metric)}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        candidate, states = curves[0].candidate, [curve.status for curve in curves]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        label = (
            f"Learning curves of {candidate}: validation {metric.noun} by epoch of {counts} trials"
        )
        data = sorted(curves, key=lambda c: (c.status != "finished", -best_score(c)))
        return figure_of(axes, f"curve-{index}", candidate, label, data, candidate=index)


def _lines(axes: Axes, lines: Sequence[tuple[Array, Array]], **style: Any) -> None:
    """All ``(x, y)`` as one path: a NaN between two lines lifts the pen."""
    parts = [np.c_[[x, y], [np.nan, np.nan]] for x, y in lines if x.size]
    if parts:
        path = np.concatenate(parts, axis=1)  # (2, P)
        axes.plot(*path, rasterized=path.shape[1] > VECTOR_POINTS, **style)


def _marks(
    axes: Axes, points: Sequence[tuple[float, float]], mark: str, ink: str, **style: Any
) -> None:
    if points:
        style = {"markersize": 5, "rasterized": len(points) > VECTOR_MARKS, **style}
        axes.plot(*np.transpose(points), mark, color=ink, linestyle="none", **style)


def _ends(curves: Sequence[Curve], status: str) -> list[tuple[float, float]]:
    ended = [curve for curve in curves if curve.status == status and curve.epoch.size]
    return [(curve.epoch[-1], on_axis(curve.values[-1], curve.metric)) for curve in ended]


def best_so_far(search: Candidates, metric: Metric) -> list[Figure]:
    """Best finished figure against what a candidate had spent, one step line a candidate."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figures = []
    for unit, title, what in (
        ("trials", "By trials", "trials ended"),
        ("device_seconds", "By device time", "device seconds spent"),
        ("flops", "By FLOPs", "FLOPs spent"),
    ):
        steps = {}
        for candidate, curves in search.items():
            spent, scores = changes(*spending(curves, unit))
            steps[candidate] = spent, metric.of_score(scores)
        with new_plot() as axes:
            for index, (spent, best) in enumerate(steps.values()):
                y = on_axis(best, metric)
                _marked_end(axes, index, spent, y, linewidth=1.8, drawstyle="steps-post")
            axes.set_xlim(left=0)
            limits = figure_limits(_finished_best(search), metric)
            axes.set(ylim=limits, xlabel=what, ylabel=f"best finished {axis_of(metric)}")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=unit == "trials"))
            if unit == "flops":
                axes.xaxis.set_major_formatter(EngFormatter())
            label = f"Best validation {metric.noun} of a finished trial against {what}"
            figures.append(figure_of(axes, f"budget-{unit}", title, label, steps))
    return figures


def _marked_end(axes: Axes, index: int, x: Array, y: Array, **style: Any) -> None:
    """A candidate's line, its mark at the end."""
    axes.plot(x, y, color=color(index), **style)
    axes.plot(x[-1:], y[-1:], marker(index), color=color(index), markersize=5.5)


def changes(spent: Array, best: Array) -> tuple[Array, Array]:
    """The steps at which the best improves, and the last one; shape (C,) each."""
    ranked = np.isfinite(best)
    spent, best = spent[ranked], best[ranked]
    keep = np.diff(best, prepend=-np.inf) > 0
    keep[-1:] = True
    return spent[keep], best[keep]


def expected_best(curves: Sequence[BudgetCurve], places: Places) -> list[Figure]:
    """Each candidate's expected best with its band; cut off where the bands are widest."""
    ends = [float(edge[-1]) for curve in curves for edge in (curve.low, curve.high)]
    every = [*ends, *[value for c in curves for value in c.expected_best.tolist()]]
    limits = figure_limits(every, metric_of(curves[0].metric) if curves else TOP1)
    return [_banded(curve, places[curve.family], limits) for curve in curves]


def _banded(curve: BudgetCurve, index: int, limits: tuple[float, float]) -> Figure:
    """One candidate's expected best and its band against trials, device seconds on top."""
    from matplotlib.ticker import MaxNLocator

    ink, x, metric = color(index), curve.trials, metric_of(curve.metric)
    low, mean, high = (
        on_axis(np.minimum(part, BEYOND_AXES), metric)
        for part in (curve.low, curve.expected_best, curve.high)
    )
    with new_plot() as axes:
        if curve.valid:
            axes.fill_between(x, low, high, color=ink, alpha=0.16, linewidth=0)
        for edge in (low, high):
            axes.plot(x, edge, color=ink, linewidth=0.8, alpha=0.7)
        style = "solid" if curve.valid else "dashed"
        axes.plot(x, mean, color=ink, linewidth=2.2, linestyle=style)
        axes.set(xlim=(0, 1.04 * x[-1]), ylim=limits, xlabel="trials")
        axes.set_ylabel(f"expected best {axis_of(metric)}")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if curve.seconds is not None:
            price = curve.seconds[-1] / x[-1]
            top = axes.secondary_xaxis("top", functions=(lambda k: k * price, lambda s: s / price))
            top.xaxis.set_major_locator(MaxNLocator(4))
            top.set_xlabel("device seconds")
        name, candidate = f"expected-{index}", curve.family
        label = f"Expected best of {candidate} against trials, with its 95 % band"
        return figure_of(axes, name, candidate, label, [(curve, x)], candidate=index)


def expected_together(curves: Sequence[BudgetCurve], places: Places) -> list[Figure]:
    """The lines of several candidates alone, to be compared; nothing for one candidate."""
    from matplotlib.ticker import EngFormatter

    if len(curves) < 2:
        return []
    figures = []
    metric = metric_of(curves[0].metric)
    limits = figure_limits([value for c in curves for value in c.expected_best.tolist()], metric)
    for unit, title, what in (
        ("trials", "All by trials", "trials"),
        ("seconds", "All by device time", "device seconds"),
        ("flops", "All by FLOPs", "FLOPs"),
    ):
        data = [(curve, getattr(curve, unit)) for curve in curves]
        with new_plot() as axes:
            for curve, x in data:
                if x is not None:
                    style = "solid" if curve.valid else "dashed"
                    place, best = places[curve.family], on_axis(curve.expected_best, metric)
                    _marked_end(axes, place, x, best, linewidth=2.0, linestyle=style)
            axes.set_xlim(left=0)
            axes.set(ylim=limits, xlabel=what, ylabel=f"expected best {axis_of(metric)}")
            if unit == "flops":
                axes.xaxis.set_major_formatter(EngFormatter())
            label = f"Expected best validation {metric.noun} of every candidate against {what}"
            figures.append(figure_of(axes, f"expected-{unit}", title, label, data))
    return figures


def recipe_figures(
    candidates: Sequence[CandidateTrials], comparison: Comparison
) -> tuple[list[Figure], list[Figure]]:
    """For each candidate with known importance its bars, and its trials across the axes."""
    important = {entry.family: entry for entry in comparison.importance}
    limits = 0.0, max([10.0, *(100 * a.high for e in important.values() for a in e.axes)])
    importances, across = [], []
    for index, candidate in enumerate(candidates):
        trials, entry = trials_of(candidate), important.get(candidate.label)
        if entry is None or trials is None:
            continue
        importances.append(_importance(entry, index, limits))
        whole = trials.only(trials.at_full_length)
        across.append(_across_axes(whole, [axis.axis for axis in entry.axes], index))
    return importances, across


def _importance(entry: Importance, index: int, limits: tuple[float, float]) -> Figure:
    """Importance of each axis, the most important on top, with its interval."""
    upwards = entry.axes[::-1]
    with new_plot(size=(4.1, 1.1 + 0.3 * len(upwards)), grid="x") as axes:
        names = [axis_name(axis.axis) for axis in upwards]
        means = [100 * axis.share for axis in upwards]
        ends = [(100 * axis.low, 100 * axis.high) for axis in upwards]
        bars(axes, names, means, ends, color(index))
        axes.axvline(0, color=MUTED, linewidth=0.9)
        axes.set(xlim=limits, xlabel="share of the variance, %")
        shares = [f"{axis_name(axis.axis)} {100 * axis.share:.0f} %" for axis in entry.axes]
        title = f"{entry.family}, at full length"
        label = f"Importance of recipe axes: {', '.join(shares)}"
        return figure_of(axes, f"axes-{index}", title, label, entry, candidate=index)


def _across_axes(trials: Trials, order: Sequence[str], index: int) -> Figure:
    """Every trial known at full length a line across the axes in ``order``, the judged figure last,
    the best on top; the better, the stronger."""
    values, metric = trials.reached[:, -1], trials.curves[0].metric
    heights = [_unit(trials.columns[axis]) for axis in order] + [_unit(values)]
    lines = np.column_stack(heights)  # (N, axes + 1)
    places, ranked = np.arange(lines.shape[1]), _shown(values)
    candidate, after = trials.curves[0].candidate, "at full length"
    with new_plot(size=(4.1, 3.3), grid=None) as axes:
        axes.spines[["left", "bottom"]].set_visible(False)
        for part in np.array_split(np.arange(len(ranked)), min(8, len(ranked))):
            rank = float(part.mean()) / max(1, len(ranked) - 1)
            _lines(
                axes,
                [(places, line) for line in lines[ranked[part]]],
                color=color(index) if rank > 0.5 else MUTED,
                linewidth=0.7 + 0.5 * rank,
                alpha=0.25 + 0.6 * rank**2,
            )
        axes.plot(places, lines[np.argmax(values)], color=color(index), linewidth=2.6)
        axes.vlines(places, 0, 1, color=MUTED, linewidth=0.9)
        for place, axis in enumerate(order):
            _levels(axes, place, trials, axis)
        for height, value in ((0, values.min()), (1, values.max())):
            reached = metric.of_score(value)
            text = f"{100 * reached:.0f} %" if metric.is_share else f"{reached:.3g}"
            _note(axes, places[-1], height, text)
        axes.set(xlim=(-0.35, places[-1] + 0.35), ylim=(-0.14, 1.12), yticks=[])
        names = [*map(axis_name, order), metric.noun]
        axes.set_xticks(places, names, rotation=28, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", length=0)
        label = f"{len(ranked)} trials of {candidate} across {', '.join(names)}, {after}"
        by_score = sorted(zip(values, trials.curves, strict=True), key=lambda p: -p[0])
        by_value = [(float(metric.of_score(score)), curve) for score, curve in by_score]
        name, title, data = f"lines-{index}", f"{candidate}, {after}", (order, by_value)
        return figure_of(axes, name, title, label, data, candidate=index)


def _shown(values: Array) -> Array:
    """Which trials get a line, from the worst to the best."""
    ranked = np.argsort(values, kind="stable")
    if len(ranked) <= LINES:
        return ranked
    best = LINES // 3
    rest = np.random.default_rng(0).permutation(len(ranked) - best)[: LINES - best]
    return np.concatenate([ranked[np.sort(rest)], ranked[-best:]])


def _unit(values: Array) -> Array:
    spread = np.ptp(values)
    return (values - values.min()) / spread if spread else np.full(values.shape, 0.5)


def _levels(axes: Axes, place: int, trials: Trials, axis: str) -> None:
    """The ends of a range, or each of a few choices, written at their height."""
    heights = _unit(trials.columns[axis])
    at = {round(float(h), 6): c.axes.get(axis) for h, c in zip(heights, trials.curves, strict=True)}
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in at.values())
    for height in [0.0, 1.0] if numbers or len(at) > LEVELS else sorted(at):
        value = at[height]
        text = f"{value:.2g}" if isinstance(value, float) else value_text(value)
        _note(axes, place, height, text)


def _note(axes: Axes, place: int, height: float, text: str) -> None:
    """Below the foot of an axis, above its top, or to the right of it in between."""
    ends: dict[float, Any] = {0: ((0, -3), "center", "top"), 1: ((0, 3), "center", "bottom")}
    offset, ha, va = ends.get(height, ((3, 0), "left", "center"))
    axes.annotate(text, (place, height), offset, textcoords="offset points", ha=ha, va=va,
                  fontsize=9.5)  # fmt: skip
