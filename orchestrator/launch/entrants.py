"""Who takes part in a run, before ``--set``: candidates as they are typed, those of a pool, and
those of a screen's shortlist.

A screen's finalists bring its images with them: the same source, split and stored side, so that
what is carved as val is what the probes were judged by. What they are trained on of that (see
``OWN_DATA``) is the run's own affair.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.ledger import replication, session
from orchestrator.spec import defaults, named_sweeps
from orchestrator.spec.run import SweepSpec, absolute_data, with_axes
from orchestrator.spec.screening import OWN_DATA
from trainables.config import DEFAULT_SHORT_SIDE, BackboneSpec, DataSpec
from trainables.errors import UserError, collected, raise_if_any
from trainables.storage import object_storage
from trainables.storage.object_storage import is_remote

if TYPE_CHECKING:
    from orchestrator.compare.shortlist import Shortlist

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entrants:
    """``sweeps`` as their targets say, and what each says for itself alone: ``texts``, as
    ``LABEL.PATH=VALUE``. ``names`` are the pools and targets that were asked for, which the run is
    called after. ``data`` are the images that a ``screen`` prescribes."""

    sweeps: tuple[SweepSpec, ...] = ()
    texts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    screen: str | None = None
    data: DataSpec | None = None

    def beside(self, other: Entrants) -> Entrants:
        """Both; this one's images hold for all."""
        sweeps = other.sweeps
        if self.data is not None:
            sweeps = tuple(_with_data(sweep, self.data) for sweep in sweeps)
        return replace(
            self,
            sweeps=(*self.sweeps, *sweeps),
            texts=(*self.texts, *other.texts),
            names=(*self.names, *other.names),
        )

    def stored(self, sweeps: Sequence[SweepSpec]) -> tuple[SweepSpec, ...]:
        """``sweeps`` with the stored side that their backbones need, or that of the screen. Where
        that is large, one from scratch sees what it would see alone."""
        if self.data is None:
            return defaults.with_stored_side(sweeps)
        is_large = (self.data.short_side or 0) > DEFAULT_SHORT_SIDE
        side = {"backbone.image_size": DEFAULT_SHORT_SIDE}
        return tuple(
            with_axes(sweep, side) if is_large and sweep.backbone.image_size is None else sweep
            for sweep in sweeps
        )

    def data_mistakes(self, sweeps: Iterable[SweepSpec]) -> list[str]:
        """Where ``--dataset`` or ``--set data.*`` ask ``sweeps`` for other images than the screen
        had."""
        if self.data is None:
            return []
        changes = [
            f"data.{one.name}: has {ours}, asked {asked}"
            for data in dict.fromkeys(absolute_data(sweep.data) for sweep in sweeps)
            for one in fields(DataSpec)
            if one.name not in OWN_DATA
            and (ours := getattr(self.data, one.name)) != (asked := getattr(data, one.name))
        ]
        return [
            f"a tournament from a screen has the screen's images; {self.screen}: "
            f"{'; '.join(dict.fromkeys(changes))}. "
            "Fix: leave --dataset and --set data.* out, or screen those images"
        ] * bool(changes)


def typed(targets: Sequence[str], mistakes: list[str]) -> Entrants:
    """Candidates as they are typed, those that can be read; the others are added to
    ``mistakes``."""
    sweeps: list[SweepSpec] = []
    texts: list[str] = []
    names: list[str] = []
    for target in targets:
        with collected(mistakes):
            sweeps.append(named_sweeps.resolve(target))
            texts += named_sweeps.own_weights([target], sweeps[-1:])
            names.append(target)
    return Entrants(sweeps=tuple(sweeps), texts=tuple(texts), names=tuple(names))


def pooled(pools: Sequence[str]) -> Entrants:
    """The candidates of pools, each at the side that a sweep of it sees. Raises ``UserError``."""
    from orchestrator.screen.pool import read_pools

    entries = read_pools(pools)
    backbones = {entry.label: replace(entry.backbone, image_size=None) for entry in entries}
    names = tuple(Path(pool).stem if Path(pool).is_file() else pool for pool in pools)
    return replace(_entrants(backbones), names=names)


