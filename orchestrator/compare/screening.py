"""A screen audited: how far its probe was to be trusted, by what fine-tuning made of candidates.

A tournament that began with a screen's shortlist has the best by the probe, all of them, and a
random share of those that were screened out, its audit. Each audited one stands for as many as were
screened out to one audited; without an audit nothing stands for those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from pathlib import Path

import numpy as np

from orchestrator.compare import statistics
from orchestrator.compare.finals import by_search, correctness, finished, newest_round
from orchestrator.compare.runs import Array, CandidateTrials, RunData, collect, load
from orchestrator.compare.shortlist import Shortlist, screen_beside, shortlist_of
from orchestrator.compare.statistics import ALPHA, LEVEL, Interval, MeanInterval, share_interval
from orchestrator.compare.verdicts import failed_text
from orchestrator.ledger.events import FILE_NAME
from trainables.config import BackboneSpec
from trainables.errors import UserError

RANKED = 3  # candidates that an order needs
LEAST_N = 3.5  # candidates, counted as their weights allow, that an interval needs
NOTHING_AUDITED = "nothing was audited, so nothing stands for those that were screened out"


class Role(StrEnum):
    """Why a candidate took part: its probe, the draw of the audit, or someone's wish."""

    SHORTLIST = "shortlist"
    AUDIT = "audit"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class ScreenedPool:
    """What a screen says of its candidates. ``probe_top1``: by label, of all within its limits that
    have a probe; ``chosen``: the shortlist, the best first; ``trusted``: it and those on the front
    of accuracy and latency; ``audited``: drawn at random from all others."""

    probe_top1: Mapping[str, float]
    backbones: Mapping[str, BackboneSpec]
    chosen: tuple[str, ...]
    trusted: frozenset[str]
    audited: frozenset[str]

    @classmethod
    def of(cls, result: Shortlist) -> ScreenedPool:
        """What a screen's ledger came to."""
        rows = [row for row in result.ranked if row.beyond is None]
        return cls(
            probe_top1={row.label: row.top1.mean for row in rows},
            backbones={row.label: row.backbone for row in rows},
            chosen=result.chosen,
            trusted=frozenset([*result.chosen, *(result.front or ())]),
            audited=frozenset(result.audited),
        )

    def role(self, label: str) -> Role:
        """Why a candidate takes part."""
        if label in self.trusted:
            return Role.SHORTLIST
        return Role.AUDIT if label in self.audited else Role.OTHER


@dataclass(frozen=True, kw_only=True)
class Participant:
    """A candidate of the tournament that was screened: the accuracy of its probe on validation and
    that of its finals on test, and how many of the pool it stands for."""

    label: str
    role: Role
    probe_top1: float
    test_top1: float
    stands_for: float


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's rho of a pool between probe and fine-tuned accuracy, estimated from ``n`` of its
    candidates. ``None`` where these are too few."""

    rho: float | None
    low: float | None
    high: float | None
    n: int
    level: float = LEVEL


@dataclass(frozen=True, kw_only=True)
class Regret(Interval):
    """By how much ``best``, who has the highest test accuracy of all that took part, is better than
    ``trusted``, the best of those that the probe was trusted with: a fraction."""

    best: str
    trusted: str


@dataclass(frozen=True, kw_only=True)
class ScreeningAudit:
    """What the run's finals say of its screen. ``screened_out``: how many of the pool were on
    no list, of whom ``audited`` took part and have finals. ``correlation`` is over the pool,
    ``regret_shortlist`` and ``regret_first`` over those that took part: the pool's own may be
    larger. Each is ``None`` where it is missing, and ``why`` says so. ``missing``: candidates
    that took part and say nothing."""

    run: str
    screen: str
    participants: tuple[Participant, ...]
    screened_out: int | None
    audited: int
    correlation: RankCorrelation | None
    regret_shortlist: Regret | None
    regret_first: Regret | None
    missing: Mapping[str, str]
    why: Mapping[str, str]

    @property
    def first_was_best(self) -> bool | None:
        """Whether no candidate that took part had a higher test accuracy than the probe's first;
        ``None`` where that is not known."""
        return None if self.regret_first is None else self.regret_first.mean <= 0

    @property
    def shortlist_had_best(self) -> bool | None:
        """The same of the best of the shortlist, where some were audited."""
        return None if self.regret_shortlist is None else self.regret_shortlist.mean <= 0


@dataclass(frozen=True, kw_only=True)
class TrackRecord:
    """The screens of a storage and what came of them, each by its newest tournament: ``first_best``
    is the share of ``runs`` in which the probe's first was the best of all that took part,
    ``shortlist_best`` the share of those with an audit in which the shortlist had the best. Exact
    intervals, as if screens were independent. ``unread``: runs that cannot be read, and why."""

    runs: tuple[str, ...]
    first_best: MeanInterval | None
    shortlist_best: MeanInterval | None
    unread: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ScreeningReport:
    """``audits`` of the compared runs that began with a screen, and the storage's ``record``."""

    audits: tuple[ScreeningAudit, ...]
    record: TrackRecord


