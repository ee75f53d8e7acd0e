"""What another scheduler, or other slots, would have made of a run's own learning curves.

Two questions. Does the scheduler that a run had, fed its reports in the order on record, decide
what is on record? And what do a run's settings, and others, come to when the same trials arrive in
other orders: cost, makespan, the winner and what it loses against the best on record?

A trial's curve ends where the run ended it. A trial that would have gone on beyond is counted and
ends there: its cost and its accuracy further on are not known, and are not made up. A run without
pruning, and one whose audit finished all that it would have pruned, can be answered in full.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from orchestrator.compare.winners import winners
from orchestrator.engine.scheduler import Scheduler
from orchestrator.ledger import cost
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.state import Record, State, TrialState, replay, require_trials
from orchestrator.simulate.run import UNKNOWN, simulate
from orchestrator.simulate.worlds import Training
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.overrides import apply_sets
from orchestrator.spec.published import PublishedStart
from orchestrator.spec.run import RunSpec, SweepSpec, search_name
from orchestrator.wording import MISSING, duration, points, span
from trainables.config import Assignment
from trainables.errors import UserError, raise_if_any
from trainables.metrics import TOP1

DECISIONS = ("promoted", "pruned", "audited", "paused")
SHARE = 0.95  # of the orders of arrival that a range holds


@dataclass(frozen=True)
class RecordedWorld:
    """The curves of a run's search trials. ``order`` says whose curve a trial of the simulated run
    has, by name: another order of arrival."""

    trials: Mapping[str, TrialState]
    order: Mapping[str, str]

    @property
    def published(self) -> dict[str, PublishedStart]:
        """By the simulated trial, whose recipes were published and so are never pruned."""
        trials = {simulated: self.trials[name] for simulated, name in self.order.items()}
        return {name: start for name, trial in trials.items() if (start := trial.published)}

    def train(self, assignment: Assignment) -> Training:
        """As far as the trial went; it has failed where it failed then."""
        name = self.order.get(assignment.trial_id)
        if name is None:  # its search has fewer trials on record than another one
            return Training(metrics=(), seconds=(0.0,))
        trial = self.trials[name]
        reports = [trial.reports[epoch] for epoch in sorted(trial.reports)]
        seconds = [cost.epoch_cost(report, trial.num_workers).total for report in reports]
        failure = trial.reason or "it failed" if trial.status == "failed" else None
        return Training(
            metrics=tuple(report.metrics for report in reports),
            seconds=tuple(second / trial.num_workers for second in seconds) or (0.0,),
            failure=failure,
        )

    def correct(self, assignment: Assignment) -> npt.NDArray[np.bool_]:
        """Nothing: a replay has no finals."""
        return np.empty(0, dtype=bool)


@dataclass(frozen=True, kw_only=True)
class Range:
    """The mean over orders of arrival, and the ends between which ``SHARE`` of them lie."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range | None:
        """Of the values that are there; ``None`` where none is."""
        present = [value for value in values if math.isfinite(value)]
        if not present:
            return None
        low, high = np.quantile(present, [(1 - SHARE) / 2, (1 + SHARE) / 2])
        return cls(mean=fmean(present), low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class SearchReplay:
    """One search over all orders; ``family`` is its name, ``vit-s2`` the second one of vit.
    ``winners``: how often each trial won, the most frequent first. ``regret``: validation figure
    that the winner lacks, at full length, against the best on record, ``None`` where no winner was
    ever finished."""

    family: str
    epochs: Range | None
    winners: Mapping[str, int]
    without_winner: int
    regret: Range | None


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One scheduler on a run's curves, over ``orders`` of arrival. ``unknown``: trials of an order
    that would have gone on beyond their record."""

    scheduler: SchedulerSpec
    slots: int
    orders: int
    device_seconds: Range | None
    makespan_s: Range | None
    unknown: Range | None
    families: tuple[SearchReplay, ...]


def disagreements(records: Iterable[Record], state: State) -> list[str]:
    """Where the run's own scheduler, fed the reports in the order on record, decides otherwise than
    it is on record; a line each."""
    records = list(records)
    search = {name: trial for name, trial in state.trials.items() if trial.stage == "search"}
    recorded = {
        (record["trial"], record["epoch"]): record["event"]
        for record in records
        if record["event"] in DECISIONS and record["trial"] in search
    }
    decided: dict[tuple[str, int], str] = {}

    def decide(event: str, trial: str, *, epoch: int, **fields: object) -> None:
        decided[trial, epoch] = event

    fresh = State(
        header=state.header, trials={name: _unbegun(trial) for name, trial in search.items()}
    )
    schedulers = {sweep.candidate: sweep.scheduler for sweep in state.spec.sweeps}
    scheduler = Scheduler(schedulers, fresh, decide, seed=state.spec.sweeps[0].seed)
    for record in records:
        name, epoch = record.get("trial"), record.get("epoch", 0)
        if name not in search:
            continue
        # A report is judged when its decision was put on record, which may be some reports later.
        judged = record["event"] in DECISIONS
        if judged or (record["event"] == "reported" and (name, epoch) not in recorded):
            value = search[name].reports[epoch].metrics.get(scheduler.metric.val_key)
            scheduler.on_report(name, epoch, value)
        elif record["event"] in ("finished", "failed"):
            scheduler.on_end(name)
    return [
        f"{name} after epoch {epoch}: {recorded.get((name, epoch), 'no decision')} on record, "
        f"{decided.get((name, epoch), 'no decision')} here"
        for name, epoch in sorted({*recorded, *decided})
        if recorded.get((name, epoch)) != decided.get((name, epoch))
    ]


def _unbegun(trial: TrialState) -> TrialState:
    return TrialState(
        trial=trial.trial,
        candidate=trial.candidate,
        search=trial.search,
        assignment=trial.assignment,
        published=trial.published,
    )


def replay_run(
    state: State, *, scheduler: Mapping[str, SchedulerSpec], slots: int, orders: int
) -> Replay:
    """Simulate the search of a run under the ``scheduler`` of each candidate. Raises ``UserError``
    where the run's curves cannot answer that."""
    search = {name: trial for name, trial in state.trials.items() if trial.stage == "search"}
    for candidate, asked in scheduler.items():
        lengths = (t.assignment.epochs for t in search.values() if t.candidate == candidate)
        length = max(lengths, default=asked.max_epochs)
        if asked.max_epochs != length:
            raise UserError(
                "a replay keeps scheduler.max_epochs, for which each trial's schedule of learning "
                f"rates was laid out; got {asked.max_epochs} for {length} of {candidate} on "
                "record. Fix: leave it out"
            )
    names = dict.fromkeys(t.search_name for t in search.values() if t.candidate in scheduler)
    simulated = [_one_order(state, scheduler, slots, seed) for seed in range(orders)]
    return Replay(
        scheduler=next(iter(scheduler.values())),
        slots=slots,
        orders=orders,
        device_seconds=Range.of([one.device_seconds for one in simulated]),
        makespan_s=Range.of([one.makespan_s for one in simulated]),
        unknown=Range.of([one.unknown for one in simulated]),
        families=tuple(_search(name, search, simulated) for name in names),
    )


@dataclass(frozen=True, kw_only=True)
class _Order:
    """One order of arrival: what it cost, and by search its winner on record and its epochs."""

    device_seconds: float
    makespan_s: float
    unknown: int
    winners: Mapping[str, str]
    epochs: Mapping[str, int]


def _one_order(
    state: State, scheduler: Mapping[str, SchedulerSpec], slots: int, seed: int
) -> _Order:
    spec, world = recorded_order(state, scheduler, seed)
    with tempfile.TemporaryDirectory() as folder:
        images = state.header.datasets
        run = simulate(
            spec, world, Path(folder), slots=slots, images=images, published=world.published
        )
    trials = run.state.trials.values()
    return _Order(
        device_seconds=cost.device_seconds(run.state),
        makespan_s=run.makespan_s,
        unknown=sum(trial.reason == UNKNOWN for trial in trials),
        winners={search: world.order[won.trial] for search, won in winners(run.state).items()},
        epochs={
            search: sum(trial.epoch for trial in trials if trial.search_name == search)
            for search in {trial.search_name for trial in trials}
        },
    )


def recorded_order(
    state: State, scheduler: Mapping[str, SchedulerSpec], seed: int
) -> tuple[RunSpec, RecordedWorld]:
    """A run of the candidates in ``scheduler`` with as many trials as are on record, nothing drawn,
    in an order of arrival that ``seed`` draws; and the world whose curves they have."""
    search = {name: trial for name, trial in state.trials.items() if trial.stage == "search"}
    sweeps: list[SweepSpec] = []
    order: dict[str, str] = {}
    for sweep in state.spec.sweeps:
        names: dict[int, list[str]] = {}  # by search
        for name, trial in search.items():
            if trial.candidate == sweep.candidate:
                names.setdefault(trial.search, []).append(name)
        if not names or sweep.candidate not in scheduler:
            continue
        count, asked = max(map(len, names.values())), scheduler[sweep.candidate]
        bare = replace(sweep, scheduler=asked, trials=count, space={}, grid=(), warm_start=None)
        for number, of_search in names.items():
            chance = random.Random(f"{seed}/{search_name(sweep.candidate, number)}")
            chance.shuffle(of_search)
            order |= {bare.trial_name(i, number): name for i, name in enumerate(of_search)}
        sweeps.append(bare)
    searches = max((trial.search for trial in search.values()), default=1)
    bare_run = replace(
        state.spec, sweeps=tuple(sweeps), searches=searches, final_seeds=0, budget=None,
        prices=None, claim=None,
    )  # fmt: skip
    return bare_run, RecordedWorld(search, order)


def _search(
    search: str, trials: Mapping[str, TrialState], simulated: Sequence[_Order]
) -> SearchReplay:
    won = [order.winners[search] for order in simulated if search in order.winners]
    counts = {name: won.count(name) for name in sorted(set(won), key=lambda n: -won.count(n))}
    finished = {
        name: trial
        for name, trial in trials.items()
        if trial.search_name == search and trial.status == "finished"
    }
    full = {n: value for n, trial in finished.items() if (value := trial.best()[0]) is not None}
    metric = next((trial.metric for trial in finished.values()), TOP1)
    best = max(full.values(), key=metric.score, default=math.nan)
    return SearchReplay(
        family=search,
        epochs=Range.of([order.epochs[search] for order in simulated]),
        winners=counts,
        without_winner=len(simulated) - len(won),
        regret=Range.of([metric.advantage(best, full.get(name, math.nan)) for name in won]),
    )


def slots_on_record(records: Iterable[Record]) -> int:
    """The most slots that a session of the run had."""
    sessions: dict[str, set[str]] = {}
    for record in records:
        if record["event"] == "started" and record.get("slot"):
            # SESSION-INDEX.LIFE
            session, _, slot = record["slot"].rpartition("-")
            sessions.setdefault(session, set()).add(slot.partition(".")[0])
    return max(map(len, sessions.values()), default=1)


def asked_schedulers(spec: RunSpec, texts: Sequence[str]) -> dict[str, SchedulerSpec]:
    """By candidate, the run's scheduler with what ``texts`` (``scheduler.PATH=VALUE``) change of
    it. Raises ``UserError``."""
    changed = apply_sets(spec.sweeps, texts)
    for before, after in zip(spec.sweeps, changed, strict=True):
        # The default ranges of some axes follow the trials' length.
        if replace(after, scheduler=before.scheduler, space=before.space) != before:
            raise UserError(
                "a replay changes scheduler.* alone, since the curves are those on record; got "
                f"{', '.join(texts)}. Fix: --set scheduler.reduction_factor=2, or run a sweep"
            )
    mistakes = [line for sweep in changed for line in sweep.scheduler.mistakes()]
    raise_if_any(list(dict.fromkeys(mistakes)))
    return {sweep.candidate: sweep.scheduler for sweep in changed}


@dataclass(frozen=True, kw_only=True)
class RunReplay:
    """A run replayed. ``differs_from_record``: where its own scheduler, fed the reports in their
    order, decides otherwise than it is on record. ``as_asked`` is ``None`` where nothing was."""

    name: str
    differs_from_record: tuple[str, ...]
    as_it_ran: Replay
    as_asked: Replay | None


def replay_of(folder: Path, texts: Sequence[str], *, slots: int | None, orders: int) -> RunReplay:
    """Replay the run in ``folder``, as it ran and with the changes that ``texts`` ask for. Raises
    ``UserError``."""
    records = list(read(folder / FILE_NAME))
    state = replay(records)
    require_trials(state)
    count = slots or slots_on_record(records)

    def under(texts: Sequence[str]) -> Replay:
        scheduler = asked_schedulers(state.spec, texts)
        return replay_run(state, scheduler=scheduler, slots=count, orders=orders)

    return RunReplay(
        name=folder.name,
        differs_from_record=tuple(disagreements(records, state)),
        as_it_ran=under(()),
        as_asked=under(texts) if texts else None,
    )


def replay_text(replayed: RunReplay) -> str:
    """For the terminal: whether the record is reproduced, and a block for each scheduler."""
    differing = replayed.differs_from_record
    decides = f"otherwise {len(differing)} times" if differing else "what is on record"
    lines = [
        f"{replayed.name}: its own scheduler, fed the reports in their order, decides {decides}",
        *(f"  {line}" for line in differing),
        *_block("as it ran", replayed.as_it_ran),
    ]
    if replayed.as_asked is not None:
        lines += _block("as asked", replayed.as_asked)
    return "\n".join(lines)


def _block(title: str, one: Replay) -> list[str]:
    scheduler = one.scheduler
    lines = [
        f"{title}: {scheduler.kind}, reduction_factor {scheduler.reduction_factor}, grace_epochs "
        f"{scheduler.grace_epochs}, noise_rule {scheduler.noise_rule}, on {one.slots} slots; means "
        f"over {one.orders} orders of arrival ({SHARE:.0%} of them)",
        f"  device time {_range(one.device_seconds, duration)}, "
        f"makespan {_range(one.makespan_s, duration)}",
    ]
    for search in one.families:
        counts = {**search.winners, "none": search.without_winner}
        won = [f"{trial} {times / one.orders:.0%}" for trial, times in counts.items() if times]
        lines.append(
            f"  {search.family}: {_range(search.epochs, '{:.0f}'.format)} epochs; "
            f"winner {', '.join(won)}; regret {_range(search.regret, points)}"
        )
    if one.unknown is not None and one.unknown.high > 0:
        lines.append(
            f"  {_range(one.unknown, '{:.1f}'.format)} trials would have gone on beyond their "
            "record: what that costs and gives is not known and not in these figures"
        )
    return lines


def _range(value: Range | None, text: Callable[[float], str]) -> str:
    if value is None:
        return MISSING
    return f"{text(value.mean)} ({span(text(value.low), text(value.high))})"
