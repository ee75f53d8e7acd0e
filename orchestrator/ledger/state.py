"""What a ledger's records add up to: trials and run as plain values, a fold over the lines.

Ledgers of other versions are read: keys they lack are missing here, keys they have besides are
left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import NoneType
from typing import Any

from orchestrator.ledger.header import RunHeader
from orchestrator.ledger.screen_state import ScreenState
from orchestrator.spec.published import PublishedStart
from orchestrator.spec.run import RunSpec, search_name
from orchestrator.spec.spaces import Axes
from trainables.config import Assignment
from trainables.errors import UserError, one_line
from trainables.metrics import Metric, metric_of
from trainables.spec import Spec


@dataclass(frozen=True, kw_only=True)
class SplitOpening(Spec):
    """A run's opening of the test split ``test_hash``: the ``number``-th of that split in its
    storage, after those of the runs ``earlier``, by name."""

    test_hash: str
    number: int
    earlier: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Which opening it is, and whose were before."""
        after = f", after {', '.join(self.earlier)}" if self.earlier else ""
        return f"opening {self.number} of this test split{after}"


Record = dict[str, Any]


class TrialStatus(StrEnum):
    """How a trial stands. ``QUEUED`` has not begun; a run that is not at work has no running one,
    whatever its ledger's last word on the trial."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing more is to come of the trial."""
        return self in (TrialStatus.FINISHED, TrialStatus.PRUNED, TrialStatus.FAILED)


class Stage(StrEnum):
    """What a trial is for: to find a recipe, or to measure the winner."""

    SEARCH = "search"
    FINAL = "final"


class RunStatus(StrEnum):
    """How a run stands: see :func:`run_status`."""

    EMPTY = "empty"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for has ended."""
        return self in (RunStatus.DONE, RunStatus.FAILED)


@dataclass(frozen=True, slots=True)
class ReportedEpoch(Spec):
    """One epoch's ``reported`` record: time in unix seconds, metrics as in DESIGN, section 5. An
    elastic slot says how many ``workers`` trained it. ``place`` counts the run's reports in the
    ledger's order, which no clock can change."""

    epoch: int
    time: float
    metrics: Mapping[str, float]
    checkpoint: str | None = None
    workers: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    place: int = 0


