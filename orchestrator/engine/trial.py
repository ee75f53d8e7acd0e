"""Tune over thin trials: each asks the dispatcher for one epoch after the other. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.engine.brackets import Action
from orchestrator.engine.scheduler import Scheduler
from orchestrator.ledger.session import open_trials
from orchestrator.ledger.state import State
from orchestrator.ray_cluster.capacity import HEAD
from orchestrator.spec.run import RunSpec
from trainables.errors import one_line
from trainables.worker.dispatcher_client import ActorClient
from trainables.worker.messages import EpochAnswer

# Held by the head node alone, so drivers stay on the node that is never a spot instance.
RESOURCES: dict[str, float] = {HEAD: 0.001}
MAX_FAILURES_PER_DRIVER = 3
TUNE_FOLDER = ".tune"
JUDGED = "judged"  # key of what a trial is judged by, in the results that Tune hands around
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the only form that verbose=0 silences
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # with tracebacks, of thin trials that are replaced
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The ledger is the memory: no second one of Tune's, in files nobody reads.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}
STORAGE_LOGINS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)


class SlotTrial(tune.Trainable):  # type: ignore[misc]
    """One trial as Tune sees it; config holds ``trial`` and ``dispatcher``, both names, and the key
    in reports of the ``metric`` that it is judged by.

    The result of a step is ``epoch``, ``judged`` by that metric and ``done``. A trial that failed
    on its slot ends here without a metric: the ledger holds the reason, and Tune must not retry it.
    """

    def setup(self, config: Mapping[str, str]) -> None:
        self._trial, self._metric = config["trial"], config["metric"]
        self._call = ActorClient(config["dispatcher"])
        self._epoch = int(self._call("resume_epoch", self._trial))

    def reset_config(self, new_config: Mapping[str, str]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, object]:
        while True:
            answer: EpochAnswer = self._call("ask", self._trial, self._epoch + 1)
            if answer.metrics is not None:
                self._epoch += 1
                value = answer.metrics.get(self._metric, float("nan"))
                return {"epoch": self._epoch, JUDGED: value, "done": answer.done}
            if answer.ended is not None:
                return {"ended": answer.ended, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: what the trial knows is in the ledger."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Nothing to load: ``setup`` has asked the dispatcher."""


class TuneScheduler(FIFOScheduler):  # type: ignore[misc]
    """Asks ``scheduler`` what Tune asks of it."""

    ANSWERS: Mapping[Action, str] = {
        Action.CONTINUE: TrialScheduler.CONTINUE,
        Action.PAUSE: TrialScheduler.PAUSE,
        Action.STOP: TrialScheduler.STOP,
    }

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Go on, pause or stop."""
        if JUDGED not in result:
            return self.ANSWERS[Action.CONTINUE]
        name, epoch, value = trial.config["trial"], result["epoch"], result[JUDGED]
        return self.ANSWERS[self._scheduler.on_report(name, epoch, value)]

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Trial | None:
        """A new trial first; then a paused one that its race promotes; at last, nobody."""
        chosen = super().choose_trial_to_run(tune_controller, **kwargs)
        if not self._scheduler.pauses or (chosen is not None and chosen.status != Trial.PAUSED):
            return chosen
        live = tune_controller.get_live_trials()
        paused = {t.config["trial"]: t for t in live if t.status == Trial.PAUSED}
        promotion = self._scheduler.promote(paused)
        for name in promotion.over:
            tune_controller.stop_trial(paused[name])
        return paused.get(promotion.trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Nothing more will come of this trial; one that the budget sends away is still open."""
        if result.get("ended") != "stopped":
            self._scheduler.on_end(trial.config["trial"])

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing more will come of this trial."""
        self._scheduler.on_end(trial.config["trial"])


class StopFile(tune.Stopper):  # type: ignore[misc]
    """Stops every trial once a file exists, whether a user, a signal or the watchdog wrote it."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Tune asks between any two events of its loop."""
        return self._path.exists()


@contextmanager
def _tunes_folder(run_folder: Path) -> Iterator[Path]:
    """Where Tune keeps its files, which nobody reads: in the run's folder, so that the next session
    removes what a killed one has left."""
    folder = (run_folder / TUNE_FOLDER).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _logins_kept_from_tune() -> Iterator[None]:
    """Tune hands Amazon's variables to its actors through their runtime environment, which Ray
    writes on their command lines, for all to see. Thin trials need none. What is not Python, such
    as Arrow's client of object storage, finds them in this process all the same."""
    logins = {name: os.environ.pop(name) for name in STORAGE_LOGINS if name in os.environ}
    for name, value in logins.items():
        os.putenv(name, value)  # which leaves os.environ alone
    try:
        yield
    finally:
        os.environ.update(logins)


def fit_trials(
    spec: RunSpec, state: State, dispatcher: ActorClient, *, num_slots: int, stop_file: Path
) -> None:
    """Run Tune until all trials of ``state`` have ended or ``stop_file`` exists. What its scheduler
    decides, and that a trial's driver failed again and again, the ``dispatcher`` records."""
    trials, decide = open_trials(state), partial(dispatcher, "record")
    if not trials:
        return
    # One more than the slots, so that a freed slot finds the next trial waiting. A paused trial
    # counts for Tune's own limit, so there the head's share is what limits those that are awake.
    awake = num_slots + 1
    for name, value in {**ENVIRONMENT, "TUNE_MAX_PENDING_TRIALS_PG": str(awake)}.items():
        os.environ.setdefault(name, value)
    schedulers = {sweep.candidate: sweep.scheduler for sweep in spec.sweeps}
    pausing = any(scheduler.pauses for scheduler in schedulers.values())
    shares = {name: 0.9 / awake if pausing else share for name, share in RESOURCES.items()}
    with _tunes_folder(stop_file.parent) as folder, _logins_kept_from_tune():
        results = tune.Tuner(
            tune.with_resources(SlotTrial, tune.PlacementGroupFactory([shares])),
            param_space={
                "trial": tune.grid_search(trials),
                "dispatcher": dispatcher.name,
                "metric": spec.metric.val_key,
            },
            tune_config=tune.TuneConfig(
                scheduler=TuneScheduler(
                    Scheduler(schedulers, state, decide, seed=spec.sweeps[0].seed)
                ),
                reuse_actors=True,
                max_concurrent_trials=None if pausing else awake,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(folder),
                verbose=0,
                stop=StopFile(str(stop_file)),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES_PER_DRIVER),
            ),
        ).fit()
    for result in results:
        if result.error is not None and result.config:
            reason = f"its driver failed: {one_line(result.error)[-300:]}"
            decide("failed", result.config["trial"], reason=reason)