def screened(screen: str, storage: str, run: str, beside: Entrants) -> Entrants:
    """The finalists of a screen, and those ``beside`` them: its shortlist, its front and its audit.
    The run called ``run``, if it has begun with this screen, keeps the candidates that it began
    with, whatever has become of the shortlist.

    Raises ``UserError`` where there is no such screen in ``storage``, where it has not ended, and
    where no candidate is on its shortlist.
    """
    if is_remote(storage):
        raise_if_any(object_storage.mistakes(storage.rstrip("/")))
    begun = session.state_of(replication.pull(storage, run))
    is_begun = begun.spec.from_screen == screen
    mistakes: list[str] = []
    shortlists: list[Shortlist] = []
    with collected(mistakes):
        shortlists.append(_shortlist(screen, storage))
    if not is_begun:
        raise_if_any(mistakes)
    finalists: dict[str, BackboneSpec] = {}
    data: DataSpec | None = None
    for result in shortlists:  # one, or none where the run goes on without
        finalists = {label: result.spec.candidates[label] for label in result.finalists}
        data = result.spec.data
        log.info(f"on the shortlist of {screen}: {', '.join(finalists)}")
    if is_begun:
        data = data if shortlists else begun.spec.sweeps[0].data
        typed_labels = {sweep.candidate for sweep in beside.sweeps}
        kept = {
            sweep.candidate: replace(sweep.backbone, hub_pins=None)
            for sweep in begun.spec.sweeps
            if sweep.candidate not in typed_labels
        }
        if kept.keys() != finalists.keys():
            log.info(f"{run} keeps those that it began with: {', '.join(kept)}")
        finalists = {label: finalists.get(label, backbone) for label, backbone in kept.items()}
    return replace(_entrants(finalists, data), screen=screen).beside(beside)


def _shortlist(screen: str, storage: str) -> Shortlist:
    from orchestrator.compare.shortlist import shortlist_of

    state = session.state_of(replication.existing_run(screen, storage))
    asked = state.header.screen
    if asked is None:
        raise UserError(
            f"--from-screen takes the name of a screen; {screen!r} is a run of trials. "
            f"Fix: orchestrator screen POOL --name OTHER, or --from {screen} for its recipes"
        )
    if not state.closed:
        done, total = len(state.screen.screened), len(asked.candidates)
        raise UserError(
            f"a screen has a shortlist once it has ended; {screen!r} has not ({done} of {total} "
            "candidates). Fix: the screen's own command again, which goes on; then this one"
        )
    result = shortlist_of(state)
    if not result.finalists:
        raise UserError(
            f"a tournament needs candidates on the shortlist; {screen!r} has none. "
            f"Fix: orchestrator compare {screen} says why; screen again with wider limits"
        )
    return result


def _entrants(backbones: Mapping[str, BackboneSpec], data: DataSpec | None = None) -> Entrants:
    """Sweeps of backbones that hold over ``--weights`` and ``--scale``, but for a ``--set`` that
    names their label."""
    sweeps, texts = [], []
    for label, backbone in backbones.items():
        sweep = named_sweeps.family_sweep(
            backbone.family,
            model=backbone.model,
            dataset=DataSpec().source if data is None else data.source,
            scale=backbone.scale,
            weights=backbone.weights,
        )
        sweep = replace(sweep, label=None if label == sweep.family else label)
        if backbone.image_size is not None:
            sweep = defaults.with_changes(sweep, {"backbone.image_size": backbone.image_size})
        sweeps.append(sweep if data is None else _with_data(sweep, data))
        texts.append(f"{label}.backbone.weights={backbone.weights}")
        texts.append(f"{label}.backbone.scale={backbone.scale}")
        if backbone.image_size is not None:
            texts.append(f"{label}.backbone.image_size={backbone.image_size}")
    return Entrants(sweeps=tuple(sweeps), texts=tuple(texts), data=data)


def _with_data(sweep: SweepSpec, data: DataSpec) -> SweepSpec:
    axes = {f"data.{one.name}": getattr(data, one.name) for one in fields(DataSpec)}
    return defaults.with_changes(sweep, axes)