@dataclass
class TrialState:
    """Everything the ledger says of one trial.

    ``axes`` is ``None`` until the sampler has suggested them; until then the ``open_axes`` of
    ``assignment``, paths as ``recipe.learning_rate``, hold defaults that nobody chose.
    """

    trial: str
    candidate: str
    assignment: Assignment
    search: int = 1  # which of the candidate's independent searches it belongs to
    stage: Stage = Stage.SEARCH
    status: TrialStatus = TrialStatus.QUEUED
    attempt: int = 0
    axes: Axes | None = None
    open_axes: tuple[str, ...] = ()
    published: PublishedStart | None = None  # of trial 0 where its recipe is its family's own
    winner: str | None = None  # a final's search trial
    detail: dict[str, Any] = field(default_factory=dict)
    outcome: Mapping[str, Any] = field(default_factory=dict)  # detail of the record that ended it
    reports: dict[int, ReportedEpoch] = field(default_factory=dict)
    rungs: dict[int, str] = field(default_factory=dict)  # rung epoch -> promoted | pruned | audited
    preempted_at: tuple[int, str] | None = None  # epoch and checkpoint, be it within an epoch
    preemptions: int = 0  # attempts that lost a node, or had to leave one
    slot: str | None = None
    nodes: tuple[str, ...] = ()  # of its slot's workers, as the last attempt began
    reason: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    num_workers: int = 1  # of a slot of full size
    unreported_s: float = 0.0  # of its slots: epochs lost, the test evaluation, speed
    held_s: float = 0.0  # of its slots: an epoch that was interrupted and is not reported yet
    speed: Mapping[str, Any] | None = None  # of a final's model, empty where that failed
    speed_measured_at: float | None = None

    @property
    def family(self) -> str:
        """Of its backbone."""
        return self.assignment.backbone.family

    @property
    def search_name(self) -> str:
        """Of its search: trials race, and winners are chosen, within one."""
        return search_name(self.candidate, self.search)

    @property
    def epoch(self) -> int:
        """Last epoch reported; 0 when none was."""
        return max(self.reports, default=0)

    @property
    def recipe(self) -> Axes:
        """The recipe by axis, without those that are not suggested yet."""
        plain = self.assignment.recipe.as_dict()
        return {k: v for k, v in plain.items() if f"recipe.{k}" not in self.open_axes}

    @property
    def probes(self) -> Mapping[str, Any]:
        """What a final measured of its model beside accuracy; speed too, be it measured later."""
        probes = self.outcome.get("probes") or {}
        return {**probes, "speed": self.speed} if self.speed else probes

    @property
    def audited(self) -> bool:
        """Whether it would have been pruned and was finished all the same."""
        return "audited" in self.rungs.values()

    @property
    def checkpoints(self) -> list[str]:
        """Checkpoint folders on record, the newest first, be it in the middle of an epoch."""
        written = [self.reports[epoch].checkpoint for epoch in sorted(self.reports)]
        if self.preempted_at and self.preempted_at[0] >= self.epoch:
            written.append(self.preempted_at[1])
        return [folder for folder in reversed(written) if folder]

    @property
    def checkpoint(self) -> str | None:
        """The newest checkpoint folder on record."""
        return next(iter(self.checkpoints), None)

    @property
    def best_checkpoint(self) -> str | None:
        """The folder on record with the best judged value, the earlier one of a tie."""
        saved = {e: score for e, score in self.scores().items() if self.reports[e].checkpoint}
        epoch = max(saved, key=saved.__getitem__, default=None)
        return None if epoch is None else self.reports[epoch].checkpoint

    @property
    def metric(self) -> Metric:
        """What it is judged by. Raises ``UserError`` for one that this version does not know."""
        return metric_of(self.assignment.metric)

    def values(self, metric: Metric | None = None) -> dict[int, float]:
        """Epoch -> validation ``metric`` (``None``: the one it is judged by) where it is finite, in
        the order of epochs."""
        key = (metric or self.metric).val_key
        values = {e: self.reports[e].metrics.get(key, math.nan) for e in sorted(self.reports)}
        return {epoch: value for epoch, value in values.items() if math.isfinite(value)}

    def scores(self, metric: Metric | None = None) -> dict[int, float]:
        """:meth:`values` as :meth:`Metric.score` has them: a larger one is better."""
        asked = metric or self.metric
        return {epoch: float(asked.score(value)) for epoch, value in self.values(asked).items()}

    def best(self, metric: Metric | None = None) -> tuple[float | None, int | None]:
        """Best of :meth:`values` and the epoch it was reached in, the earlier one of a tie."""
        scores = self.scores(metric)
        epoch = max(scores, key=scores.__getitem__, default=None)
        return (None, None) if epoch is None else (self.values(metric)[epoch], epoch)

    @property
    def best_score(self) -> float | None:
        """The score of :meth:`best` by the metric that it is judged by."""
        return max(self.scores().values(), default=None)


@dataclass(frozen=True, kw_only=True)
class FrozenWinners:
    """The end of the search: the winning ``trials`` by search, and how many ``final_seeds`` each
    gets. ``detail`` is the record's, which the opening of the test split repeats."""

    trials: Mapping[str, str]
    final_seeds: int | None
    detail: Mapping[str, Any]

    @classmethod
    def of(cls, detail: Mapping[str, Any]) -> FrozenWinners:
        """As a ``frozen`` record tells them. Raises ``LookupError`` or ``TypeError`` for another
        record than this project writes."""
        trials = {search: won["trial"] for search, won in dict(detail.get("winners", {})).items()}
        return cls(trials=trials, final_seeds=detail.get("final_seeds"), detail=detail)


