"""A run on disk or in object storage, for Python."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from orchestrator.compare import prediction_table, runs, trial_tables
from orchestrator.compare.comparison import Comparison, compare
from orchestrator.compare.runs import RunData
from orchestrator.ledger.replication import existing_run
from orchestrator.ledger.state import RunStatus
from orchestrator.spec.run import RunSpec
from trainables.storage.object_storage import is_remote


@dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A run as it stood when it was loaded; :func:`load` it again for what has come since.

    ``data`` is what the other rooms read of it: its folder, its ledger's state, its status.
    """

    data: RunData

    @property
    def name(self) -> str:
        """The run's name."""
        return self.data.name

    @property
    def folder(self) -> Path:
        """Where it is, or where this machine's copy of it is."""
        return self.data.folder

    @property
    def status(self) -> RunStatus:
        """How it stood: ``empty``, ``running``, ``done``, ``failed``, ``stopped`` or
        ``interrupted``."""
        return self.data.status

    @property
    def spec(self) -> RunSpec:
        """What was asked for."""
        return self.data.state.spec

    @cached_property
    def trials(self) -> pa.Table:
        """One row a trial; columns as :data:`orchestrator.compare.trial_tables.TRIAL_COLUMNS`."""
        return trial_tables.trial_table([self.data])

    @cached_property
    def epochs(self) -> pa.Table:
        """One row a reported epoch; columns as
        :data:`orchestrator.compare.trial_tables.EPOCH_COLUMNS`."""
        return trial_tables.epoch_table([self.data])

    @cached_property
    def predictions(self) -> pa.Table:
        """One row a final, split and image; columns as
        :data:`orchestrator.compare.prediction_table.PREDICTION_COLUMNS`. Raises ``UserError`` where
        no final has kept what it predicts."""
        return prediction_table.prediction_table([self.data])

    def compare(self, *others: Run) -> Comparison:
        """The candidates of this run, and of ``others``, side by side: ``as_dict()`` of it is what
        ``orchestrator compare --json`` prints, ``answer`` its first sentences.

        Raises ``UserError`` for runs on different images or splits.
        """
        return compare([self.data, *(other.data for other in others)])

    def __repr__(self) -> str:
        """Its name, status and size."""
        trials = len(self.data.state.trials)
        return f"<run {self.name}: {self.status}, {trials} trial{'s' * (trials != 1)}>"


def load(run: str | os.PathLike[str]) -> Run:
    """The run in a folder, ``runs/demo``, or in object storage, ``s3://BUCKET/runs/demo``.

    Raises ``UserError`` where there is none (with the near names), where its ledger cannot be
    read, and for a screen; ``StorageError`` where object storage does not answer.
    """
    text = os.fspath(run)
    if is_remote(text):
        place, _, name = text.rstrip("/").rpartition("/")
    else:
        folder = Path(text).expanduser().resolve()
        place, name = str(folder.parent), folder.name
    return Run(runs.load(existing_run(name, place)))
