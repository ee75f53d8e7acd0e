"""From probes to a shortlist: the best, those that cannot be told from the last of them, the front.

A probe's accuracy is of the validation images: its interval and the tests cover other images of the
same kind, not other training images, and not what fine-tuning makes of a backbone.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.compare.runs import RunData
from orchestrator.compare.statistics import (
    MeanInterval,
    accuracy_interval,
    holm,
    mcnemar,
    permutation,
    share_interval,
)
from orchestrator.ledger import replication
from orchestrator.ledger.session import state_of
from orchestrator.ledger.state import State
from orchestrator.spec.screening import ScreenSpec
from orchestrator.wording import MISSING, duration, interval, percent, percent_ends
from trainables.config import NAMED_WEIGHTS, BackboneSpec, Screened
from trainables.errors import StorageError, collected

SCHEMA = 1
FILE_NAME = "shortlist.json"
ALPHA = 0.05
BY_IMAGE = ("correct", "group_images", "group_right")  # of a record, not of the JSON
NOT_REACHED = "the screen ended, or goes on, without it"


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A candidate that has a probe, its ``place`` among all such counted from 1. ``beyond`` says
    which limit it does not keep."""

    label: str
    place: int
    backbone: BackboneSpec
    screened: Screened
    top1: MeanInterval
    beyond: str | None = None