@dataclass
class State:
    """A run as its ledger tells it; ``header`` is an empty one until the first record."""

    header: RunHeader = field(default_factory=RunHeader)
    trials: dict[str, TrialState] = field(default_factory=dict)
    created_at: float | None = None
    closed: bool = False
    stopped: bool = False
    frozen: FrozenWinners | None = None
    test_opened: bool = False  # for the winners on record
    test_opened_at: float | None = None
    test_openings: int = 0
    split_openings: tuple[SplitOpening, ...] = ()  # of the last one; empty where not registered
    notes: list[str] = field(default_factory=list)
    stop_reason: str | None = None
    verdict: Record = field(default_factory=dict)  # the last one on a claim, with its time
    num_reports: int = 0
    screen: ScreenState = field(default_factory=ScreenState)

    @property
    def spec(self) -> RunSpec:
        """What was asked for; of a ledger without a first record, a run of nothing."""
        return self.header.spec

    @property
    def test_hashes(self) -> list[str]:
        """Content hashes of the test splits, in order; none of an older run's."""
        hashes = {facts.test_hash for facts in self.header.datasets.values()}
        return sorted(test_hash for test_hash in hashes if test_hash)

    @property
    def begun(self) -> bool:
        """Whether the first record is there."""
        return self.created_at is not None

    @property
    def is_screen(self) -> bool:
        """Whether it screens candidates, and has no trials."""
        return self.header.screen is not None


def run_status(state: State, *, running: bool) -> RunStatus:
    """How a run stands, for everyone who shows it. ``running``: a process carries it out.

    ``DONE`` (``FAILED`` where every trial failed) once the run has reached its end, also while its
    process still works on the report; one that has neither ended nor been stopped, and that no
    process carries out, is ``INTERRUPTED``: its process died.
    """
    if state.closed and state.is_screen:
        screened = state.screen.screened
        all_failed = screened and len(state.screen.failed()) == len(screened)
        return RunStatus.FAILED if all_failed else RunStatus.DONE
    if state.closed and state.trials:
        failed = all(trial.status == TrialStatus.FAILED for trial in state.trials.values())
        return RunStatus.FAILED if failed else RunStatus.DONE
    if running:
        return RunStatus.RUNNING
    if not state.trials and not state.is_screen:
        return RunStatus.EMPTY
    return RunStatus.STOPPED if state.stopped else RunStatus.INTERRUPTED


def require_trials(state: State) -> None:
    """Raise ``UserError`` for a screen, which has none."""
    if state.is_screen:
        name = state.header.run
        raise UserError(
            f"only a run with trials can be asked this; {name!r} is a screen. "
            f"Fix: orchestrator compare {name}"
        )


MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def replay(records: Iterable[Record], *, source: str = "the ledger") -> State:
    """Fold records into a state. Any prefix gives a valid one; a repeated report counts once.

    Raises ``UserError`` naming the line of ``source`` that holds another record than this project
    writes.
    """
    state, line = State(), 0
    for line, record in enumerate(records, 1):
        try:
            apply(state, record)
        except MALFORMED as error:
            raise UserError(
                f"every line of a ledger is a record of this project; {source}, line {line}, holds "
                f"something else ({one_line(error)[:200]}). Fix: put back a copy, or --name OTHER"
            ) from None
    return state


def apply(state: State, record: Record) -> None:
    """Fold one record into ``state``."""
    event, name = record["event"], record.get("trial")
    if not isinstance(record.get("detail"), dict | NoneType):
        raise TypeError(f"detail is {record['detail']!r:.80}")
    if event == "noted" or (event == "speed_measured" and "reason" in record):
        state.notes.append(record.get("reason", ""))
    if name is None:
        _apply_to_run(state, event, record)
    elif event == "submitted":
        if name not in state.trials:
            state.trials[name] = _submitted(name, record, state.spec)
    elif name in state.trials:
        trial = state.trials[name]
        if event == "reported" and record["epoch"] not in trial.reports:
            state.num_reports += 1
            record = {**record, "place": state.num_reports}
        _apply_to_trial(trial, event, record)


def _apply_to_run(state: State, event: str, record: Record) -> None:
    match event:
        case "created" | "extended":
            state.header = RunHeader.from_dict(record["detail"])
            state.created_at = state.created_at or record["time"]
            state.closed = False
        case "resumed":
            state.stopped = state.closed = False
        case "stopped":
            state.stopped, state.stop_reason = True, record.get("reason")
        case "closed":
            state.closed = True
        case "frozen":
            state.frozen, state.test_opened = FrozenWinners.of(record["detail"]), False
        case "test_opened":
            state.test_opened = True
            state.test_opened_at = state.test_opened_at or record["time"]
            state.test_openings += 1
            splits = record.get("openings", ())
            state.split_openings = tuple(SplitOpening.from_dict(opening) for opening in splits)
        case "verdict":
            state.verdict = record
    state.screen.apply(event, record)