def screening_report(runs: Sequence[RunData]) -> ScreeningReport | None:
    """What ``runs`` and those beside them say of screens; ``None`` where none began with one."""
    begun = [run for run in runs if run.state.spec.from_screen]
    if not begun:
        return None
    audits = tuple(filter(None, map(audit_screen, begun)))
    storages = {run.folder.resolve().parent for run in begun}
    return ScreeningReport(audits=audits, record=track_record(begun, storages))


def audit_screen(run: RunData) -> ScreeningAudit | None:
    """What a run says of the screen that it began with; ``None`` where it began with none."""
    screen = run.state.spec.from_screen
    if screen is None:
        return None
    state = screen_beside(run.folder.resolve(), screen)
    if state is None:
        nothing = f"the screen {screen} cannot be read"
        return ScreeningAudit(
            run=run.name, screen=screen, participants=(), screened_out=None, audited=0,
            correlation=None, regret_shortlist=None, regret_first=None, missing={},
            why=dict.fromkeys(("correlation", "regret_shortlist", "regret_first"), nothing),
        )  # fmt: skip
    pool = ScreenedPool.of(shortlist_of(state))
    missing: dict[str, str] = {}
    measured = {c.label: c for c in collect([run]) if _says_something(c, pool, missing)}
    roles = {label: pool.role(label) for label in measured}
    screened_out = sum(pool.role(label) is not Role.SHORTLIST for label in pool.probe_top1)
    audited = [label for label, role in roles.items() if role is Role.AUDIT]
    others = sum(role is Role.OTHER for role in roles.values())
    each = (screened_out - others) / len(audited) if audited else math.nan
    participants = tuple(sorted(
        (
            Participant(
                label=label, role=role, probe_top1=pool.probe_top1[label],
                test_top1=statistics.mean_of(by_search(finished(newest_round(measured[label])))),
                stands_for=each if role is Role.AUDIT else 1.0,
            )
            for label, role in roles.items()
        ),
        key=lambda participant: -participant.test_top1,
    ))  # fmt: skip
    why: dict[str, str] = {}
    if not audited and screened_out > others:
        why = dict.fromkeys(("correlation", "regret_shortlist"), NOTHING_AUDITED)
    elif not screened_out:
        why["regret_shortlist"] = "nobody was screened out"
    if len(participants) < RANKED:
        why.setdefault("correlation", f"{len(participants)} have finals, {RANKED} needed")
    first = pool.chosen[0] if pool.chosen else None
    if first not in measured:
        why["regret_first"] = f"the probe's first, {first or 'nobody'}, has no finals that count"
    elif len(participants) < 2:
        why["regret_first"] = "nobody else has finals that count"
    trusted = [p.label for p in participants if p.label in pool.chosen]
    if not trusted:
        why["regret_shortlist"] = "nobody of the shortlist has finals that count"
    return ScreeningAudit(
        run=run.name,
        screen=screen,
        participants=participants,
        screened_out=screened_out,
        audited=len(audited),
        correlation=None if "correlation" in why else _correlation(participants),
        regret_shortlist=None if "regret_shortlist" in why else regret(measured, trusted),
        regret_first=None if "regret_first" in why else regret(measured, [str(first)]),
        missing=missing,
        why=why,
    )


