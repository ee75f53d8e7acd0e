"""The report's section on a claim: what people say, what was done, and what came of it.

Everything is taken from the ledger's header, which declared the claim, and from its last verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.compare.report import claim_figures
from orchestrator.compare.report.html import (
    Markup,
    details,
    figure,
    items,
    limited,
    paragraph,
    section,
    table,
    text,
)
from orchestrator.compare.report.pictures import family_key
from orchestrator.compare.runs import RunData
from orchestrator.wording import NONE, p_text

Verdict = Mapping[str, Any]
LEAD = (
    "An opinion that people hold about models for recognising pictures, put to an experiment. All "
    "that would count for it or against it was written down first. The experiment was repeated "
    "several times: each time, called a seed, with other starting weights, another order of the "
    "pictures and other pictures to be judged on. What differs between the models compared is "
    "taken seed by seed, and how much it varies from seed to seed says how sure the result is."
)
UNIT_WORDS = {
    "points": "points: one hundredth of the images",
    "ratio": "times: a ratio, 1 being no difference",
    "decades": "decades: powers of ten",
}


def claim(runs: Sequence[RunData]) -> str:
    """A section for each run that declared a claim; nothing for others."""
    return "".join(
        _section(said, run.verdict, "claim" if len(runs) == 1 else f"claim-{place}")
        for place, run in enumerate(runs)
        if (said := run.header.spec.claim)
    )


def _section(said: Mapping[str, Any], verdict: Verdict, name: str) -> str:
    quoted = Markup(f"<b>“{text(said['statement'])}”</b>")
    parts = [
        paragraph(LEAD, "lede"),
        paragraph(quoted),
        paragraph(f"Where it comes from: {said['source']}"),
        _outcome(verdict),
        paragraph(f"What was measured: {said['statistic']}"),
        _rule(said),
    ]
    if verdict and verdict["effects"]:
        parts += [_effects(verdict, said, name), _pictures(verdict["pictures"], name)]
    notes = [*verdict.get("notes", ()), *_departures(verdict)] if verdict else []
    parts += [
        items(notes) if notes else "",
        details("What the literature found", _literature(said)),
        details("The design as it was declared", _design(said)),
    ]
    return section(name, "The claim and its verdict", *parts)


def _outcome(verdict: Verdict) -> str:
    if not verdict:
        return paragraph("No verdict yet: the run has not come to its end.", "missing")
    word = verdict["verdict"] or "no verdict"
    head = f"<b>{text(word[0].upper() + word[1:])}</b> for {text(verdict['scope'])}."
    return paragraph(Markup(f"{head} {text(_reason(verdict))}"))


def _reason(verdict: Verdict) -> str:
    reason = str(verdict["reason"]).removesuffix(".")
    if verdict["verdict"] is None:
        return f"There is no verdict: {reason}."
    if verdict["verdict"] == "undetermined":
        known = [e["detectable"] for e in verdict["effects"] if e["detectable"] is not None]
        unit = verdict["smallest_effect"]["unit"]
        told = f"{claim_figures.shown(max(known), unit):.3g}" if known else ""
        words = {"points": " points", "ratio": " times", "decades": " decades"}[unit]
        power = (
            f" With as many seeds, as unlike each other as these, an effect of {told}{words} "
            "would have been shown four times in five."
            if known
            else ""
        )
        return f"Neither of the two outcomes was shown.{power}"
    return f"{reason}."


def _rule(said: Mapping[str, Any]) -> str:
    wrong = f"{100 * said['alpha']:g} %"
    lead = (
        "The rule was written down, and its hash "
        f"{said['hash']} recorded, before any model was trained. A verdict that this rule gives "
        f"is wrong with a probability of {wrong} at most, over the chance in the seeds."
    )
    return paragraph(lead) + items(
        [
            f"Supported: {said['supported']}",
            f"Refuted: {said['refuted']}",
            f"Undetermined: {said['undetermined']}",
        ]
    )


def _effects(verdict: Verdict, said: Mapping[str, Any], name: str) -> str:
    unit, rows = said["unit"], [*verdict["effects"], *verdict["others"]]
    drawn = [row for row in rows if row["unit"] == unit]
    picture = claim_figures.effects(
        drawn, smallest=said["smallest_effect"], unit=unit, name=f"{name}-effects"
    )
    head = ["effect", "mean", "low", "high", "seeds", "p after Holm", "verdict", "unit"]
    level = f"{100 * verdict['level']:g} %"
    body = [_effect_row(row) for row in rows]
    caption = (
        f"Effects with their {level} intervals over seeds, above "
        f"{'1' if unit == 'ratio' else '0'} in favour of the claim; only those with a verdict "
        "decide"
    )
    key = (
        f"Dots are means over seeds, bars {level} intervals, ticks single seeds; what decides is "
        f"coloured. Dashed: {verdict['smallest_effect']['text']}, the smallest effect that would "
        "matter."
    )
    shown = figure(picture, table(head, body, caption=caption), title="Effects")
    return f"{shown}{paragraph(key, 'soft')}"


def _effect_row(row: Mapping[str, Any]) -> list[str]:
    unit = row["unit"]
    cells = [
        NONE if row[key] is None else f"{claim_figures.shown(row[key], unit):.3g}"
        for key in ("mean", "low", "high")
    ]
    bound = "" if row["bound"] == "exact" else f" ({row['bound']})"
    return [
        row["name"],
        *cells,
        str(row["n"]),
        p_text(row["p_value_holm"]) if "p_value_holm" in row else NONE,
        row.get("verdict", NONE),
        UNIT_WORDS[unit].partition(":")[0] + bound,
    ]


def _pictures(pictures: Sequence[Mapping[str, Any]], name: str) -> str:
    drawn = []
    for place, picture in enumerate(pictures):
        svg = claim_figures.lines(picture, name=f"{name}-{place}")
        key = family_key_of(picture)
        head = ["series", picture["x_label"], picture["y_label"], "low", "high", "seeds"]
        rows, caption = limited(_points(picture), f"{picture['title']}, mean and 95 % interval")
        drawn.append(figure(svg + key, table(head, rows, caption=caption), title=picture["title"]))
    return f'<div class="row pair">{"".join(drawn)}</div>' if drawn else ""


def family_key_of(picture: Mapping[str, Any]) -> str:
    """Which colour and mark is whose; the places of a claim's pictures are in order."""
    return family_key([series["name"] for series in picture["series"]])


