"""The comparison for a terminal: plain text that fits 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from orchestrator import wording
from orchestrator.compare.audit import AuditResult, RungTau
from orchestrator.compare.budget import Budget
from orchestrator.compare.choice import PRICE_WORDS, Front, Price, Tradeoffs
from orchestrator.compare.comparison import Comparison
from orchestrator.compare.families import CandidateSummary
from orchestrator.compare.published import TuningGain
from orchestrator.compare.recipe_axes import Edge
from orchestrator.compare.runs import RunData
from orchestrator.compare.screening import RankCorrelation, Regret, ScreeningAudit, ScreeningReport
from orchestrator.compare.shortlist import Shortlist, left_out_rows, shortlist_text
from orchestrator.compare.verdicts import Level, PairResult, describe_verdict
from orchestrator.spec.spaces import Choice, Domain, LogUniform
from orchestrator.wording import MISSING, figure, percent, points, value_text
from trainables.metrics import TOP1, Metric, metric_of

WIDTH = 80
OPINIONS = "Why, as people believe; this run has not tested it"
PUBLISHED = "Published recipe → tuned, on the images that the tuned one was chosen by"


def table_text(comparison: Comparison) -> str:
    """The answer, the metric where it is not accuracy, the candidates, their best recipes, pairs,
    equal budgets, failures and notes."""
    candidates = comparison.families
    runs = ", ".join(f"{run.name} ({run.status})" for run in comparison.runs)
    val = comparison.validation_images
    metric, images = comparison.metric, f", {val} validation images" if val else ""
    if val and metric.is_image_share:
        images += f" (one is {points(1 / val)})"
    forecast = f"{comparison.forecast.sentence} " if comparison.forecast else ""
    budgets = budget_lines(comparison.budget) if len(candidates) > 1 else ()
    failures = (f"{f.family}: {f.trials} × {f.reason} (first: {f.first_trial})"
                for f in comparison.failures)  # fmt: skip
    in_all = comparison.tradeoffs if len(candidates) > 1 and not comparison.claims else None
    screening = screening_lines(comparison.screening) if comparison.screening else ()
    came_from = comparison.screens if candidates else ()
    blocks = [
        _wrap(comparison.answer),
        _wrap(comparison.choice.text) if comparison.choice else "",
        _wrap(metric_text(metric)) if metric != TOP1 else "",
        _wrap(f"Dataset {comparison.dataset or MISSING}{images}. Run {runs}."),
        _block("Warnings about the data", comparison.data_warnings),
        *map(shortlist_text, comparison.screens if not candidates else ()),
        _candidates(candidates, metric) if candidates else "",
        "" if candidates or comparison.screens else "No candidate has a trial yet.",
        _block("Best finished trial", _best(candidates, metric)),
        _block(PUBLISHED, published_lines(comparison.published_recipes)),
        _block("Pairs on test", map(pair_text, comparison.pairs)),
        _block(OPINIONS, (opinion.text for opinion in comparison.opinions)),
        _block("By class, on test", by_image_lines(comparison)),
        _tradeoffs(in_all) if in_all else "",
        _block(
            "Fronts, by what was measured",
            (front_text(f, metric) for f in in_all.fronts) if in_all else (),
        ),
        _block("The screen, audited", screening),
        _block("Expected best at equal budget", budgets),
        _block("Pruning audit", map(audit_text, comparison.audit)),
        *(_block(f"Screen {one.name}", screen_lines(one)) for one in came_from),
        _wrap(forecast + checkpoints_text(comparison.runs)),
        _block("Failed trials", failures),
        _block("Notes", comparison.notes),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def metric_text(metric: Metric) -> str:
    """What candidates are judged by, and who defines it."""
    return f"Judged by {metric.noun} ({metric.name}): {metric.definition}. Source: {metric.source}."


def by_image_lines(comparison: Comparison) -> list[str]:
    """Which classes tell candidates apart, the labels that are suspected, and whether leaving them
    out changes anything; nothing where no final has kept what it predicts."""
    of_images = comparison.by_image
    if of_images is None or comparison.claims:
        return []
    lines = list(of_images.classes.sentences) if of_images.classes else []
    lines += [of_images.suspects.sentence] if of_images.suspects else []
    return lines + ([of_images.cleaning.sentence] if of_images.cleaning else [])


def screen_lines(screen: Shortlist) -> list[str]:
    """Who came from a screen, and what its probe had said; then who was screened out."""
    lines = [
        f"{row.place}. {row.label} ({', '.join(roles)}): linear probe "
        f"{percent(row.top1.mean)}, neighbours {percent(row.screened.neighbours_top1)}"
        for row in screen.ranked
        if (roles := screen.roles_of(row.label))
    ]
    others = [row.label for row in screen.ranked if not screen.roles_of(row.label)]
    lines += [f"screened out: {', '.join(others)}"] if others else []
    return lines + [f"{kind}: {label}: {reason}" for label, kind, reason in left_out_rows(screen)]


def _wrap(text: str, first: str = "", rest: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=rest,
                         break_on_hyphens=False)  # fmt: skip


def _block(title: str, lines: Iterable[str]) -> str:
    """A titled block; empty without lines."""
    wrapped = [_wrap(line, "  ", "    ") for line in lines]
    return "\n".join([title, *wrapped]) if wrapped else ""


def checkpoints_text(runs: Sequence[RunData]) -> str:
    """What the checkpoints of all runs take on disk."""
    return f"Checkpoints on disk: {wording.size(sum(run.checkpoint_bytes for run in runs))}."


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns, numbers to the right; the first column gives way to the others, but
    for names that differ only in what would be cut off."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    width = min(widths[0], WIDTH - sum(width + 2 for width in widths[1:]))
    names = [row[0] for row in rows]
    if len({name[: width - 1] for name in names}) < len(set(names)):
        width = widths[0]
    lines = []
    for name, *others in rows:
        clipped = name if len(name) <= width else name[: width - 1] + "…"
        cells = [cell.rjust(own) for cell, own in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([clipped.ljust(width), *cells]))
    return "\n".join(lines)


def _candidates(candidates: Sequence[CandidateSummary], metric: Metric) -> str:
    kinds = {entry.device for entry in candidates if entry.device}
    cost = f"{kinds.pop().upper()} time" if len(kinds) == 1 else "device time"
    rows = [
        ["candidate", "best val", "finished", "pruned", "failed", "open", "to 90%", cost, "FLOPs"]
    ]
    for entry in sorted(candidates, key=place_of):
        counts = (entry.finished, entry.pruned, entry.failed, entry.unfinished)
        learned = f"{entry.convergence.epochs} ep" if entry.convergence else MISSING
        spent = wording.duration(entry.device_seconds), wording.count(entry.flops)
        rows.append(
            [entry.family, figure(entry.best_value, metric), *map(str, counts), learned, *spent]
        )
    if not any(entry.unfinished for entry in candidates):
        rows = [[*row[:5], *row[6:]] for row in rows]
    return _columns(rows)


def _tradeoffs(tradeoffs: Tradeoffs) -> str:
    priced, metric = [front.price for front in tradeoffs.fronts], metric_of(tradeoffs.metric)
    heads = map(PRICE_HEADS.__getitem__, priced)
    rows = [["candidate", f"{tradeoffs.basis} {metric.name}", "params M", *heads]]
    for standing in tradeoffs.candidates:
        params = MISSING if standing.params_m is None else f"{standing.params_m:.3g}"
        judged = figure(standing.judged.mean if standing.judged else None, metric)
        prices = [price_text(price, standing.price(price)) for price in priced]
        rows.append([standing.label, judged, params, *prices])
    return _columns(rows)


PRICE_HEADS = {
    Price.LATENCY: "latency", Price.MEMORY: "GPU memory", Price.DEVICE_SECONDS: "search",
    Price.USD: "search",
}  # fmt: skip


def price_text(price: Price, value: float | None) -> str:
    """What the judged figure is weighed against, in its unit."""
    if value is None:
        return MISSING
    match price:
        case Price.LATENCY:
            return f"{value:.3g} ms"
        case Price.MEMORY:
            return f"{value:.3g} GB"
        case Price.USD:
            return f"{value:.2f} $"
    return wording.duration(value)


def front_text(front: Front, metric: Metric = TOP1) -> str:
    """Who is on a front, and who cannot be placed."""
    lead = f"{metric.noun} and {PRICE_WORDS[front.price]}"
    parts = [f"{lead}: {', '.join(front.candidates)}" if front.candidates else f"{lead}: {MISSING}"]
    parts += [front.why] if front.why else []
    parts += [f"{MISSING}: {label} ({why})" for label, why in front.missing.items()]
    return "; ".join(parts)


def screening_lines(screening: ScreeningReport) -> list[str]:
    """How far the probes were to be trusted: a few lines a run, then over the storage's runs."""
    lines = [line for audit in screening.audits for line in _audit_lines(audit)]
    return lines + record_lines(screening)


