"""Pools: text files of candidates, one a line, and what is known of each before it has weights.

A line is ``CANDIDATE  # DATE: why it is in the pool``, the candidate as a run's
(:mod:`orchestrator.spec.candidates`), of a family or ``timm:MODEL``; ``timm:PATTERN`` stands for
each model that fits. Without ``=WEIGHTS`` they are the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from orchestrator.spec.candidates import TIMM, Candidate, default_label, label_mistakes
from orchestrator.spec.named_sweeps import unknown_target
from orchestrator.wording import nearest
from trainables.backbones import FAMILIES, check_backbone
from trainables.backbones.catalogue import (
    ModelFacts,
    facts_of,
    is_pattern,
    models_matching,
    own_side,
)
from trainables.config import DEFAULT_SHORT_SIDE, BackboneSpec
from trainables.errors import UserError, collected, one_line, raise_if_any

FOLDER = Path(__file__).with_name("pools")
SYNTAX = "a family, timm:MODEL, timm:PATTERN, timm:MODEL=WEIGHTS or LABEL=timm:MODEL=WEIGHTS"
COMMENT = re.compile(r"(?P<day>\d{4}-\d{2}-\d{2}):\s*(?P<why>\S.*)")


@dataclass(frozen=True, kw_only=True)
class PoolEntry:
    """A candidate as a line names it, or as one of the models that its pattern means: the
    ``backbone`` with its side, under a ``label``. ``why`` and ``day`` are of the line."""

    label: str
    backbone: BackboneSpec
    why: str | None = None
    day: date | None = None


def pool_names() -> list[str]:
    """The pools of the package."""
    return sorted(file.stem for file in FOLDER.glob("*.txt"))


def read_pools(texts: Sequence[str]) -> list[PoolEntry]:
    """The candidates of pools, each a name, a file, or a candidate itself, in order, none twice;
    a backbone may have several labels. Raises one ``UserError`` with every mistake of every line.
    """
    mistakes: list[str] = []
    entries: dict[tuple[str, BackboneSpec], PoolEntry] = {}
    for text in texts:
        with collected(mistakes):
            for place, line in _lines(text):
                for entry in _collected_at(place, line, mistakes):
                    entries.setdefault((entry.label, entry.backbone), entry)
    made = list(entries.values())
    mistakes += label_mistakes([(entry.label, entry.backbone) for entry in made])
    raise_if_any(mistakes)
    if not made:
        raise UserError(f"a pool needs candidates; got none. Fix: a line like {SYNTAX}")
    return made


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Lines of a pool with the place where each is."""
    file = Path(text).expanduser()
    if text in pool_names():
        file = FOLDER / f"{text}.txt"
    elif text.startswith(TIMM) or text in FAMILIES or ("=" in text and not file.is_file()):
        yield "", text
        return
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
    noted = COMMENT.fullmatch(comment)
    why = noted["why"] if noted else comment or None
    try:
        day = date.fromisoformat(noted["day"]) if noted else None
    except ValueError:
        day = None
    for candidate in _models_of(Candidate.parse(text)):
        backbone = backbone_of(candidate)
        label = candidate.label or default_label(backbone.model or backbone.family)
        yield PoolEntry(label=label, backbone=backbone, why=why, day=day)


def _models_of(candidate: Candidate) -> Iterator[Candidate]:
    """A pattern's candidates; any other one is itself."""
    model = candidate.target.removeprefix(TIMM)
    if model == candidate.target or not is_pattern(model):
        yield candidate
        return
    is_published = candidate.weights in (None, "hub")
    if candidate.label is not None or not (is_published or candidate.weights == "none"):
        raise UserError(
            f"a pattern stands for several models, which share no label and no file; got "
            f"{str(candidate)!r}. Fix: {TIMM}{model}, or name the models one by one"
        )
    for name in models_matching(model, pretrained=is_published):
        yield replace(candidate, target=f"{TIMM}{name}")


def backbone_of(candidate: Candidate) -> BackboneSpec:
    """What a candidate of a pool is: with the published weights unless it names others, at the
    side that they are published for, from scratch at 64 px; a family at scale small. Raises
    ``UserError`` where it is no backbone."""
    is_timm = candidate.target.startswith(TIMM) and candidate.target != TIMM
    if not is_timm and (candidate.target not in FAMILIES or candidate.target == "timm"):
        raise unknown_target(candidate.target, sweeps=False)
    spec = BackboneSpec(
        family="timm" if is_timm else candidate.target,
        model=candidate.target.removeprefix(TIMM) if is_timm else None,
        scale="tiny" if is_timm else "small",
        weights=candidate.weights or "hub",
    )
    raise_if_any(check_backbone(spec))
    side = DEFAULT_SHORT_SIDE if spec.weights == "none" else own_side(spec)
    return replace(spec, image_size=side)


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
