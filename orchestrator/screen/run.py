"""Carry a screen out: candidates as Ray tasks, each result a record of the ledger; a shortlist.

Tasks share whatever cluster there is and are all asked for at once, so that an autoscaler sees
them. A candidate on record is never tried again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.compare.shortlist import (
    Shortlist,
    beyond_limits,
    beyond_params,
    bits_of,
    shortlist,
    write_shortlist,
)
from orchestrator.compare.statistics import share_interval
from orchestrator.ledger import replication, session
from orchestrator.ledger.events import FILE_NAME, Ledger
from orchestrator.ledger.header import RunHeader
from orchestrator.ledger.replication import STOP_FILE
from orchestrator.ledger.screen_state import STAGE
from orchestrator.ledger.state import State
from orchestrator.ray_cluster import attach
from orchestrator.ray_cluster.capacity import ClusterCapacity
from orchestrator.ray_cluster.tasks import Tasks
from orchestrator.spec.screening import ScreenSpec
from orchestrator.tracking import store
from orchestrator.tracking.beside import mirrored
from orchestrator.wording import duration, percent, percent_ends
from trainables.backbones.catalogue import facts_of
from trainables.config import DatasetFacts, Screened, Screening
from trainables.data.build import prepare
from trainables.errors import StorageError, UserError, one_line, raise_if_any, storage_error
from trainables.progress import long_step
from trainables.storage import object_storage

MOST_THREADS = 8  # of a CPU task: more make one pass hardly faster
SHARE_OF_TIME = 0.8  # of what --minutes leave, that passes are planned for; the rest is for probes
FEWEST_PER_CLASS = 10  # training images, however short the time
OVER = "the time was over; the same command with more --minutes goes on with it"

log = logging.getLogger(__name__)


def name_mistakes(spec: ScreenSpec) -> list[str]:
    """Why this name cannot be used for this screen; empty when it is new or the same one's."""
    state = session.state_of(spec.folder.resolve())
    if not state.begun:
        return []
    before = state.header.screen
    if before is None:
        return [f"{spec.name!r} is the name of a run that is no screen. Fix: --name OTHER"]
    changes = spec.changes(before)
    return [
        f"a name keeps its images and its candidates; {spec.name!r} has others "
        f"({'; '.join(changes)}). Fix: --name OTHER, whose features are still on disk"
    ] * bool(changes)


