"""From the options of ``screen`` to a screen that may start, here or as a job of a Ray head."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.launch.validation import (
    NETWORK_TIMEOUT_S,
    data_mistakes,
    job_mistakes,
    storage_mistakes,
)
from orchestrator.screen.pool import PoolEntry, read_pools
from orchestrator.screen.run import name_mistakes, tracking_uri
from orchestrator.spec.defaults import stored_side
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.overrides import apply_set
from orchestrator.spec.run import absolute_backbone, absolute_data, dataset_name, sanitised
from orchestrator.spec.screening import TOP, ScreenSpec
from orchestrator.tracking import store
from trainables.backbones import check_weights
from trainables.config import DEFAULT_SHORT_SIDE, NAMED_WEIGHTS, DataSpec
from trainables.data.sources import KNOWN_DATASETS
from trainables.errors import raise_if_any
from trainables.storage.object_storage import is_remote


@dataclass(frozen=True, kw_only=True)
class ScreenOptions:
    """What ``screen`` is asked for, in the words of its options; ``None`` is not given."""

    pools: tuple[str, ...]
    dataset: str = "digits"
    minutes: float | None = None
    top: int = TOP
    max_latency_ms: float | None = None
    max_params_m: float | None = None
    audit: float = 0.0
    name: str | None = None
    set: tuple[str, ...] = ()
    storage: str = "runs"
    tracking_uri: str | None = None


def screen_of(options: ScreenOptions, *, as_job: bool = False) -> ScreenSpec:
    """The screen, its paths absolute. With ``as_job`` it goes on elsewhere: its paths must be
    absolute as they are given, and nothing but pools is looked for from here.

    Raises ``UserError`` with every mistake that shows without reading an image or starting Ray.
    """
    entries = read_pools(options.pools)
    typed = ScreenSpec(
        name=options.name
        or sanitised("-".join(["screen", *options.pools[:3], dataset_name(options.dataset)])),
        candidates={entry.label: entry.backbone for entry in entries},
        data=_data(options.dataset, options.set, entries),
        storage=options.storage,
        tracking_uri=options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None,
        minutes=options.minutes,
        top=options.top,
        max_latency_ms=options.max_latency_ms,
        max_params_m=options.max_params_m,
        audit=options.audit,
    )
    mistakes = typed.mistakes() + data_mistakes(typed.data, as_job)
    if as_job:
        mistakes += job_mistakes(typed.run, [(typed.data, one.backbone) for one in entries])
    else:
        mistakes += storage_mistakes(typed.storage)
        mistakes += store.check(tracking_uri(typed), timeout_s=NETWORK_TIMEOUT_S)
        for entry in entries:  # what the hub lacks is a line of the table
            if entry.backbone.weights not in NAMED_WEIGHTS:
                mistakes += [f"{entry.label}: {line}" for line in check_weights(entry.backbone)]
    raise_if_any(mistakes)
    candidates = {
        label: absolute_backbone(backbone) for label, backbone in typed.candidates.items()
    }
    spec = replace(typed, candidates=candidates, data=absolute_data(typed.data))
    if not (as_job and is_remote(spec.storage)):
        raise_if_any(name_mistakes(spec))
    return spec


def _data(dataset: str, sets: Sequence[str], entries: Sequence[PoolEntry]) -> DataSpec:
    """The images, stored with room for the largest side that a candidate sees."""
    other = [text for text in sets if not text.startswith("data.")]
    raise_if_any(
        f"only data.* matters to a screen; got --set {text}. Fix: leave it out" for text in other
    )
    data = apply_set(family_sweep("vit", dataset=dataset), sets).data
    side = stored_side(max(entry.backbone.image_size or 0 for entry in entries))
    if data.source in KNOWN_DATASETS or data.short_side or side <= DEFAULT_SHORT_SIDE:
        return data
    return replace(data, short_side=side)