def _audit_lines(audit: ScreeningAudit) -> Iterator[str]:
    out = MISSING if audit.screened_out is None else str(audit.screened_out)
    yield (
        f"{audit.run} from {audit.screen}: {len(audit.participants)} candidates with probe and "
        f"finals, {audit.audited} of {out} screened out among them"
    )
    yield f"rank correlation of probe and test: {correlation_text(audit)}"
    yield f"regret of trusting the shortlist: {regret_text(audit, 'regret_shortlist')}"
    yield f"regret of trusting the probe's first: {regret_text(audit, 'regret_first')}"
    for label, why in audit.missing.items():
        yield f"{MISSING}: {label} ({why})"


def correlation_text(audit: ScreeningAudit) -> str:
    """Spearman's rho with its interval, or why it is missing."""
    correlation: RankCorrelation | None = audit.correlation
    if correlation is None or correlation.rho is None:
        return f"{MISSING}, {audit.why.get('correlation', 'all are tied')}"
    ends = "no interval"
    if correlation.low is not None and correlation.high is not None:
        level, low, high = correlation.level, correlation.low, correlation.high
        ends = f"{100 * level:.0f} % interval {low:.2f} to {high:.2f}"
    return f"Spearman's {correlation.rho:.2f} ({ends}, n = {correlation.n})".replace("-", "−")