@dataclass(frozen=True, kw_only=True)
class NotToldApart:
    """A candidate below the list that is not told apart from the last one on it, with the p-value
    after Holm's correction."""

    label: str
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Shortlist:
    """``ranked`` by accuracy of the linear probe, the best first; ``left_out`` are labels with the
    reason why they have no probe, ``failed`` those of them that failed. ``chosen`` are the best
    within the limits, ``front`` those that no other one beats in accuracy and latency (``None``
    where no latency was asked for), ``audited`` drawn at random from what is on neither. One whose
    screen has not ``ended`` may change yet."""

    spec: ScreenSpec
    ranked: tuple[Ranked, ...]
    left_out: Mapping[str, str]
    failed: tuple[str, ...]
    chosen: tuple[str, ...]
    not_told_apart: tuple[NotToldApart, ...]
    front: tuple[str, ...] | None
    audited: tuple[str, ...]
    ended: bool = True

    @property
    def name(self) -> str:
        """The screen's."""
        return self.spec.name

    @property
    def finalists(self) -> tuple[str, ...]:
        """Who takes part in a tournament that comes of it: chosen, on the front, audited."""
        return tuple(dict.fromkeys([*self.chosen, *(self.front or ()), *self.audited]))

    @property
    def group_count(self) -> int | None:
        """How many groups the validation images are of; ``None`` where they stand for themselves,
        and of screens from before groups were recorded."""
        by_group = self.ranked[0].screened.group_images if self.ranked else None
        return None if by_group is None else len(by_group)

    def roles_of(self, label: str) -> list[str]:
        """Why a ranked candidate takes part in that tournament, or stands beside the last that
        does; empty for one that was screened out."""
        near = {other.label for other in self.not_told_apart}
        roles = {
            "chosen": self.chosen,
            "front": self.front or (),
            "audited": self.audited,
            "not told apart": near,
        }
        return [role for role, labels in roles.items() if label in labels]

    @property
    def exit_code(self) -> int:
        """0 done, 4 some candidates failed, 5 no candidate has a probe."""
        if not self.ranked:
            return 5
        return 4 if self.failed else 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, the schema of ``shortlist.json`` and ``screen --json``."""
        rows = [
            {
                "label": row.label,
                "place": row.place,
                "backbone": row.backbone.as_dict(),
                "linear_top1": asdict(row.top1),
                "beyond": row.beyond,
                "roles": self.roles_of(row.label),
                "screened": {
                    key: value
                    for key, value in row.screened.as_dict().items()
                    if key not in BY_IMAGE
                },
            }
            for row in self.ranked
        ]
        return {
            "schema": SCHEMA,
            "name": self.name,
            "ended": self.ended,
            "data": self.spec.data.as_dict(),
            "top": self.spec.top,
            "max_latency_ms": self.spec.max_latency_ms,
            "max_params_m": self.spec.max_params_m,
            "shortlist": list(self.chosen),
            "not_told_apart": [asdict(other) for other in self.not_told_apart],
            "front": None if self.front is None else list(self.front),
            "audit": {"share": self.spec.audit, "candidates": list(self.audited)},
            "candidates": rows,
            "groups": self.group_count,
            "left_out": dict(self.left_out),
            "failed": list(self.failed),
        }


def shortlist(
    spec: ScreenSpec, screened: Mapping[str, Screened], left_out: Mapping[str, str]
) -> Shortlist:
    """What ``screened``, by label, says of the candidates of ``spec``; ``left_out`` are those that
    were not tried, with the reason."""
    probed = {
        label: screened[label]
        for label in spec.candidates
        if label in screened and screened[label].reason is None and label not in left_out
    }
    failed = {
        label: screened[label].reason or MISSING
        for label in spec.candidates
        if label in screened and screened[label].reason is not None and label not in left_out
    }
    order = sorted(
        probed, key=lambda label: (-_right(probed[label]), _latency(probed[label]), label)
    )
    ranked = tuple(
        Ranked(
            label=label,
            place=place,
            backbone=spec.candidates[label],
            screened=probed[label],
            top1=_interval(probed[label]),
            beyond=beyond_limits(spec, probed[label]),
        )
        for place, label in enumerate(order, 1)
    )
    within = [row for row in ranked if row.beyond is None]
    chosen = tuple(row.label for row in within[: spec.top])
    front = None if spec.max_latency_ms is None else _front(within)
    out = sorted({row.label for row in within} - {*chosen, *(front or ())})
    count = min(len(out), max(1, round(spec.audit * len(out)))) if spec.audit else 0
    return Shortlist(
        spec=spec,
        ranked=ranked,
        left_out={**left_out, **failed},
        failed=tuple(failed),
        chosen=chosen,
        not_told_apart=_not_told_apart(within, spec.top),
        front=front,
        audited=tuple(random.Random(spec.data.split_seed).sample(out, count)),
    )


def shortlist_of(state: State) -> Shortlist:
    """What a screen's ledger says; of one that goes on or was stopped, so far."""
    spec, screen = state.header.screen, state.screen
    assert spec is not None
    left_out = dict(screen.left_out or {})
    for label in spec.candidates.keys() - screen.screened.keys() - left_out.keys():
        measured = screen.measured.get(label)
        left_out[label] = (measured and beyond_limits(spec, measured)) or NOT_REACHED
    ordered = {label: left_out[label] for label in spec.candidates if label in left_out}
    return replace(shortlist(spec, screen.screened, ordered), ended=state.closed)


def screen_beside(folder: Path, name: str) -> State | None:
    """Of the screen ``name`` in the storage of the run in ``folder``; ``None`` where it has gone
    or cannot be read, which a run's report does not hang on."""
    with collected([]), suppress(StorageError):
        state = state_of(replication.pull_other(folder, name))
        return state if state.is_screen else None
    return None


def shortlists_of(runs: Sequence[RunData]) -> tuple[Shortlist, ...]:
    """Of the screens among ``runs``, and of those that the others came from, as far as they are
    still in their storage."""
    states = {run.name: run.state for run in runs if run.state.is_screen}
    for run in runs:
        name = run.state.spec.from_screen
        if name is not None and name not in states and (state := screen_beside(run.folder, name)):
            states[name] = state
    return tuple(shortlist_of(state) for state in states.values())


def weights_text(spec: BackboneSpec) -> str:
    """The weights as a person reads them: a path by its last name."""
    return spec.weights if spec.weights in NAMED_WEIGHTS else Path(spec.weights).name