def run_screen(spec: ScreenSpec) -> Shortlist:
    """Create the screen, or go on with it where it was left; returns when it has ended.

    Raises :class:`UserError` when the name belongs to another screen or is at work already,
    ``StorageError`` when storage fails, and ``KeyboardInterrupt`` when it was asked to stop.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(session.run_lock(spec.run))
        raise_if_any(name_mistakes(spec))
        folder = spec.folder.resolve()
        images = prepare(spec.data).info
        before = session.state_of(folder)
        contents = {facts.content_hash for facts in before.header.datasets.values()}
        if contents - {images.content_hash, None}:
            raise UserError(
                f"a screen keeps its images; those of {images.name} have changed since "
                f"{spec.name!r} began. Fix: put them back as they were, or --name OTHER"
            )
        replication.share_stores(spec.folder, [spec.data])
        ledger = stack.enter_context(closing(Ledger(folder / FILE_NAME)))
        screener = Screener(spec, folder, ledger, before, images, began)
        return screener.run()


def tracking_uri(spec: ScreenSpec) -> str:
    """Where MLflow records the screen."""
    return spec.tracking_uri or store.default_uri(spec.storage)


class Screener:
    """One session of a screen."""

    def __init__(
        self,
        spec: ScreenSpec,
        folder: Path,
        ledger: Ledger,
        before: State,
        images: DatasetFacts,
        began: float,
    ) -> None:
        self.spec, self.folder, self.images = spec, folder, images
        self._ledger, self._began = ledger, began
        self._before, self._state = before, before.screen
        self._left_out: dict[str, str] = {}

    def run(self) -> Shortlist:
        """Screen what is not on record yet, then write the shortlist. MLflow is shown all of it."""
        earlier = self._state.left_out
        pending = self._pending()
        self._open(bool(pending))
        with mirrored(self.folder, tracking_uri(self.spec), None):
            if pending:
                try:
                    with attach.attached(f"screen-{self.spec.name}") as totals:
                        self._screen(pending, Workers.of(totals))
                except (KeyboardInterrupt, UserError, StorageError) as error:
                    self._record("stopped", reason=one_line(error))
                    raise
            result = shortlist(self.spec, self._state.screened, self._left_out)
            path = write_shortlist(result, self.folder)
            if remote := object_storage.origin(self.folder):
                object_storage.put_file(path, f"{remote}/{path.name}")
            if not self._is_closed or self._left_out != earlier:
                self._record("closed", detail={"left_out": self._left_out})
        return result

    def _open(self, has_work: bool) -> None:
        """Record what is asked for now, and that work goes on where it was left."""
        header = RunHeader(
            run=self.spec.name,
            spec=self.spec.run,
            environment=session.environment(),
            code_version=session.code_version(),
            datasets={STAGE: self.images},
            screen=self.spec,
        )
        asked_before = self._before.header.screen
        self._is_closed = asked_before == self.spec and self._before.closed and not has_work
        if asked_before != self.spec:
            self._record("extended" if asked_before else "created", detail=header.as_dict())
        if asked_before and not self._is_closed:
            self._record("resumed")
        (self.folder / STOP_FILE).unlink(missing_ok=True)

    def _record(self, event: str, **fields: Any) -> None:
        end = self._ledger.path.stat().st_size
        self._ledger.append(event, stage=STAGE, **fields)
        replication.push_ledger(self.folder, end)

    def _pending(self) -> list[str]:
        """Labels that are to be screened: not on record, and within the limits as far as that is
        known before anything is built."""
        pending = [label for label in self.spec.candidates if label not in self._state.screened]
        for label in pending:
            measured = self._state.measured.get(label)
            beyond = (
                self._beyond_params(label)
                if measured is None
                else beyond_limits(self.spec, measured)
            )
            if beyond is not None:
                self._left_out[label] = beyond
        return [label for label in pending if label not in self._left_out]

    def _beyond_params(self, label: str) -> str | None:
        if self.spec.max_params_m is None:
            return None
        try:
            return beyond_params(self.spec, facts_of(self.spec.candidates[label]).params_m)
        except UserError:
            return None  # whoever builds it says why it cannot be

    def _screen(self, pending: Sequence[str], workers: Workers) -> None:
        deadline = None if self.spec.minutes is None else self._began + 60 * self.spec.minutes
        if deadline is not None or self.spec.max_latency_ms is not None:
            pending = self._measure(pending, workers, deadline)
        if self._state.train_images is None:
            self._size(pending, workers.at_once, deadline)
        asked = [self._asked(label, self._state.train_images) for label in pending]
        count, total = len(self._state.screened), len(self.spec.candidates) - len(self._left_out)
        with long_step(None, "candidates screened", total, begin=count) as advance:
            advance(count)
            for landed in workers.results(asked, self._should_stop, deadline=deadline):
                count += 1
                self._state.screened[landed.label] = landed
                self._record("screened", candidate=landed.label, detail=landed.as_dict())
                log.info(f"{count}/{total} {landed_text(landed)}")
                advance(count)
        for label in pending:
            if label not in self._state.screened:
                self._left_out[label] = OVER

    def _measure(
        self, pending: Sequence[str], workers: Workers, deadline: float | None
    ) -> list[str]:
        """Those of ``pending`` that are quick enough, once how quick each is is on record."""
        unknown = [label for label in pending if label not in self._state.measured]
        log.info(f"measuring how fast {len(unknown)} candidates are")
        asked = [self._asked(label, None) for label in unknown]
        answers = workers.results(asked, self._should_stop, deadline=deadline, measures_only=True)
        with long_step(None, "candidates measured", len(unknown)) as advance:
            for count, landed in enumerate(answers, start=1):
                self._state.measured[landed.label] = landed
                self._record("measured", candidate=landed.label, detail=landed.as_dict())
                if landed.reason is not None:
                    self._state.screened[landed.label] = landed
                    self._record("screened", candidate=landed.label, detail=landed.as_dict())
                    log.info(landed_text(landed))
                advance(count)
        quick = []
        for label in pending:
            found_speed = self._state.measured.get(label)
            if found_speed is None:
                self._left_out[label] = OVER
            elif found_speed.reason is None:
                beyond = beyond_limits(self.spec, found_speed)
                if beyond is None:
                    quick.append(label)
                else:
                    self._left_out[label] = beyond
                    log.info(f"{label} is left out: {beyond}")
        return quick

    def _size(self, pending: Sequence[str], at_once: int, deadline: float | None) -> None:
        """Decide from how many training images all candidates are judged, and write it down."""
        most = train_images(self.spec, self.images)
        if deadline is not None:
            speeds = [self._state.measured[label].speed for label in pending]
            most = images_in_time(
                [(speed.setup_s, speed.seconds_per_image) for speed in speeds if speed],
                seconds=at_once * (deadline - time.monotonic()),
                val=self.images.counts["val"],
                most=most,
                least=FEWEST_PER_CLASS * len(self.images.class_names),
            )
        self._state.train_images = most
        self._record("sized", train_images=most)
        log.info(f"probes learn from {most} training images")

    def _asked(self, label: str, images: int | None) -> Screening:
        return Screening(
            label=label,
            backbone=self.spec.candidates[label],
            data=self.spec.data,
            train_images=images,
            remote=object_storage.origin(self.folder),
        )

    def _should_stop(self) -> bool:
        return (self.folder / STOP_FILE).exists()


def train_images(spec: ScreenSpec, images: DatasetFacts) -> int:
    """How many training images ``spec.data`` trains on, as ``train_indices`` counts them."""
    count = images.counts["train"]
    count = count if spec.data.train_limit is None else min(spec.data.train_limit, count)
    return max(1, round(spec.data.fraction * count))


def images_in_time(
    costs: Sequence[tuple[float, float]], *, seconds: float, val: int, most: int, least: int
) -> int:
    """Training images, ``least`` to ``most``, that candidates can pass in ``seconds`` of workers
    together: ``costs`` are seconds to build each, and of one image. All get the same number, for
    a probe that learned from more is better by that."""
    fixed = math.fsum(setup_s + val * image_s for setup_s, image_s in costs)
    each = math.fsum(image_s for _, image_s in costs)
    if each <= 0:
        return most
    return max(min(least, most), min(most, int((SHARE_OF_TIME * seconds - fixed) / each)))


def landed_text(landed: Screened) -> str:
    """A candidate that has just been screened, in a line."""
    if landed.reason is not None:
        return f"{landed.label} failed: {landed.reason}"
    right = int(bits_of(landed).sum())
    top1 = share_interval(right, landed.val_images or 1, method="wilson")
    interval = percent_ends(top1.low or 0, top1.high or 0)
    speed = f"{landed.speed.latency_ms:.3g} ms, " if landed.speed else ""
    made = "features were on disk" if landed.cached else f"{landed.images_per_second:.3g} images/s"
    return (
        f"{landed.label}: linear probe {percent(landed.linear_top1)} ({interval}), neighbours "
        f"{percent(landed.neighbours_top1)}; {speed}{made}, {duration(landed.seconds)}"
    )


@dataclass(frozen=True)
class Workers:
    """What does the work of a candidate on the attached cluster: a GPU where there are any, else
    ``cpus`` cores of a node; so many ``at_once``."""

    gpu: bool
    cpus: int
    at_once: int

    @classmethod
    def of(cls, totals: ClusterCapacity) -> Workers:
        """Those of a cluster that holds ``totals``. Raises ``UserError`` where it holds none."""
        gpu = totals.get("GPU", 0) >= 1
        kinds = [kind.resources for kind in totals.kinds if kind.resources.get("CPU", 0) >= 1]
        if gpu:
            kinds = [kind for kind in kinds if kind.get("GPU", 0) >= 1]
        if not kinds:
            raise UserError(
                "a screen needs nodes with a CPU, and beside each GPU one; the cluster has none. "
                "Fix: orchestrator doctor",
                exit_code=3,
            )
        shares = [kind["CPU"] / (kind["GPU"] if gpu else 1) for kind in kinds]
        cpus = max(1, min(MOST_THREADS, int(min(shares))))
        task = {"CPU": float(cpus), **({"GPU": 1.0} if gpu else {})}
        return cls(gpu, cpus, max(1, totals.workers(task)))

    def results(
        self,
        asked: Sequence[Screening],
        should_stop: Callable[[], bool],
        *,
        deadline: float | None = None,
        measures_only: bool = False,
    ) -> Iterator[Screened]:
        """What workers find, as it comes. After ``deadline`` (monotonic seconds) those that have
        not answered are cancelled. Raises ``StorageError`` where a worker's storage fails, and
        ``KeyboardInterrupt`` once ``should_stop``."""
        from trainables.evaluate.screening import on_worker

        def has_ended() -> bool:
            if should_stop():
                raise KeyboardInterrupt("asked to stop")
            return deadline is not None and time.monotonic() > deadline

        arguments = {"gpu": self.gpu, "threads": self.cpus, "measures_only": measures_only}
        tasks = Tasks[Screening](on_worker, arguments, cpus=self.cpus, gpus=int(self.gpu))
        for one, answer in tasks.results(asked, has_ended):
            yield _screened(answer, one.label)


def _screened(answer: Screened | Exception, label: str) -> Screened:
    """What a task answered; a failed candidate where it ended in an error."""
    if isinstance(answer, Screened):
        return replace(answer, label=label)
    broken = storage_error(answer)
    if broken is not None:
        raise broken from answer
    return Screened(label=label, reason=f"{type(answer).__name__}: {one_line(answer)[:200]}")