# Of a record and its detail, what is computed with or sorted by. Any other fact is only shown.
NUMBERS = ("epoch", "attempt", "rung", "slot_seconds", "held_seconds", "setup_seconds", "params_m",
           "gflops_per_image", "train_images")  # fmt: skip
TEXTS = ("checkpoint", "device", "model", "dataset_hash", "reason", "slot")


def _check(facts: Record) -> None:
    """Raises ``TypeError`` where one of ``NUMBERS`` is none, or one of ``TEXTS``."""
    for names, kinds in ((NUMBERS, (int, float, NoneType)), (TEXTS, (str, NoneType))):
        for name in names:
            if name in facts and type(facts[name]) not in kinds:
                raise TypeError(f"{name} is {facts[name]!r:.80}")


def _apply_to_trial(trial: TrialState, event: str, record: Record) -> None:
    _check(record)
    _check(record.get("detail", {}))
    trial.unreported_s += record.get("slot_seconds", 0.0)
    match event:
        case "reported":
            trial.held_s = 0.0
            if record["epoch"] not in trial.reports:
                trial.reports[record["epoch"]] = ReportedEpoch.from_dict(record)
            trial.detail.update(record.get("detail", {}))
        case "started":
            trial.status = TrialStatus.RUNNING
            trial.attempt = record["attempt"]
            trial.slot = record.get("slot")
            trial.nodes = tuple(record.get("nodes", ()))
            trial.started_at = trial.started_at or record["time"]
            trial.detail.update(record.get("detail", {}))
        case "drawn" if trial.axes is None:
            trial.axes, trial.open_axes = record["detail"]["axes"], ()
            trial.assignment = Assignment.from_dict(record["detail"]["assignment"])
        case "promoted" | "audited":
            trial.rungs[record["rung"]] = event
        case "paused":
            trial.rungs[record["rung"]], trial.slot = event, None
        case "preempted":
            trial.held_s += record.get("held_seconds", 0.0)
            if folder := record.get("checkpoint"):
                trial.preempted_at = record["epoch"], folder
            trial.preemptions += bool(record.get("nodes"))
            trial.slot = None
        case "speed_measured":
            trial.speed, trial.speed_measured_at = record["detail"], record["time"]
        case "finished" | "pruned" | "failed":
            if event == "pruned":
                trial.rungs[record["rung"]] = event
            trial.status = TrialStatus(event)
            trial.outcome, trial.reason = record.get("detail", {}), record.get("reason")
            trial.slot, trial.ended_at = None, record["time"]


def names(candidate: str, family: str) -> Record:
    """How a record says whose trial it is: the ``candidate`` is its family, as in ledgers of before
    there were labels, where it is not named."""
    return {"family": family} | ({} if candidate == family else {"candidate": candidate})


def _submitted(name: str, record: Record, spec: RunSpec) -> TrialState:
    detail, family = record["detail"], record["family"]
    candidate: Any = record.get("candidate", family)
    are_texts = isinstance(family, str) and isinstance(candidate, str)
    if not are_texts or not isinstance(detail.get("axes", {}), dict | NoneType):
        raise TypeError("candidate and family are texts, and axes are by name")
    plain = {"trial_id": name, "backbone": {"family": family}, **detail["assignment"]}
    assignment = Assignment.from_dict(plain)
    axes = detail.get("axes")
    open_axes = [
        f"{section}.{axis.name}"
        for section in ("recipe", "backbone", "data")  # what may be searched
        for axis in fields(getattr(assignment, section))
        if axes is None and axis.name not in plain.get(section, ())
    ]
    return TrialState(
        trial=name,
        candidate=candidate,
        search=record.get("search", 1),
        stage=Stage(record.get("stage", "search")),
        assignment=assignment,
        axes=axes,
        open_axes=tuple(open_axes),
        published=PublishedStart.from_dict(start) if (start := detail.get("published")) else None,
        winner=detail.get("winner"),
        num_workers=spec.sweeps[0].resources.num_workers if spec.sweeps else 1,
    )
