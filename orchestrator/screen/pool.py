"""Pools: text files of candidates, one a line, and what is known of each before it has weights.

A line is ``CANDIDATE  # DATE: why it is in the pool``; a candidate is a family, ``timm:MODEL`` or
``timm:PATTERN``, then ``=WEIGHTS`` where they are not the published ones, and before it ``LABEL=``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from orchestrator.spec.named_sweeps import nearest
from orchestrator.spec.run import sanitised
from trainables.backbones import FAMILIES, check_backbone
from trainables.backbones.catalogue import (
    ModelFacts,
    facts_of,
    is_pattern,
    models_matching,
    own_side,
)
from trainables.config import DEFAULT_SHORT_SIDE, NAMED_WEIGHTS, BackboneSpec
from trainables.errors import UserError, collected, one_line, raise_if_any

FOLDER = Path(__file__).with_name("pools")
SYNTAX = "a family, timm:MODEL, timm:PATTERN, timm:MODEL=WEIGHTS or LABEL=timm:MODEL=WEIGHTS"
COMMENT = re.compile(r"(?P<day>\d{4}-\d{2}-\d{2}):\s*(?P<why>\S.*)")


@dataclass(frozen=True, kw_only=True)
class PoolEntry:
    """A candidate: a backbone with given weights and a side, under a ``label``. ``why`` and ``day``
    are of its line in the pool."""

    label: str
    backbone: BackboneSpec
    why: str | None = None
    day: date | None = None


def pool_names() -> list[str]:
    """The pools of the package."""
    return sorted(file.stem for file in FOLDER.glob("*.txt"))


def read_pools(texts: Sequence[str]) -> list[PoolEntry]:
    """The candidates of pools, each a name, a file, or a candidate itself, in order, none twice.

    Raises one ``UserError`` with every mistake of every line.
    """
    mistakes: list[str] = []
    entries: dict[BackboneSpec, PoolEntry] = {}
    for text in texts:
        with collected(mistakes):
            for place, line in _lines(text):
                for entry in _collected_at(place, line, mistakes):
                    entries.setdefault(entry.backbone, entry)
    made = list(entries.values())
    labels = [entry.label for entry in made]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    mistakes += [
        f"each candidate of a pool needs a label of its own; {label!r} is of several. "
        f"Fix: {label}-2=CANDIDATE"
        for label in twice
    ]
    raise_if_any(mistakes)
    if not made:
        raise UserError(f"a pool needs candidates; got none. Fix: a line like {SYNTAX}")
    return made


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Lines of a pool with the place where each is."""
    if text in pool_names():
        file = FOLDER / f"{text}.txt"
    elif text.startswith("timm:") or "=" in text or text in FAMILIES:
        yield "", text
        return
    else:
        file = Path(text).expanduser()
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        near = " or ".join(nearest(text, pool_names()))
        raise UserError(
            f"a pool is one of {', '.join(pool_names())}, a text file, or {SYNTAX}; got {text!r} "
            f"({one_line(error)[:100]}). Fix: {near}, or correct the path"
        ) from None
    for number, line in enumerate(content.splitlines(), 1):
        if line.partition("#")[0].strip():
            yield f"{file.name}, line {number}: ", line


def _collected_at(place: str, line: str, mistakes: list[str]) -> Iterable[PoolEntry]:
    own: list[str] = []
    entries: list[PoolEntry] = []
    with collected(own):
        entries = list(parse_line(line))
    mistakes += [f"{place}{mistake}" for mistake in own]
    return entries


def parse_line(line: str) -> Iterator[PoolEntry]:
    """The candidates of one line: several where it is a pattern. Raises ``UserError``."""
    text, _, comment = (part.strip() for part in line.partition("#"))
    label, target, weights = _parts(text)
    noted = COMMENT.fullmatch(comment)
    why = noted["why"] if noted else comment or None
    try:
        day = date.fromisoformat(noted["day"]) if noted else None
    except ValueError:
        day = None
    family, _, model = target.partition(":")
    if family not in FAMILIES or (family == "timm") != bool(model):
        raise UserError(f"a candidate is {SYNTAX}; got {text!r}. Fix: timm:resnet18, say")
    published = weights in (None, "hub")
    models = [model or None]
    if is_pattern(model):
        if label is not None or not (published or weights == "none"):
            raise UserError(
                f"a pattern stands for several models, which share no label and no file; got "
                f"{text!r}. Fix: timm:{model}, or name the models one by one"
            )
        models = list(models_matching(model, pretrained=published))
    for name in models:
        spec = BackboneSpec(
            family=family,
            model=name,
            scale="small" if family != "timm" else "tiny",
            weights=weights or "hub",
        )
        raise_if_any(check_backbone(spec))
        usual = sanitised(name or family)
        yield PoolEntry(
            label=label or usual,
            backbone=replace(spec, image_size=_side(spec)),
            why=why,
            day=day,
        )


def _parts(text: str) -> tuple[str | None, str, str | None]:
    """Label, target and weights of a candidate."""
    first, _, rest = text.partition("=")
    family = first.partition(":")[0]
    if family in FAMILIES and (":" in first or first != "timm"):
        return None, first, rest or None
    target, _, weights = rest.partition("=")
    if first and sanitised(first) != first:
        raise UserError(
            "a label must be letters, digits, '.', '_' or '-'; "
            f"got {first!r}. Fix: {sanitised(first)}={rest}"
        )
    return first or None, target, weights or None


def _side(spec: BackboneSpec) -> int:
    """The side that its weights are published for; from scratch what a sweep's would see."""
    return DEFAULT_SHORT_SIDE if spec.weights == "none" else own_side(spec)


@dataclass(frozen=True, kw_only=True)
class EntryFacts:
    """A pool's entry with its facts; ``reason`` says why there are none."""

    entry: PoolEntry
    facts: ModelFacts | None
    reason: str | None = None


def described(entries: Sequence[PoolEntry]) -> list[EntryFacts]:
    """Each entry's facts. Needs no network, and builds each model once, without values."""
    rows = []
    for entry in entries:
        with collected([]) as mistakes:
            rows.append(EntryFacts(entry=entry, facts=facts_of(entry.backbone)))
        rows += [EntryFacts(entry=entry, facts=None, reason=line) for line in mistakes[:1]]
    return rows


def weights_text(spec: BackboneSpec) -> str:
    """The weights as a person reads them: a path by its last name."""
    return spec.weights if spec.weights in NAMED_WEIGHTS else Path(spec.weights).name
