"""Create, resume, extend or refuse a run by its name, under a lock, wherever it is kept."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.ledger import replication
from orchestrator.ledger.events import FILE_NAME, SCHEMA, Ledger, read
from orchestrator.ledger.header import Environment, Forecast, Geometry, RunHeader
from orchestrator.ledger.replication import LOCK_FILE, PULL_PATIENCE_S, STOP_FILE, Lease
from orchestrator.ledger.state import Record, State, names, replay
from orchestrator.spec.run import RunSpec, diff, remote_of
from trainables.config import DatasetFacts
from trainables.errors import UserError
from trainables.storage import object_storage
from trainables.versions import LIBRARIES, processor


def is_running(folder: Path) -> bool:
    """Whether a process holds the run's lock or, in object storage, its lease."""
    remote = object_storage.origin(folder)
    if remote is not None and replication.is_held(remote):
        return True
    try:
        with (folder / LOCK_FILE).open("rb") as lock:
            # Not by filelock, whose locks on this file are all exclusive: of two who ask at the
            # same moment, one would take the other for the run. Those who share do not meet, and a
            # run's own lock, which is this very flock(), is exclusive to both.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


@contextmanager
def run_lock(spec: RunSpec) -> Iterator[Lease | None]:
    """The run, for this process alone, and its lease where it is kept in object storage: its
    folder is brought in line with what is there. Nothing stays behind if nothing was begun.

    Raises :class:`UserError` when another process holds the name, ``StorageError`` when object
    storage does not answer.
    """
    folder, remote = spec.folder.resolve(), remote_of(spec.storage, spec.name)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=2 * PULL_PATIENCE_S if remote else 0)  # readers hold it for a moment
    except Timeout:
        raise UserError(
            f"one process at a time may run a name; {spec.name!r} is running already. "
            f"Fix: orchestrator status {spec.name}, orchestrator stop {spec.name}, or --name OTHER"
        ) from None
    lease = None
    try:
        with ExitStack() as stack:
            if remote:
                lease = Lease(remote, (folder / STOP_FILE).touch)
                lease.acquire()
                stack.callback(lease.release)
                replication.bring(folder, remote, replication.read(remote))
            yield lease
    finally:
        lock.release()
        if not (folder / FILE_NAME).exists():
            for name in (LOCK_FILE, object_storage.ORIGIN_FILE):
                (folder / name).unlink(missing_ok=True)
            for empty in (folder, folder.parent):
                if not any(empty.iterdir()):
                    empty.rmdir()


def state_of(folder: Path) -> State:
    """What the ledger in ``folder`` says; an empty state where there is none. Raises ``UserError``
    as :func:`replay` does."""
    path = folder / FILE_NAME
    return replay(read(path), source=str(path)) if path.exists() else State()


def name_mistakes(spec: RunSpec) -> list[str]:
    """Why this name cannot be used for this spec; empty when it is new or the same run's."""
    state = state_of(spec.folder.resolve())
    changes = "; ".join(diff(state.spec, spec)) if state.begun else ""
    mistake = (
        f"a name keeps its spec; {spec.name!r} is in use by a different one ({changes}). "
        "Fix: --name OTHER, or ask for the same again"
    )
    return [mistake] if changes else []


def data_mistakes(state: State, datasets: Mapping[str, DatasetFacts], run: str) -> list[str]:
    """Why a run that has begun cannot go on with these images: they are not those that its trials
    were trained on. Ledgers that name no content of theirs are not compared."""
    mistakes = []
    for candidate, now in datasets.items():
        before = state.header.datasets.get(candidate)
        if before is None or not before.content_hash or before.content_hash == now.content_hash:
            continue
        changes = [
            f"{split} {before.counts.get(split, 0)} -> {now.counts.get(split, 0)} images"
            for split in dict.fromkeys((*before.counts, *now.counts))
            if before.counts.get(split, 0) != now.counts.get(split, 0)
        ]
        if before.class_names != now.class_names:
            changes.append(f"{len(before.class_names)} -> {len(now.class_names)} classes")
        changes.append(f"content {before.content_hash} -> {now.content_hash}")
        mistakes.append(
            f"a run keeps its images; those of {now.name or candidate} have changed since {run!r} "
            f"began ({', '.join(changes)}). Fix: put them back as they were, or --name OTHER "
            "starts a run on the new ones"
        )
    return mistakes


