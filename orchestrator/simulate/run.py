"""A run on virtual slots: events in the order of a virtual clock, decisions by the engine's code.

What stands in for Ray is small: slots that train for as long as the world says, trials that ask
for one epoch after the other as Tune's do, and messages between them that may be late, lost or
repeated. The same spec, world, faults and number of slots give the same ledger, byte for byte.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.compare.runs import RunData
from orchestrator.engine import finals
from orchestrator.engine.brackets import Action
from orchestrator.engine.budget_guard import Slot
from orchestrator.engine.dispatcher_state import DispatcherState, SessionOptions
from orchestrator.engine.scheduler import Scheduler
from orchestrator.ledger.events import FILE_NAME
from orchestrator.ledger.header import RunHeader
from orchestrator.ledger.session import open_trials, opening_records, state_of
from orchestrator.ledger.state import State, run_status
from orchestrator.simulate.faults import DriverDied, Faults, MortalLedger
from orchestrator.simulate.worlds import Training, World
from orchestrator.spec.published import PublishedStart
from orchestrator.spec.run import RunSpec
from trainables.config import Assignment, DatasetFacts, EpochReport, SpeedReport
from trainables.errors import StorageError
from trainables.storage import trial_files
from trainables.worker.messages import Order, SlotCommand

BEGIN_S = 1_700_000_000.0  # the virtual clock's zero, in unix seconds
SPEED_S = 5.0  # that measuring the speed of a model takes
UNKNOWN = "its recorded curve ends here"  # the reason of a trial that the world cannot go on with


@dataclass
class VirtualSlot:
    """A Ray Train run of one worker: ``life`` counts its worker groups."""

    name: str
    node: str
    life: int = 0
    trial: str | None = None
    attempt: int = 0
    gone: tuple[str, ...] = ()  # its former node, until it has asked for work again

    @property
    def incarnation(self) -> str:
        """As the dispatcher knows its worker group."""
        return f"{self.name}/{self.life}"


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """``makespan_s`` is of the virtual clock; ``sessions`` is how often the driver was started.
    ``data`` is what a comparison takes; its folder must be there by then."""

    makespan_s: float
    sessions: int
    data: RunData

    @property
    def state(self) -> State:
        """What the ledger adds up to."""
        return self.data.state


def simulate(
    spec: RunSpec,
    world: World,
    folder: Path,
    *,
    slots: int,
    faults: Faults | None = None,
    images: Mapping[str, DatasetFacts] | None = None,
    published: Mapping[str, PublishedStart] | None = None,
) -> SimulatedRun:
    """Carry ``spec`` out in ``folder`` until it has ended, however often its driver dies.
    ``images`` are by candidate: a noise rule needs to know how many an accuracy is over.
    ``published`` says by trial which recipes of a replayed run were, where the ``spec`` does not.
    Raises ``UserError`` where the run cannot be begun and ``RuntimeError`` where nothing more can
    happen.
    """
    faults, now, sessions = faults or Faults(), 0.0, 0
    while True:
        sessions += 1
        session = Session(
            spec,
            world,
            folder,
            slots=slots,
            faults=faults,
            images=images or {},
            published=published or {},
            now=now,
            number=sessions,
        )
        try:
            session.run()
        except DriverDied:
            now = session.now
            continue
        except StorageError as error:
            with suppress(DriverDied):
                session.ledger.append("stopped", reason=str(error))
            now = session.now
            continue
        finally:
            session.ledger.close()
        state = session.dispatcher.state
        status = run_status(state, running=False)
        data = RunData(folder=folder, state=state, status=status, checkpoint_bytes=0)
        return SimulatedRun(makespan_s=session.now, sessions=sessions, data=data)


class Session:
    """One driver's life."""

    def __init__(
        self,
        spec: RunSpec,
        world: World,
        folder: Path,
        *,
        slots: int,
        faults: Faults,
        images: Mapping[str, DatasetFacts],
        published: Mapping[str, PublishedStart],
        now: float,
        number: int,
    ) -> None:
        self.now, self._spec, self._world, self._faults = now, spec, world, faults
        self._images, self._published = images, published
        self._name = f"session-{number}"
        path = folder / FILE_NAME
        self.ledger = MortalLedger(path, faults, clock=lambda: BEGIN_S + self.now)
        self._num_slots = slots
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._trainings: dict[str, Training] = {}
        # What Tune's trials do: epochs seen by those that are awake, those that wait, at rungs too.
        self._awake: dict[str, int] = {}
        self._pending: deque[str] = deque()
        self._paused: dict[str, int] = {}
        # Who asks next, and slots that wait for an order: for a trial's, or for any.
        self._asks: deque[str] = deque()
        self._polls: deque[VirtualSlot] = deque()
        self._waiting: dict[str, VirtualSlot] = {}
        self._slot_of: dict[str, VirtualSlot] = {}

    def run(self) -> None:
        """From the first record to the last of this session."""
        spec = self._spec
        before = state_of(self.ledger.path.parent)
        header = RunHeader(
            run=spec.name,
            spec=spec,
            spec_hash=spec.hash(),
            code_version="simulated",
            datasets=self._images,
        )
        for record in opening_records(header, before, self._name):
            if start := self._published.get(record.get("trial", "")):
                record["detail"]["published"] = start.as_dict()
            self.ledger.append(**record)
        options = SessionOptions(
            session=self._name,
            max_failures_per_trial=spec.sweeps[0].resources.max_failures_per_trial,
            more_to_come=spec.final_seeds > 0,
        )
        self.dispatcher = DispatcherState(self.ledger, options, clock=lambda: self.now)
        ready = self._faults.slots_ready_s
        for index in range(self._num_slots):
            slot = VirtualSlot(name=f"{self._name}-{index}", node=f"node-{index}")
            self._after(ready[index] if index < len(ready) else 0.0, self._polls.append, slot)
        self._fit()
        if not open_trials(self.dispatcher.state):
            due = (
                finals.due(spec, self.dispatcher.state, reopen=False) if spec.final_seeds else None
            )
            self.dispatcher.submit([] if due is None else due.records())
            self._fit()
        self._measure_speeds()
        stopped = self.dispatcher.budget_guard.over()
        self.dispatcher.record("stopped" if stopped else "closed", reason=stopped)

    # Trials, as Tune carries them.

    def _fit(self) -> None:
        """Until every trial has ended, or the budget has sent the rest away."""
        state = self.dispatcher.state
        schedulers = {sweep.candidate: sweep.scheduler for sweep in self._spec.sweeps}
        seed = self._spec.sweeps[0].seed
        self._scheduler = Scheduler(schedulers, state, self._decide, seed=seed)
        self._pending.extend(open_trials(state))
        self._begin_trials()
        while self._awake or self._pending or self._paused:
            self._go_on()

    def _measure_speeds(self) -> None:
        """Until the speed of all final models is on record."""
        self.dispatcher.speed.begin()
        self._polls.extend(self._waiting.values())
        self._waiting.clear()
        while self.dispatcher.speed.is_due:
            self._go_on()

    def _go_on(self) -> None:
        """What happens next."""
        if self._asks:
            self._ask(self._asks.popleft())
        elif self._polls:
            self._poll(self._polls.popleft())
        elif self._events:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
        else:
            raise RuntimeError(f"nothing is left to happen, and {list(self._awake)} still wait")

    def _begin_trials(self) -> None:
        while self._scheduler.pauses or len(self._awake) <= self._num_slots:
            if self._pending:
                trial = self._pending.popleft()
                # The last report is served once more, in case nobody has judged it.
                self._awake[trial] = max(0, self.dispatcher.state.trials[trial].epoch - 1)
            elif self._paused:
                promotion = self._scheduler.promote(self._paused)
                for over in promotion.over:
                    del self._paused[over]
                if promotion.trial is None:
                    return
                trial = promotion.trial
                self._awake[trial] = self._paused.pop(trial)
            else:
                return
            self._asks.append(trial)

    def _ask(self, trial: str) -> None:
        """What Tune's trial does with each answer, until there is none."""
        while trial in self._awake:
            epoch = self._awake[trial] + 1
            answer = self.dispatcher.answer(trial, epoch, self._wake)
            if answer is None:
                return
            action = Action.STOP
            if answer.metrics is not None:
                self._awake[trial] = epoch
                if answer.done:
                    self._scheduler.on_end(trial)
                else:
                    value = answer.metrics.get(self._scheduler.metric.val_key)
                    action = self._scheduler.on_report(trial, epoch, value)
            elif answer.ended != "stopped":
                self._scheduler.on_end(trial)
            if action is not Action.CONTINUE:
                seen = self._awake.pop(trial)
                if action is Action.PAUSE:
                    self._paused[trial] = seen
                self._begin_trials()

    def _decide(self, event: str, trial: str, **fields: Any) -> None:
        if not self.dispatcher.state.trials[trial].status.is_final:
            self.dispatcher.record(event, trial=trial, **fields)
            self._wake(trial)

    # Slots, as Ray Train carries them.

    def _wake(self, trial: str) -> None:
        """There is news of the trial for whoever waits for it; under a budget, for everybody."""
        if self.dispatcher.budget_guard.capped:
            self._polls.extend(self._waiting.values())
            self._waiting.clear()
            self._asks.extend(name for name in self._awake if name not in self._asks)
            return
        slot = self._slot_of.get(trial)
        if slot is not None and slot.name in self._waiting:
            self._polls.append(self._waiting.pop(slot.name))
        if trial in self.dispatcher.queue:
            idle = next((slot for slot in self._waiting.values() if slot.trial is None), None)
            if idle is not None:
                self._polls.append(self._waiting.pop(idle.name))

    def _poll(self, slot: VirtualSlot) -> None:
        """The slot asks for an order and carries it out."""
        before = self.dispatcher.slots.get(slot.name, Slot())
        lost = before.trial if before.incarnation != slot.incarnation else None
        asks = (slot.name, slot.incarnation, slot.trial)
        self.dispatcher.register_heartbeat(*asks, (slot.node,), slot.gone)
        slot.gone = ()
        if lost is not None:
            self._hear(lost)
        order = self.dispatcher.order(slot.name, slot.trial)
        if order is None:
            self._waiting[slot.name] = slot
        elif order.command is SlotCommand.RELEASE:
            self._leave(slot)
            self._polls.append(slot)
        elif order.command is SlotCommand.MEASURE_SPEED:
            self._measure(slot, order)
        elif order.command in (SlotCommand.TRAIN, SlotCommand.EVALUATE_TEST):
            if order.assignment is not None:
                self._take(slot, order.assignment)
            if order.command is SlotCommand.TRAIN:
                self._train(slot, order)
            else:
                seconds, file = 0.1 * self._training(slot).seconds[0], str(order.correct_file)
                self._after(seconds, self._test, slot, slot.life, Path(file))

    def _take(self, slot: VirtualSlot, assignment: Assignment) -> None:
        slot.trial, slot.attempt = assignment.trial_id, assignment.attempt
        self._slot_of[slot.trial] = slot
        self._trainings[slot.trial] = self._world.train(assignment)

    def _leave(self, slot: VirtualSlot) -> None:
        if slot.trial is not None and self._slot_of.get(slot.trial) is slot:
            del self._slot_of[slot.trial], self._trainings[slot.trial]
        slot.trial = None

    def _training(self, slot: VirtualSlot) -> Training:
        return self._trainings[str(slot.trial)]

    def _train(self, slot: VirtualSlot, order: Order) -> None:
        """One epoch, or what becomes of it."""
        training, epoch, faults = self._training(slot), int(order.epoch or 0), self._faults
        chance = random.Random(f"{faults.seed}/{slot.trial}/{slot.attempt}/{epoch}/{slot.life}")
        if epoch > len(training.metrics):
            seconds = 0.0 if training.failure is None else training.seconds[-1]
            self._after(seconds, self._fail, slot, slot.life)
            return
        seconds = training.seconds[epoch - 1]
        if order.limit_s is not None and seconds > order.limit_s:
            self._after(order.limit_s, self._run_out_of_time, slot, slot.life)
        elif chance.random() < faults.goes:
            self._after(seconds * chance.random(), self._lose_node, slot, slot.life)
        elif chance.random() < faults.dies:
            self._after(seconds * chance.random(), self._restart, slot, slot.life)
        elif chance.random() < faults.hangs:
            limit_s = self._spec.sweeps[0].resources.epoch_timeout_s
            self._after(limit_s, self._restart, slot, slot.life)
        else:
            self._send(slot, epoch, seconds, chance)

    def _send(self, slot: VirtualSlot, epoch: int, seconds: float, chance: random.Random) -> None:
        """The epoch's report on its way: the slot waits until it has arrived."""
        faults, metrics = self._faults, dict(self._training(slot).metrics[epoch - 1])
        report = EpochReport(epoch, metrics, detail=self._facts(slot) if epoch == 1 else {})
        if chance.random() < faults.lost:
            seconds += faults.resend_s
        if chance.random() < faults.late:
            seconds += chance.uniform(0, faults.late_s)
        arguments = (slot, slot.life, str(slot.trial), slot.attempt, report)
        self._after(seconds, self._receive, *arguments)
        if chance.random() < faults.repeated:
            again_s = seconds + chance.uniform(0, faults.late_s)
            self._after(again_s, self._receive_again, *arguments)

    def _facts(self, slot: VirtualSlot) -> dict[str, Any]:
        """What the first report says of its trial."""
        facts: dict[str, Any] = {"model": "simulated", "device": "cpu"}
        if (images := self._training(slot).val_images) is not None:
            seed = self.dispatcher.state.trials[str(slot.trial)].assignment.data.val_seed
            facts |= {"val_images": images, "dataset_hash": f"simulated {seed}"}
        return facts

    def _receive(
        self, slot: VirtualSlot, life: int, trial: str, attempt: int, report: EpochReport
    ) -> None:
        self._receive_again(slot, life, trial, attempt, report)
        if slot.life == life:
            self._polls.append(slot)

    def _receive_again(
        self, slot: VirtualSlot, life: int, trial: str, attempt: int, report: EpochReport
    ) -> None:
        self.dispatcher.reported(slot.name, trial, attempt, report)
        self._hear(trial)

    def _hear(self, trial: str) -> None:
        """The trial's driver learns of a report or an end; under a budget, every driver."""
        if self.dispatcher.budget_guard.capped:
            self._wake(trial)
        elif trial in self._awake:
            self._asks.append(trial)

    def _test(self, slot: VirtualSlot, life: int, correct_file: Path) -> None:
        if slot.life != life:
            return
        trial = self.dispatcher.state.trials[str(slot.trial)]
        correct = self._world.correct(trial.assignment)
        trial_files.write_correct(correct_file, correct)
        test = {"top1": round(float(correct.mean()), 6), "n": int(correct.size)}
        self._end(slot, "finished", detail={"test": test})

    def _measure(self, slot: VirtualSlot, order: Order) -> None:
        """The speed of final models, or what becomes of the worker that measures it."""
        faults, seconds = self._faults, SPEED_S * len(order.models)
        chance = random.Random(f"{faults.seed}/speed/{slot.name}/{slot.life}")
        if chance.random() < faults.goes:
            self._after(seconds * chance.random(), self._lose_node, slot, slot.life)
        elif chance.random() < faults.dies:
            self._after(seconds * chance.random(), self._restart, slot, slot.life)
        else:
            self._after(seconds, self._report_speeds, slot, slot.life, order.models)

    def _report_speeds(self, slot: VirtualSlot, life: int, models: Sequence[Assignment]) -> None:
        """Simulated models have no speed of their own: what is on record is who was measured."""
        if slot.life == life:
            speed = {"device": "simulated", "models": len(models)}
            reports = [SpeedReport(trial=model.trial_id, speed=speed) for model in models]
            self.dispatcher.speed.measured(slot.name, reports)
            self._polls.append(slot)

    def _fail(self, slot: VirtualSlot, life: int) -> None:
        if slot.life == life:
            self._end(slot, "failed", reason=self._training(slot).failure or UNKNOWN)

    def _end(self, slot: VirtualSlot, event: str, **fields: Any) -> None:
        seconds = self.dispatcher.budget_guard.charge_lost(self.dispatcher.slots[slot.name])
        trial = str(slot.trial)
        self.dispatcher.end(event, trial, slot_seconds=seconds, **fields)
        self._leave(slot)
        self._hear(trial)
        self._polls.append(slot)

    def _run_out_of_time(self, slot: VirtualSlot, life: int) -> None:
        if slot.life == life:
            trial = str(slot.trial)
            self.dispatcher.losses.on_preempted(slot.name, trial, None, ())
            self._leave(slot)
            self._hear(trial)
            self._polls.append(slot)

    def _restart(self, slot: VirtualSlot, life: int) -> None:
        """The worker is gone; another one of the same slot asks a while later."""
        if slot.life == life:
            self._leave(slot)
            slot.life += 1
            self._after(self._faults.restart_s, self._polls.append, slot)

    def _lose_node(self, slot: VirtualSlot, life: int) -> None:
        if slot.life == life:
            self._leave(slot)
            slot.life += 1
            slot.gone, slot.node = (slot.node,), f"{slot.node}'"
            self._after(self._faults.node_back_s, self._polls.append, slot)

    def _after(self, seconds: float, happens: Callable[..., None], *arguments: Any) -> None:
        """At the same moment, what was arranged first happens first."""
        self._sequence += 1
        event = (self.now + seconds, self._sequence, lambda: happens(*arguments))
        heapq.heappush(self._events, event)
