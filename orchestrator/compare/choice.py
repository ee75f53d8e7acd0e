"""How good candidates are beside what that costs: the fronts, and who is best under limits.

A candidate stands here as it would be used: its finals' figure on test by the metric that the run
is judged by, the latency that was measured of them, and what its search took. Where no candidate
has finals, validation figures of finished trials stand in their place, and nothing is a verdict. A
pruned trial never stands beside finished ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.compare.families import CandidateSummary
from orchestrator.compare.finals import finished, newest_round
from orchestrator.compare.runs import CandidateTrials, Curve, Values, best_trial
from orchestrator.compare.statistics import AccuracyInterval, MeanInterval
from orchestrator.compare.verdicts import PairResult, PairVerdict, describe_verdict
from orchestrator.spec import limits
from orchestrator.wording import figure, interval
from trainables.metrics import TOP1, Metric, metric_of

LATENCY = "speed.batch_1.latency_ms"  # among the probes of a candidate's finals


class Basis(StrEnum):
    """What a candidate's figure is of: its finals, or its best finished trial."""

    TEST = "test"
    VALIDATION = "validation"


class Price(StrEnum):
    """What the judged figure is weighed against; lower is better."""

    LATENCY = "latency_ms"
    MEMORY = "memory_gb"
    DEVICE_SECONDS = "device_seconds"
    USD = "usd"