def session_name(folder: Path) -> str:
    """Names this process's session of the run: what it starts carries the name."""
    path = folder / FILE_NAME
    return f"{os.getpid():x}-{len(list(read(path))) if path.exists() else 0:x}"


def to_train(spec: RunSpec, state: State) -> int:
    """Search trials that a session of ``spec`` has to bring to their end."""
    return len(open_trials(state)) + len(spec.trial_names() - set(state.trials))


def begin(
    spec: RunSpec,
    folder: Path,
    session: str,
    *,
    datasets: Mapping[str, DatasetFacts],
    geometry: Mapping[str, Geometry],
    forecast: Forecast | None,
) -> State:
    """Write what makes the run new, resumed or extended; its state. Raises ``StorageError``, and
    :class:`UserError` where a former session still writes."""
    header = RunHeader(
        schema=SCHEMA,
        run=spec.name,
        spec=spec,
        spec_hash=spec.hash(),
        environment=environment(),
        code_version=code_version(),
        datasets=datasets,
        geometry=geometry,
        forecast=forecast,
    )
    with closing(Ledger(folder / FILE_NAME)) as ledger:  # what is read from now on stays so
        end = ledger.path.stat().st_size
        for record in opening_records(header, state_of(folder), session):
            ledger.append(**record)
    replication.push_ledger(folder, end)
    (folder / STOP_FILE).unlink(missing_ok=True)
    return state_of(folder)


def opening_records(header: RunHeader, before: State, session: str) -> list[Record]:
    """What makes a run new, resumed or extended: the records that a session begins with."""
    spec = header.spec
    submitted: list[Record] = [
        {
            "event": "submitted",
            "trial": sweep.trial_name(index, search),
            **names(sweep.candidate, sweep.family),
            "search": search if search > 1 else None,
            "stage": "search",
            "detail": sweep.submission(index, search),
        }
        for index in range(max(sweep.trials for sweep in spec.sweeps))
        for search in range(1, spec.searches + 1)
        for sweep in spec.sweeps
        if index < sweep.trials and sweep.trial_name(index, search) not in before.trials
    ]
    records: list[Record] = [{"event": "created", "detail": header.as_dict()}]
    if before.begun:
        if not submitted:  # what was forecast was for these trials
            header = replace(header, forecast=before.header.forecast)
        records = [{"event": "extended", "detail": header.as_dict()}, {"event": "resumed"}]
        same_caps = (before.spec.budget, before.spec.prices) == (spec.budget, spec.prices)
        if same_caps and not submitted:
            del records[0]
    records += submitted
    # Named by the last record: a dispatcher that finds its session here has read them all.
    records[-1]["session"] = session
    return records


def open_trials(state: State) -> list[str]:
    """Trials that still have something to train, those already begun first."""
    names = [name for name, trial in state.trials.items() if not trial.status.is_final]
    return sorted(names, key=lambda name: state.trials[name].epoch == 0)


def searched(spec: RunSpec, state: State) -> bool:
    """All search trials that the spec asks for are on record and have ended."""
    recorded = {name for name, trial in state.trials.items() if trial.stage == "search"}
    return spec.trial_names() <= recorded and not recorded & set(open_trials(state))


def code_version() -> str:
    """The package's version, and the commit where it runs from a checkout."""
    try:
        version = importlib.metadata.version("backbone-tournament")
    except importlib.metadata.PackageNotFoundError:
        version = "source"  # shipped as a job's working directory
    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{commit.stdout.strip()}"


def environment() -> Environment:
    """Versions and hardware of this machine, for the record."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        processor=processor(),
        cpus=os.cpu_count(),
        memory_gb=round(memory, 1),
        versions={name: importlib.metadata.version(name) for name in (*LIBRARIES, "mlflow")},
    )