def _says_something(
    candidate: CandidateTrials, pool: ScreenedPool, missing: dict[str, str]
) -> bool:
    """Whether the candidate has a probe and finals that say how good it is; if not, why is added to
    ``missing``. A failed final is no accuracy, and those that are left would flatter it."""
    label, finals = candidate.label, newest_round(candidate)
    backbone = candidate.sweep.backbone if candidate.sweep else None
    if label not in pool.probe_top1:
        missing[label] = "it has no probe within the screen's limits"
    elif backbone is not None and not _is_same(backbone, pool.backbones[label]):
        missing[label] = "its probe is of another backbone"
    elif not finished(finals):
        missing[label] = "it has no finals"
    elif len(finished(finals)) < len(finals):
        missing[label] = failed_text(finals)
    return label not in missing


def _is_same(a: BackboneSpec, b: BackboneSpec) -> bool:
    return (a.family, a.model, a.weights) == (b.family, b.model, b.weights)


def _correlation(participants: Sequence[Participant]) -> RankCorrelation:
    rows = [(p.probe_top1, p.test_top1, p.stands_for) for p in participants]
    probe, tuned, weights = np.array(rows).T
    return rank_correlation(probe, tuned, weights)


def weighted_spearman(a: Array, b: Array, weights: Array) -> float | None:
    """Spearman's rho of a population, from a sample of which each element stands for ``weights`` of
    it: (N,) each. ``None`` where all of ``a`` or of ``b`` are tied."""
    ranks = [_weighted_ranks(values, weights) for values in (a, b)]
    centred = [rank - np.average(rank, weights=weights) for rank in ranks]
    covariance = np.average(centred[0] * centred[1], weights=weights)
    variances = [np.average(rank**2, weights=weights) for rank in centred]
    if variances[0] * variances[1] <= 0:
        return None
    return float(np.clip(covariance / math.sqrt(variances[0] * variances[1]), -1.0, 1.0))


def _weighted_ranks(values: Array, weights: Array) -> Array:
    """Ties share the middle of their ranks."""
    _, place = np.unique(values, return_inverse=True)
    totals = np.bincount(place, weights)
    return np.asarray((np.cumsum(totals) - totals / 2)[place])


def rank_correlation(a: Array, b: Array, weights: Array) -> RankCorrelation:
    """:func:`weighted_spearman` with its interval at ``LEVEL``.

    On Fisher's scale, with the variance of Bonett and Wright (2000, "Sample size requirements for
    estimating Pearson, Kendall and Spearman correlations", Psychometrika 65, p. 24) for N = (sum of
    weights)^2 / sum of squares (Kish 1965) and Student's t with N - 2 degrees of freedom in place
    of the normal quantile. There a perfect order is put where the nearest imperfect one of N
    is, which keeps its interval from being a point. No interval for N up to 3.5. Simulated
    coverage is in tests/unit/compare/test_compare_screening.py.
    """
    rho, count = weighted_spearman(a, b, weights), len(a)
    n = float(weights.sum() ** 2 / (weights**2).sum())
    if rho is None or n <= LEAST_N:
        return RankCorrelation(rho=rho, low=None, high=None, n=count)
    most = 1 - 6 / (n * (n * n - 1))
    inner = max(-most, min(most, rho))
    error = math.sqrt((1 + inner**2 / 2) / (n - 3))
    half = statistics.t_quantile(0.5 + LEVEL / 2, n - 2) * error
    low, high = math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half)
    return RankCorrelation(rho=rho, low=min(low, rho), high=max(high, rho), n=count)