def beyond_limits(spec: ScreenSpec, screened: Screened) -> str | None:
    """Which limit a candidate does not keep, with its value and the limit's."""
    speed = screened.speed
    if speed is None:
        return None
    if spec.max_latency_ms is not None and speed.latency_ms > spec.max_latency_ms:
        return f"{speed.latency_ms:.3g} ms an image, more than {spec.max_latency_ms:g}"
    return beyond_params(spec, speed.params_m)


def beyond_params(spec: ScreenSpec, params_m: float) -> str | None:
    """The same of its parameters alone, which are known before it is built."""
    if spec.max_params_m is not None and params_m > spec.max_params_m:
        return f"{params_m:.3g} M parameters, more than {spec.max_params_m:g} M"
    return None


def bits_of(screened: Screened) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which validation images the linear probe gets right, (N,)."""
    packed = np.frombuffer(bytes.fromhex(screened.correct or ""), np.uint8)
    return np.unpackbits(packed, count=screened.val_images).astype(bool)


def _interval(screened: Screened) -> MeanInterval:
    """The probe's accuracy for new images by Wilson's interval, or for new groups of them."""
    if screened.group_images is None or screened.group_right is None:
        return share_interval(_right(screened), screened.val_images or 1, method="wilson")
    images, right = np.array(screened.group_images), np.array(screened.group_right)
    mean, count = float(right.sum() / images.sum()), int(images.sum())
    if len(images) == 1:  # one group tells nothing of others
        return MeanInterval(mean=mean, low=None, high=None, n=count)
    answers = np.column_stack([right, images - right]).ravel()
    per_image = np.repeat(np.tile([1.0, 0.0], len(images)), answers)
    clusters = np.repeat(np.arange(len(images)), images)
    ends = accuracy_interval([[mean]], per_image, clusters=clusters)
    return MeanInterval(mean=mean, low=ends.low, high=ends.high, n=count)


def _p_value(a: Screened, b: Screened) -> float:
    """That two probes are right equally often: McNemar's test, or sign flips of whole groups."""
    if a.group_right is None or b.group_right is None:
        return mcnemar(bits_of(a), bits_of(b))
    return permutation(np.subtract(a.group_right, b.group_right))


def _right(screened: Screened) -> int:
    return int(bits_of(screened).sum())


def _latency(screened: Screened) -> float:
    return math.inf if screened.speed is None else screened.speed.latency_ms


def _front(rows: Sequence[Ranked]) -> tuple[str, ...]:
    """Labels of those that no other one beats in accuracy and latency, the most accurate first."""
    front: list[str] = []
    fastest = math.inf
    for row in rows:
        if _latency(row.screened) < fastest:
            front.append(row.label)
            fastest = _latency(row.screened)
    return tuple(front)


def _not_told_apart(rows: Sequence[Ranked], top: int) -> tuple[NotToldApart, ...]:
    """Of the rows below the list, those that are not told apart from the last one on it, at 5 %
    for all of them together."""
    if len(rows) <= top:
        return ()
    last, below = rows[top - 1].screened, rows[top:]
    p_values = holm([_p_value(last, row.screened) for row in below])
    return tuple(
        NotToldApart(label=row.label, p_value=p_value)
        for row, p_value in zip(below, p_values, strict=True)
        if p_value >= ALPHA
    )


def write_shortlist(result: Shortlist, folder: Path) -> Path:
    """Write ``shortlist.json`` into the screen's folder, seen whole or not at all."""
    path, half = folder / FILE_NAME, folder / f".{FILE_NAME}.part"
    half.write_text(json.dumps(result.as_dict(), indent=1) + "\n", encoding="utf-8")
    half.replace(path)
    return path


COLUMNS = ("", "candidate", "weights", "linear probe", "95 % interval", "neighbours", "ms",
           "images/s", "params M", "px")  # fmt: skip