PRICE_WORDS = {
    Price.LATENCY: "latency",
    Price.MEMORY: "GPU memory",
    Price.DEVICE_SECONDS: "device time of the search",
    Price.USD: "dollars of the search",
}
MISSING_PRICE = {
    Price.LATENCY: "its latency was not measured",
    Price.MEMORY: "no GPU memory is on record",
    Price.DEVICE_SECONDS: "its device time is not on record",
    Price.USD: "its price is not on record",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a candidate must keep: ``max_latency_ms`` for one image, ``max_params_m`` millions of
    parameters with the classifier. ``None``: no such limit."""

    max_latency_ms: float | None = None
    max_params_m: float | None = None

    @property
    def text(self) -> str:
        """``5 ms and 10 M parameters``."""
        latency = [] if self.max_latency_ms is None else [f"{self.max_latency_ms:g} ms"]
        params = [] if self.max_params_m is None else [f"{self.max_params_m:g} M parameters"]
        return " and ".join([*latency, *params])


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One candidate, by its ``label`` in the comparison.

    ``judged``: over the finals on test, with interval, or of the best finished trial on validation,
    without; ``None`` where the other candidates' basis is not on record for it. ``top1`` is the
    same of accuracy, whatever is judged by. ``latency_ms``: of
    one image, measured once nothing trained any more, on ``timed_on``. ``memory_gb``: the most that
    a worker's GPU held while the finals (without any: the best trial) trained. ``params_m``:
    millions, with the classifier. ``device_seconds`` and ``usd``: of the whole search.
    """

    label: str
    judged: MeanInterval | None
    top1: MeanInterval | None
    latency_ms: MeanInterval | None
    timed_on: str | None
    memory_gb: float | None
    params_m: float | None
    device_seconds: float | None
    usd: float | None

    def price(self, price: Price) -> float | None:
        """What it takes, in the unit that the price is named after."""
        value = getattr(self, price.value)
        return value.mean if isinstance(value, MeanInterval) else value


@dataclass(frozen=True, kw_only=True)
class Front:
    """The ``candidates`` that no other one beats in the judged figure and in ``price`` at once, the
    cheapest first, by what was measured and without a test. ``missing``: why others could not be
    placed; ``why``: why there is no front at all."""

    price: Price
    candidates: tuple[str, ...]
    missing: Mapping[str, str]
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tradeoffs:
    """Every candidate's ``standings``, the best by ``metric`` first, and a front for each price
    that any of them has."""

    metric: str
    basis: Basis
    candidates: tuple[Standing, ...]
    fronts: tuple[Front, ...]

    def front(self, price: Price) -> Front | None:
        """The front of the judged figure and ``price``, where any candidate has one."""
        return next((front for front in self.fronts if front.price is price), None)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Who is ``best`` of those ``within`` the limits, these the best first. ``beyond`` and
    ``missing`` say why of each other candidate. ``near``: whose latency is not told apart from its
    limit. ``is_shown``: the best one is sure to be within, and better by a verdict than each other
    candidate that may be within. ``text`` says all of it."""

    max_latency_ms: float | None
    max_params_m: float | None
    basis: Basis
    best: str | None
    is_shown: bool
    within: tuple[str, ...]
    beyond: Mapping[str, str]
    missing: Mapping[str, str]
    near: tuple[str, ...]
    text: str


def tradeoffs(
    candidates: Sequence[CandidateTrials],
    entries: Sequence[CandidateSummary],
    prices: limits.Amounts | None,
) -> Tradeoffs:
    """Where each candidate stands; ``entries`` are theirs, in the same order, ``prices`` those of
    hours that all their runs had."""
    basis = Basis.TEST if any(entry.final for entry in entries) else Basis.VALIDATION
    metric = candidates[0].metric if candidates else TOP1
    standings = sorted(
        (
            _standing(candidate, entry, basis, prices)
            for candidate, entry in zip(candidates, entries, strict=True)
        ),
        key=lambda s: -float(metric.score(s.judged.mean)) if s.judged else math.inf,
    )
    devices = {entry.device for entry in entries if entry.device}
    priced = [price for price in Price if any(s.price(price) is not None for s in standings)]
    if Price.USD in priced and Price.DEVICE_SECONDS in priced:
        priced.remove(Price.DEVICE_SECONDS)
    fronts = tuple(_front(standings, price, devices, basis, metric) for price in priced)
    return Tradeoffs(
        metric=metric.name, basis=basis, candidates=tuple(standings), fronts=fronts
    )  # fmt: skip


def _standing(
    candidate: CandidateTrials,
    entry: CandidateSummary,
    basis: Basis,
    prices: limits.Amounts | None,
) -> Standing:
    best = best_trial(candidate.search)
    models = finished(newest_round(candidate)) or ([best] if best else [])
    probes = entry.final.probes if entry.final else None
    latency = probes.numbers.get(LATENCY) if probes else None
    timed_on = _conditions(probes.facts) if probes else None
    sizes = [size for model in models if (size := model.state.detail.get("params_m")) is not None]
    judged: MeanInterval | None = entry.final.test if entry.final else None
    top1: MeanInterval | None = entry.final.test_top1 if entry.final else None
    if basis is Basis.VALIDATION:
        judged, top1 = _without_interval(entry.best_value), _without_interval(entry.best_val_top1)
    usd = None
    if candidate.sweep is not None and entry.device_seconds is not None:
        usd = limits.usd(entry.device_seconds, candidate.sweep.resources, prices)
    return Standing(
        label=candidate.label,
        judged=judged,
        top1=top1,
        latency_ms=latency,
        timed_on=timed_on if latency else None,
        memory_gb=_memory_gb(models),
        params_m=max(sizes, default=_params_on_record(candidate)),
        device_seconds=entry.device_seconds,
        usd=usd,
    )


def _without_interval(value: float | None) -> MeanInterval | None:
    return None if value is None else MeanInterval(mean=value, low=None, high=None, n=1)


def _conditions(facts: Values) -> str | None:
    """What a latency was measured on and how, as far as that is the same for all of its models."""
    threads = facts.get("speed.threads")
    parts = [facts.get("speed.device"), facts.get("speed.precision")]
    parts += [f"{threads} thread{'s' * (threads != 1)}"] if threads else []
    return ", ".join(str(part) for part in parts if part is not None) or None


def _params_on_record(candidate: CandidateTrials) -> float | None:
    stated = candidate.geometry.get("params_m")
    return None if stated is None else float(stated)


def _memory_gb(models: Sequence[Curve]) -> float | None:
    """The most of any epoch; ``None`` where a model has none on record."""
    peaks = [
        max((report.metrics.get("gpu_memory_gb", 0.0) for report in model.state.reports.values()),
            default=0.0)
        for model in models
    ]  # fmt: skip
    return max(peaks) if peaks and all(peaks) else None


def _front(
    standings: Sequence[Standing], price: Price, devices: set[str], basis: Basis, metric: Metric
) -> Front:
    missing: dict[str, str] = {}
    priced: list[tuple[float, float, str]] = []
    for standing in standings:
        cost = standing.price(price)
        if standing.judged is None:
            missing[standing.label] = _no_figure(basis)
        elif cost is None:
            missing[standing.label] = MISSING_PRICE[price]
        else:
            priced.append((cost, -float(metric.score(standing.judged.mean)), standing.label))
    why = None
    timed_on = {s.timed_on or "a device that is not on record" for s in standings if s.latency_ms}
    if price is Price.LATENCY and len(timed_on) > 1:
        why = f"latencies are of different devices: {'; '.join(sorted(timed_on))}"
    elif price is Price.DEVICE_SECONDS and len(devices) > 1:
        why = f"device seconds are of different devices: {', '.join(sorted(devices))}"
    elif not priced:
        why = "no candidate has both"
    front = () if why else tuple(_not_beaten(priced))
    return Front(price=price, candidates=front, missing=missing, why=why)


def _not_beaten(priced: Sequence[tuple[float, float, str]]) -> Iterator[str]:
    """Labels of ``(cost, -score, label)``; of several with the same of both, all."""
    best, last = math.inf, None
    for cost, negative, label in sorted(priced):
        if negative < best or (cost, negative) == last:
            best, last = negative, (cost, negative)
            yield label


def _no_figure(basis: Basis) -> str:
    return "it has no finals" if basis is Basis.TEST else "no trial finished"


def choose(tradeoffs: Tradeoffs, pairs: Sequence[PairResult], asked: Limits) -> Choice:
    """The answer to "best under …", no stronger than the verdicts on ``pairs`` are."""
    within: list[Standing] = []
    beyond: dict[str, str] = {}
    missing: dict[str, str] = {}
    for standing in tradeoffs.candidates:
        over = list(_over(standing, asked))
        unknown = list(_unknown(standing, asked, tradeoffs.basis))
        if over:
            beyond[standing.label] = ", ".join(over)
        elif unknown:
            missing[standing.label] = ", ".join(unknown)
        else:
            within.append(standing)
    near = {s.label: text for s in tradeoffs.candidates if (text := _near(s, asked))}
    best = within[0] if within else None
    verdicts = _verdicts(best.label, pairs) if best else {}
    # Of those beyond a limit, the ones that may be within it all the same.
    doubtful = [
        s.label
        for s in tradeoffs.candidates
        if s.label in near
        and s.label in beyond
        and not list(_over(s, Limits(max_params_m=asked.max_params_m)))
    ]
    rivals = [s.label for s in within[1:]] + [*missing, *doubtful]
    is_shown = (
        best is not None
        and best.label not in near
        and bool(rivals)
        and all(_is_better(verdicts.get(label), best.label) for label in rivals)
    )
    parts = [
        *_lead(best, within, verdicts, asked, tradeoffs, is_shown),
        *(f"Not told apart from the limit: {near[label]}." for label in near),
        *([f"Beyond: {_reasons(beyond)}."] if beyond else []),
        *([f"Missing, and so not judged: {_reasons(missing)}."] if missing else []),
    ]
    return Choice(
        **vars(asked),
        basis=tradeoffs.basis,
        best=best.label if best else None,
        is_shown=is_shown,
        within=tuple(standing.label for standing in within),
        beyond=beyond,
        missing=missing,
        near=tuple(near),
        text=" ".join(parts),
    )


def _reasons(by_label: Mapping[str, str]) -> str:
    return "; ".join(f"{label} ({reason})" for label, reason in by_label.items())


def _over(standing: Standing, asked: Limits) -> Iterator[str]:
    latency, size = standing.latency_ms, standing.params_m
    if asked.max_latency_ms is not None and latency and latency.mean > asked.max_latency_ms:
        yield f"{latency.mean:.3g} ms"
    if asked.max_params_m is not None and size is not None and size > asked.max_params_m:
        yield f"{size:.3g} M parameters"


def _unknown(standing: Standing, asked: Limits, basis: Basis) -> Iterator[str]:
    if asked.max_latency_ms is not None and standing.latency_ms is None:
        yield MISSING_PRICE[Price.LATENCY]
    if asked.max_params_m is not None and standing.params_m is None:
        yield "its parameters are not on record"
    if standing.judged is None:
        yield _no_figure(basis)


def _near(standing: Standing, asked: Limits) -> str | None:
    """The latency that is not told apart from its limit: inside its interval, or without one."""
    latency, limit = standing.latency_ms, asked.max_latency_ms
    if latency is None or limit is None:
        return None
    if latency.low is None or latency.high is None:
        return f"{standing.label} ({latency.mean:.3g} ms, no interval)"
    if not latency.low <= limit <= latency.high:
        return None
    ends = f"{latency.low:.3g}–{latency.high:.3g}"
    level = f"{100 * latency.level:.0f} %"
    return f"{standing.label} ({latency.mean:.3g} ms, {level} interval {ends})"


def _verdicts(label: str, pairs: Sequence[PairResult]) -> dict[str, PairResult]:
    """The pairs with ``label``, by the other one."""
    return {
        pair.b if pair.a == label else pair.a: pair for pair in pairs if label in (pair.a, pair.b)
    }


def _is_better(pair: PairResult | None, label: str) -> bool:
    if pair is None:
        return False
    better = PairVerdict.A_BETTER if pair.a == label else PairVerdict.B_BETTER
    return pair.verdict is better


def _lead(
    best: Standing | None,
    within: Sequence[Standing],
    verdicts: Mapping[str, PairResult],
    asked: Limits,
    tradeoffs: Tradeoffs,
    is_shown: bool,
) -> Iterator[str]:
    under, basis, metric = f"nder {asked.text}", tradeoffs.basis, metric_of(tradeoffs.metric)
    if best is None or best.judged is None:
        yield f"U{under} no candidate is known to be."
        return
    reached = _figure_text(best.judged, metric)
    others = "; ".join(
        describe_verdict(verdicts[other.label]) for other in within if other.label in verdicts
    )
    said = f": {others}" if others else ""
    if is_shown:
        yield f"Best u{under}: {best.label}, {reached} on test{said}."
    elif len(within) == 1:
        yield f"U{under} only {best.label} is known to be: {reached} on {basis}."
    elif basis is Basis.VALIDATION:
        yield (
            f"Of {len(within)} candidates u{under} {best.label} has the best finished trial by "
            f"validation {metric.noun}, {reached}; this ranks single best trials "
            "and is not a verdict."
        )
    else:
        yield (
            f"Of {len(within)} candidates u{under} {best.label} has the "
            f"{'highest' if metric.larger_is_better else 'lowest'} test {metric.noun}, "
            f"{reached}, which does not show that it is the best{said}."
        )


def _figure_text(judged: MeanInterval, metric: Metric) -> str:
    if isinstance(judged, AccuracyInterval):
        return interval(**vars(judged), metric=metric)
    return figure(judged.mean, metric)
