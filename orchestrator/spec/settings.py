"""From sweeps back to the words of ``--set`` that they were asked for with.

The inverse of :mod:`orchestrator.spec.overrides`: the leaves in which the candidates of a run are
not what their targets, and a command's other options, say by themselves. Needs no timm, so the side
that a ``timm:MODEL`` with trained weights sees is always among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from orchestrator.spec import defaults
from orchestrator.spec.run import SweepSpec
from orchestrator.spec.spaces import Choice, Uniform
from trainables.backbones.families import FAMILIES
from trainables.config import BackboneSpec, DataSpec, Recipe
from trainables.errors import UserError

# Leaves that options or the candidates' own words say.
ELSEWHERE = (
    "backbone.family", "backbone.model", "backbone.weights", "data.source",
    "resources.num_workers", "scheduler.max_epochs", "scheduler.audit",
)  # fmt: skip
SIDES = ("backbone.image_size", "data.short_side")


def settings(sweeps: Sequence[SweepSpec], *, given: Mapping[str, Collection[str]]) -> list[str]:
    """``PATH=VALUE`` for what all ``sweeps`` of a run have alike, ``LABEL.PATH=VALUE`` for what is
    one's own. ``given``, by label: paths that another option than ``--set`` says already.
    Operational leaves, which make no other run, and families of other versions are left out."""
    supported = [sweep for sweep in sweeps if sweep.family in FAMILIES]
    stored_as_usual = _has_usual_sides(supported)
    grace = defaults.default_grace(supported) if supported else None
    by_label: dict[str, dict[str, str]] = {}
    for sweep in supported:
        own = dict(_axes(sweep))
        own |= {
            path: _text(value)
            for path, value in _leaves(sweep, sweeps[0])
            if not (stored_as_usual and path in SIDES)
        }
        if sweep.scheduler.grace_epochs != grace:
            own["scheduler.grace_epochs"] = _text(sweep.scheduler.grace_epochs)
        kept = {p: text for p, text in own.items() if p not in given.get(sweep.candidate, ())}
        by_label[sweep.candidate] = kept
    paths = dict.fromkeys(path for own in by_label.values() for path in own)
    return [text for path in paths for text in _for_all_or_each(path, by_label)]


def _for_all_or_each(path: str, by_label: Mapping[str, Mapping[str, str]]) -> list[str]:
    texts = {label: own[path] for label, own in by_label.items() if path in own}
    alike = len(texts) == len(by_label) and len(set(texts.values())) == 1
    if alike or path.startswith("scheduler."):
        return [f"{path}={next(iter(texts.values()))}"]
    return [f"{label}.{path}={text}" for label, text in texts.items()]


def _axes(sweep: SweepSpec) -> Iterator[tuple[str, str]]:
    """Ranges that are not the default ones, and values of axes that are searched by default."""
    usual = defaults.default_space(sweep)
    for path, domain in sweep.space.items():
        if usual.get(path) != domain:
            yield path, _text(domain)
    for path in [path for path in usual if path not in sweep.space]:
        section, _, name = path.partition(".")
        yield path, _text(getattr(getattr(sweep, section), name))


def _leaves(sweep: SweepSpec, first: SweepSpec) -> Iterator[tuple[str, Any]]:
    """Values that are not the default ones of axes that are not searched."""
    usual = dict(defaults.default_axes(
        sweep.family, sweep.backbone.scale, sweep.data.source, sweep.resources.gpus_per_worker
    ))  # fmt: skip
    usual |= {"backbone.image_size": _usual_side(sweep), "backbone.scale": first.backbone.scale}
    if sweep.family == "timm":
        usual["backbone.scale"] = sweep.backbone.scale  # of no meaning there
    if not sweep.published_first:
        yield "published_first", False
    for section in (Recipe, BackboneSpec, DataSpec, type(sweep.scheduler), type(sweep.resources)):
        spec = getattr(sweep, section.section)
        for leaf in fields(section):
            path, value = f"{section.section}.{leaf.name}", getattr(spec, leaf.name)
            skipped = path in ELSEWHERE or path in sweep.space or leaf.name == "grace_epochs"
            if skipped or leaf.metadata.get("operational"):
                continue
            if value != usual.get(path, leaf.default):
                yield path, value


def _usual_side(sweep: SweepSpec) -> int | None:
    if sweep.family == "timm" and sweep.backbone.weights != "none":
        return None
    try:
        return defaults.default_image_size(sweep)
    except UserError:  # weights that are elsewhere by now
        return None


def _has_usual_sides(sweeps: Sequence[SweepSpec]) -> bool:
    """Whether stored side, and what backbones see, are as nobody asked for any."""
    try:
        plain = [
            replace(
                sweep,
                data=replace(sweep.data, short_side=None),
                backbone=replace(sweep.backbone, image_size=_usual_side(sweep)),
            )
            for sweep in sweeps
        ]
        again = defaults.with_stored_side(plain)
    except UserError:
        return False
    return all(
        (now.data.short_side, now.backbone.image_size)
        == (then.data.short_side, then.backbone.image_size)
        for now, then in zip(again, sweeps, strict=True)
    )


def _text(value: Any) -> str:
    """As :func:`orchestrator.spec.overrides.parse` reads it, to the last digit."""
    if isinstance(value, Choice):
        return f"[{','.join(map(_text, value.values))}]"
    if isinstance(value, Uniform):
        return f"{value.kind}({value.low!r},{value.high!r})"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)