def regret_text(audit: ScreeningAudit, which: str) -> str:
    """A regret with its interval and of whom it is, or why it is missing."""
    regret: Regret | None = getattr(audit, which)
    if regret is None:
        return f"{MISSING}, {audit.why[which]}"
    ends = "no interval"
    if regret.low is not None and regret.high is not None:
        low, high = wording.signed(regret.low), wording.signed(regret.high)
        ends = f"{100 * regret.level:.0f} % interval {low} to {high}"
    whose = regret.best if regret.best == regret.trusted else f"{regret.best} over {regret.trusted}"
    return f"{points(regret.mean)} ({ends}; {whose})"


def record_lines(screening: ScreeningReport) -> list[str]:
    """Over the storage's past runs: how often the probe was right."""
    record, lines = screening.record, []
    for share, who in (
        (record.first_best, "the probe's first was the best"),
        (record.shortlist_best, "with an audit: the shortlist had the best"),
    ):
        if share is None:
            continue
        hits, ends = round(share.mean * share.n), "no interval"
        if share.low is not None and share.high is not None:
            low, high = 100 * share.low, 100 * share.high
            ends = f"exact {100 * share.level:.0f} % interval {low:.0f}–{high:.0f} %"
        lines.append(
            f"on your data {who} of those that took part in {hits} of {share.n} "
            f"tournament{'s' * (share.n != 1)} ({ends}; one a screen)"
        )
    if record.first_best is None:
        lines.append(f"over your tournaments: {MISSING}, none has finals of its probe's first")
    lines += [f"not read: {name} ({why})" for name, why in record.unread.items()]
    return lines


def place_of(entry: CandidateSummary) -> float:
    """Sorts the best first, by their best finished trials."""
    value = entry.best_value
    return 1.0 if value is None else -float(metric_of(entry.metric).score(value))


def _best(candidates: Sequence[CandidateSummary], metric: Metric) -> Iterator[str]:
    for entry in sorted(candidates, key=place_of):
        if entry.best_trial:
            axes = wording.recipe_text(entry.best_axes)
            yield f"{entry.best_trial} at epoch {entry.best_epoch}: {axes}"
        else:
            yield f"{entry.family}: {MISSING}, no trial finished{unfinished_text(entry)}"
    for entry in candidates:
        if entry.final:
            test = entry.final.test_top1
            yield f"{entry.family} test accuracy: {wording.interval(**vars(test))}"
            if metric != TOP1 and entry.final.test:
                judged = wording.interval(**vars(entry.final.test), metric=metric)
                yield f"{entry.family} test {metric.noun}: {judged}"
        for edge in entry.edges:
            yield f"! {entry.family}: {edge_text(edge)}"


def published_lines(gains: Sequence[TuningGain]) -> list[str]:
    """A line a candidate; none where no search began with a published recipe."""
    return [published_text(gain) for gain in gains] if any(g.source for g in gains) else []


def published_text(gain: TuningGain) -> str:
    """A candidate's published recipe → tuned, with the gain and the source."""
    parts = [f"{gain.family}: {MISSING}, {gain.why}"]
    if gain.gain is not None:
        metric = metric_of(gain.metric)
        ends = f"{figure(gain.published_val, metric)} → {figure(gain.tuned_val, metric)}"
        parts = [f"{gain.family}: {ends}, gain {points(gain.gain, metric)}"]
        if len(gain.searches) > 1:
            parts.append(f"mean of {gain.n} of {len(gain.searches)} searches")
    parts += [gain.source] if gain.source else []
    return "; ".join([*parts, *wording.moved_texts(gain.moved, gain.axes)])