def _points(picture: Mapping[str, Any]) -> list[list[str]]:
    times = 100 if picture["y_unit"] == "percent" else 1
    rows = []
    for series in picture["series"]:
        for i, x in enumerate(series["x"]):
            place = picture["ticks"][i] if picture["ticks"] else f"{x:.6g}"
            ends = [series[end] for end in ("low", "high")]
            cells = [NONE if end is None else f"{times * end[i]:.4g}" for end in ends]
            rows.append(
                [series["name"], place, f"{times * series['mean'][i]:.4g}", *cells,
                 str(series["n"])]
            )  # fmt: skip
    return rows


def _departures(verdict: Verdict) -> list[str]:
    changed = verdict["departures"]
    return (
        [f"Differs from the preset {verdict['preset']}: {', '.join(changed)}."] if changed else []
    )


def _literature(said: Mapping[str, Any]) -> str:
    return (
        f"<h3>For</h3>{items(said['literature_for'])}"
        f"<h3>Against</h3>{items(said['literature_against'])}"
    )


def _design(said: Mapping[str, Any]) -> str:
    rows = [[factor, levels] for factor, levels in said["factors"].items()]
    chosen = said["presets"].get(said.get("preset"), {})
    rows += [
        [f"preset {said.get('preset')}: {key.replace('_', ' ')}", str(value)]
        for key, value in chosen.items()
    ]
    return table(["factor", "levels"], rows, caption="Factors and levels")