def regret(measured: Mapping[str, CandidateTrials], trusted: Sequence[str]) -> Regret:
    """By how much the best of ``measured`` is better than the best of ``trusted``, some of them.

    The interval is simultaneous: with intervals of the differences i - c of every other candidate i
    and every trusted one c that hold all at once (Bonferroni), the true regret, max over i of the
    min over c, lies between 0 or what the lower ends give and what the upper ends give (after Hsu
    1984, "Constrained simultaneous confidence intervals for multiple comparisons with the best").
    So it is valid though the best was picked by the same accuracies, and errs to the careful side.
    It covers new images and new searches (of one search each: new seeds of their winners). No ends
    where a difference has none.
    """
    finals = {label: finished(newest_round(of)) for label, of in measured.items()}
    groups = {label: by_search(of) for label, of in finals.items()}
    means = {label: statistics.mean_of(of) for label, of in groups.items()}
    images = {label: correctness(of) for label, of in finals.items()}
    best_trusted = max(trusted, key=means.__getitem__)
    # The trusted one where it is among several with the same accuracy.
    best = max(means, key=lambda label: (means[label], label == best_trusted))
    others = [label for label in measured if label not in trusted]
    level = 1 - ALPHA / max(1, len(others) * len(trusted))
    ends: dict[str, list[Interval]] = {}
    for other, against in product(others, trusted):
        a, b = images[other], images[against]
        has_images = a is not None and b is not None and a.size == b.size
        per_image = np.asarray(a) - np.asarray(b) if has_images else None
        estimate = statistics.difference(groups[other], groups[against], per_image)
        if estimate is not None:
            ends.setdefault(other, []).append(estimate.interval(level))
    low, high = None, None
    if others and all(len(ends.get(other, ())) == len(trusted) for other in others):
        low = max(0.0, *(min(_end(i.low) for i in of) for of in ends.values()))
        high = max(0.0, *(min(_end(i.high) for i in of) for of in ends.values()))
    return Regret(
        mean=means[best] - means[best_trusted], low=low, high=high, best=best, trusted=best_trusted
    )


def _end(value: float | None) -> float:
    assert value is not None  # an estimate's interval has ends
    return value


def track_record(runs: Sequence[RunData], storages: set[Path]) -> TrackRecord:
    """Over ``runs`` and those beside them in ``storages`` that began with a screen."""
    loaded = {run.folder.resolve(): run for run in runs}
    unread: dict[str, str] = {}
    for folder in (path for storage in storages for path in _begun_with_a_screen(storage)):
        if folder not in loaded:
            try:
                loaded[folder] = load(folder)
            except UserError as error:
                unread[folder.name] = str(error)
    newest: dict[Path, tuple[float, ScreeningAudit]] = {}
    for folder, run in loaded.items():
        audit = audit_screen(run)
        if audit is None or audit.first_was_best is None:
            continue
        screen, at = folder.parent / audit.screen, run.state.created_at or 0.0
        if screen not in newest or newest[screen][0] < at:
            newest[screen] = at, audit
    audits = [audit for _, audit in sorted(newest.values(), key=lambda pair: pair[0])]
    return TrackRecord(
        runs=tuple(audit.run for audit in audits),
        first_best=_share([bool(audit.first_was_best) for audit in audits]),
        shortlist_best=_share([
            had_best for audit in audits if (had_best := audit.shortlist_had_best) is not None
        ]),
        unread=unread,
    )  # fmt: skip


def _share(hits: Sequence[bool]) -> MeanInterval | None:
    return share_interval(sum(hits), len(hits)) if hits else None


def _begun_with_a_screen(storage: Path) -> Iterator[Path]:
    """Folders of a storage whose first record names a screen; nothing else of them is read."""
    for path in sorted(storage.glob(f"*/{FILE_NAME}")):
        with path.open("rb") as ledger:
            first = ledger.readline()
        try:
            screen = json.loads(first)["detail"]["spec"].get("from_screen")
        except (ValueError, LookupError, TypeError, AttributeError):
            continue  # a screen of before, or damaged
        if screen:
            yield path.parent.resolve()
