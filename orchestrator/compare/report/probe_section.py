"""Probes on the page: what the final models are like beside their accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from orchestrator.compare.report import probe_figures
from orchestrator.compare.report.html import details, figure, named, paragraph, section, table
from orchestrator.compare.report.pictures import family_key
from orchestrator.compare.report.probe_figures import Places, Pooled
from orchestrator.wording import MISSING, NONE, percent

TITLE = "What the models are like"
SHIFT, HIDDEN, DISTANCE = "shift.consistency.axis", "occlusion.top1", "attention_distance_px"
SLOW, FAST = "speed.batch_1.latency_ms", "speed.batch_256.images_per_second"
SHOWN = ("top1", "calibration.ece", SLOW, FAST)
LEAD = (
    "Probes of the final models, means over their seeds. Shift consistency: how often the answer "
    "stays the same when the picture moves by some pixels. Attention distance: how far apart the "
    "places are that a transformer relates. Calibration: whether the model is as sure as it is "
    "right; its error is the mean gap. Occlusion: accuracy with a part of the picture hidden."
)


def probes(comparison: Mapping[str, Any]) -> str:
    """Table and pictures of the finals' probes, or that they are missing."""
    entries = comparison["families"]
    pooled = {e["family"]: e["final"]["probes"] for e in entries if e["final"]}
    pooled = {family: found for family, found in pooled.items() if found}
    if not pooled:
        lead = "Missing: no final was probed. Finals measure these once they are trained."
        return section("probes", TITLE, paragraph(lead, "missing"))
    places = {entry["family"]: index for index, entry in enumerate(entries)}
    names = named(entries)
    rows = [[names[family], *_cells(found)] for family, found in pooled.items()]
    head = ["family", "seeds", "accuracy", "same answer moved", "calibration error",
            "half hidden", "latency, one image", "images per second"]  # fmt: skip
    caption = f"Means over seeds, 95 % intervals in brackets; {_conditions(pooled)}"
    row = f'<div class="row">{"".join(_pictures(pooled, places))}</div>'
    return section(
        "probes", TITLE, paragraph(LEAD), table(head, rows, caption=caption, cards=True),
        family_key([entry["family"] for entry in entries]), row, _others(pooled),
    )  # fmt: skip


def _cells(found: Mapping[str, Any]) -> list[str]:
    numbers = found["numbers"]
    return [
        str(found["n"]),
        _number(numbers.get("top1"), 100, " %"),
        _last_step(found, SHIFT, "shift.offsets_px", "by {:g} px"),
        _number(numbers.get("calibration.ece"), 100, " %"),
        _step(found, HIDDEN, "occlusion.shares", 0.5),
        _number(numbers.get(SLOW), 1, " ms"),
        _number(numbers.get(FAST), 1, ""),
    ]


def _number(value: Mapping[str, Any] | None, scale: float, unit: str) -> str:
    if value is None:
        return MISSING
    mean = f"{_digits(scale * value['mean'])}{unit}"
    if value["low"] is None:
        return mean
    return f"{mean} ({_digits(scale * value['low'])}–{_digits(scale * value['high'])})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}".replace("-", "−")


def _last_step(found: Mapping[str, Any], series: str, steps: str, where: str) -> str:
    values, asked = found["series"].get(series), found["facts"].get(steps)
    if values is None or not asked:
        return MISSING
    return f"{percent(values['mean'][-1])} {where.format(asked[-1])}"


def _step(found: Mapping[str, Any], series: str, steps: str, at: float) -> str:
    values, asked = found["series"].get(series), found["facts"].get(steps) or []
    return (
        MISSING if values is None or at not in asked else percent(values["mean"][asked.index(at)])
    )


def _conditions(pooled: Pooled) -> str:
    keys = ("images", "split", "speed.device", "speed.precision", "speed.threads")
    said = []
    for key in keys:
        values = {str(found["facts"][key]) for found in pooled.values() if key in found["facts"]}
        if values:
            said.append(f"{key.removeprefix('speed.')} {' or '.join(sorted(values))}")
    return ", ".join(said)


def _having(pooled: Pooled, part: str, key: str) -> Pooled:
    return {family: found for family, found in pooled.items() if key in found[part]}


def _pictures(pooled: Pooled, places: Places) -> Iterator[str]:
    steps = (
        (SHIFT, "shift.offsets_px", "Shift consistency", ("offset, pixels", "same answer, %")),
        (HIDDEN, "occlusion.shares", "Occlusion", ("share hidden, %", "accuracy, %")),
    )
    for series, asked, title, what in steps:
        if some := _having(pooled, "series", series):
            name = f"probe-{title.split()[0].lower()}"
            picture = probe_figures.by_step(
                some, places, series=series, steps=asked, what=what, name=name
            )
            yield figure(picture, _series_table(some, series, asked, what), title=title)
    far = {f: p for f, p in _having(pooled, "series", DISTANCE).items()
           if np.ndim(p["series"][DISTANCE]["mean"]) == 2}  # fmt: skip
    if far:
        yield figure(
            probe_figures.attention(far, places), _attention_table(far), title="Attention distance"
        )
    if sure := {family: found for family, found in pooled.items() if found["reliability"]}:
        yield figure(
            probe_figures.reliability(sure, places), _bins_table(sure), title="Calibration"
        )
    if timed := _having(pooled, "numbers", SLOW):
        rows = [[f, _number(p["numbers"][SLOW], 1, " ms")] for f, p in timed.items()]
        data = table(["family", "latency"], rows, caption="Median of the calls, mean over seeds")
        yield figure(probe_figures.latency(timed, places, SLOW), data, title="Latency")


def _series_table(pooled: Pooled, series: str, asked: str, what: tuple[str, str]) -> str:
    rows = [
        [family, f"{step:g}", percent(value)]
        for family, found in pooled.items()
        for step, value in zip(
            probe_figures.steps_of(found, asked, len(found["series"][series]["mean"])),
            found["series"][series]["mean"],
            strict=True,
        )
    ]
    return table(["family", what[0], what[1].removesuffix(", %")], rows, caption=f"{what[1]}, mean")


def _attention_table(pooled: Pooled) -> str:
    rows = [
        [family, str(layer), f"{np.mean(heads):.1f}", " ".join(f"{head:.1f}" for head in heads)]
        for family, found in pooled.items()
        for layer, heads in enumerate(found["series"][DISTANCE]["mean"], start=1)
    ]
    return table(["family", "layer", "mean", "by head"], rows, caption="Pixels of the input")


def _bins_table(pooled: Pooled) -> str:
    rows = [
        [family, percent(row["confidence"]), percent(row["accuracy"]), str(row["count"])]
        for family, found in pooled.items()
        for row in found["reliability"]
    ]
    return table(["family", "confidence", "accuracy", "images"], rows, caption="All seeds together")


def _others(pooled: Pooled) -> str:
    """Every number that has no place in the table above, known to this page or not."""
    keys = dict.fromkeys(key for found in pooled.values() for key in found["numbers"])
    rest = [key for key in keys if key not in SHOWN]
    if not rest:
        return ""
    rows = [
        [key, *[_other(found["numbers"].get(key)) for found in pooled.values()]] for key in rest
    ]
    data = table(["probe", *pooled], rows, caption="Means over seeds, 95 % intervals in brackets")
    return details("Other numbers", data)


def _other(value: Mapping[str, Any] | None) -> str:
    return NONE if value is None else _number(value, 1, "")