def shortlist_text(result: Shortlist) -> str:
    """The table and what follows from it, for the terminal."""
    rows = shortlist_rows(result)
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in (COLUMNS, *rows)
    ]
    lines += [f"{kind}: {label}: {reason}" for label, kind, reason in left_out_rows(result)]
    return "\n".join([*lines, "", *conclusions(result)])


def shortlist_rows(result: Shortlist) -> list[tuple[str, ...]]:
    """The ranked candidates under ``COLUMNS``."""
    return [_cells(row, row.label in result.chosen) for row in result.ranked]


def left_out_rows(result: Shortlist) -> list[tuple[str, str, str]]:
    """Whoever is not on the list whatever the probes say: label, ``failed`` or ``left out``, and
    the reason."""
    beyond = [(row.label, "left out", row.beyond) for row in result.ranked if row.beyond]
    others = [
        (label, "failed" if label in result.failed else "left out", reason)
        for label, reason in result.left_out.items()
    ]
    return [*beyond, *others]


def answer_text(result: Shortlist) -> str:
    """What a screen found, in sentences."""
    if not result.ranked:
        return f"{result.name} screened candidates, and none has a probe: there is no shortlist."
    first, so_far = result.ranked[0], "" if result.ended else " so far"
    chosen = ", ".join(result.chosen) or "nobody, none is within the limits"
    return (
        f"The shortlist of {result.name}{so_far}: {chosen}. By a linear probe on frozen features "
        f"{first.label} is the first of {len(result.ranked)} candidates, "
        f"{interval(**vars(first.top1))} of {first.screened.val_images} validation images. "
        "A probe is no verdict: fine-tuning may change the order."
    )


def _cells(row: Ranked, is_chosen: bool) -> tuple[str, ...]:
    screened, speed = row.screened, row.screened.speed
    low, high = row.top1.low, row.top1.high
    return (
        f"{row.place}{'*' if is_chosen else ''}",
        row.label,
        weights_text(row.backbone),
        percent(row.top1.mean),
        MISSING if low is None or high is None else percent_ends(low, high),
        percent(screened.neighbours_top1),
        MISSING if speed is None else f"{speed.latency_ms:.3g}",
        MISSING if screened.images_per_second is None else f"{screened.images_per_second:.3g}",
        MISSING if speed is None else f"{speed.params_m:.1f}",
        str(row.backbone.image_size),
    )


def conclusions(result: Shortlist) -> list[str]:
    """What follows from the table, a line each."""
    if not result.ranked:
        return ["no candidate has a probe: there is no shortlist"]
    one = result.ranked[0].screened
    groups = result.group_count
    covers = (
        "new images" if groups is None else f"new groups of images, of which these are {groups}"
    )
    test = "McNemar" if groups is None else "sign flips of groups"
    so_far = [] if result.ended else ["the screen has not ended: this is the list so far"]
    seconds = math.fsum(row.screened.seconds or 0.0 for row in result.ranked)
    lines = [
        *so_far,
        f"* shortlist: {', '.join(result.chosen) or 'none is within the limits'}",
        f"judged by {one.val_images} validation images, probes learned from {one.train_images} "
        f"training images; {duration(seconds)} of workers. The interval covers {covers}, not "
        "other training images, and fine-tuning may change the order",
    ]
    if result.not_told_apart:
        last, others = result.chosen[-1], result.not_told_apart
        names = ", ".join(other.label for other in others)
        lines.append(
            f"not told apart from {last}, the last on the list ({test}, Holm, 5 %): {names}"
        )
    if result.front is not None:
        lines.append(f"not beaten in accuracy and latency at once: {', '.join(result.front)}")
    if result.audited:
        lines.append(f"drawn from the others for the audit: {', '.join(result.audited)}")
    devices = {row.screened.speed.device for row in result.ranked if row.screened.speed}
    if len(devices) > 1:
        lines.append(f"latencies are of {len(devices)} devices: {', '.join(sorted(devices))}")
    return lines