def unfinished_text(entry: CandidateSummary) -> str:
    """The best value on record where nothing finished, labelled with how its trial stands."""
    best = entry.best_unfinished
    if best is None:
        return ""
    reached = f"{figure(best['value'], metric_of(entry.metric))} at epoch {best['epoch']}"
    # The ledger's last word on a trial is "running", also where its run was stopped since.
    stands = best["status"] if best["status"].is_final else "has not ended"
    return f"; {best['trial']} ({stands}) reached {reached}"


def edge_text(edge: Edge) -> str:
    """Best trials that pile up at an end of a range, more than chance explains."""
    end = f"at the {edge.end} end"
    where = f"in the outer {100 * edge.zone:.0f} % {end}" if edge.zone else end
    return (
        f"{edge.there} of the {edge.top} best trials have a {wording.axis_name(edge.axis)} {where} "
        f"of {value_text(edge.low)} to {value_text(edge.high)} "
        f"(p (Holm) {wording.p_text(edge.p_value_holm)}); the space may be too small"
    )


def domain_text(domain: Domain) -> str:
    """What an axis was searched over."""
    if isinstance(domain, Choice):
        return f"one of {', '.join(map(value_text, domain.values))}"
    scale = " (log)" if isinstance(domain, LogUniform) else ""
    return f"{value_text(float(domain.low))} to {value_text(float(domain.high))}{scale}"


def pair_text(pair: PairResult) -> str:
    """One pair of candidates: verdict, difference with interval, corrected p-value."""
    gap, metric = pair.difference, metric_of(pair.metric)
    parts = [describe_verdict(pair), f"{pair.a} − {pair.b} = {points(gap.mean, metric)}"]
    if gap.low is not None and gap.high is not None:
        low, high = (wording.signed(end, metric) for end in (gap.low, gap.high))
        parts.append(f"{100 * gap.level:.0f} % interval {low} to {high}")
    if pair.p_value_holm is not None:
        parts.append(f"p (Holm) {wording.p_text(pair.p_value_holm)}")
    parts.append(f"{pair.method}, {counts_text(pair)}" if pair.level else "")
    return "; ".join(filter(None, parts))


def counts_text(pair: PairResult) -> str:
    """How many searches and finals of each candidate were tested."""
    finals = f"{pair.n['seeds_a']} and {pair.n['seeds_b']} finals"
    if pair.level is not Level.SEARCHES:
        return finals
    return f"{finals} of {pair.n['searches_a']} and {pair.n['searches_b']} searches"


def budget_lines(budget: Budget) -> list[str]:
    """One line a unit: the budget all candidates spent, and the expected best there with its band;
    then a line for each reason why a candidate has no band."""
    lines = []
    for unit, at in budget.at.items():
        if at is None:
            lines.append(f"{unit}: {MISSING}")
            continue
        spent = {
            "trials": f"{at:.0f} trials",
            "device_seconds": f"{wording.duration(at)} of device time",
            "flops": f"{wording.count(at)}FLOPs",
        }
        labels = (*budget.ranking[unit], *budget.unranked[unit])
        places = ", ".join(f"{label} {_expected_text(budget, unit, label)}" for label in labels)
        lines.append(f"{spent[unit]}: {places}")
    for why in dict.fromkeys(filter(None, budget.why.values())):
        without = [label for label, reason in budget.why.items() if reason == why]
        lines.append(f"no band for {', '.join(without)}: {why}")
    return lines


def _expected_text(budget: Budget, unit: str, label: str) -> str:
    best, low, high = (part[unit][label] for part in (budget.best_value, budget.low, budget.high))
    metric = metric_of(budget.metric)
    ends = (
        ""
        if low is None or high is None
        else f" (band {wording.signed(low, metric)}–{wording.signed(high, metric)})"
    )
    return f"{figure(best, metric)}{ends}"


def audit_text(audit: AuditResult) -> str:
    """One candidate's audit: how many were finished anyway, the regret, tau by rung."""
    taus = [
        f"{tau_text(rung)} at epoch {rung.rung}"
        for rung in audit.kendall_tau_by_rung
        if rung.tau is not None
    ]
    regret = points(audit.regret, metric_of(audit.metric))
    return (
        f"{audit.family}: {audit.ended} of {audit.pruned} pruned trials finished anyway; "
        f"regret {regret}; Kendall's tau {', '.join(taus) or MISSING}"
    )


def tau_text(rung: RungTau) -> str:
    """Kendall's tau with its interval."""
    if rung.tau is None:
        return MISSING
    ends = "no interval"
    if rung.low is not None and rung.high is not None:
        ends = f"{100 * rung.level:.0f} % interval {rung.low:.2f} to {rung.high:.2f}"
    return f"{rung.tau:.2f} ({ends}, n = {rung.n})".replace("-", "−")
