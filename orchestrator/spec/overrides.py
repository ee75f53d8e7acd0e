"""``--set path=value``: it reaches any leaf of a sweep, typed by its field.

    recipe.learning_rate=0.001           one value: the axis is no longer searched
    recipe.learning_rate=log(1e-4,1e-2)  a range; also uniform(LOW,HIGH) and [A,B,C]
    vit.backbone.patch=8                 for the candidate labelled vit only, whatever all have

What the user does not set follows what he does: ``defaults.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any

from orchestrator.spec.defaults import aligned, with_changes
from orchestrator.spec.limits import ResourceSpec, SchedulerSpec
from orchestrator.spec.run import SweepSpec, searchable
from orchestrator.spec.spaces import RANGES, Choice
from orchestrator.wording import nearest
from trainables.config import BackboneSpec, DataSpec, Recipe
from trainables.errors import UserError, collected, raise_if_any
from trainables.spec import NOUNS, kinds_of

SECTIONS: tuple[Any, ...] = (Recipe, BackboneSpec, DataSpec, SchedulerSpec, ResourceSpec)

Kinds = tuple[Any, ...]  # types that a field may have, NoneType last


def leaves() -> dict[str, Kinds]:
    """Every path that ``--set`` reaches, with the types of its field."""
    paths: dict[str, Kinds] = {
        "trials": (int,), "seed": (int,), "metric": (str,), "published_first": (bool,)
    }  # fmt: skip
    for owner in SECTIONS:
        for one in fields(owner):
            paths[f"{owner.section}.{one.name}"] = kinds_of(owner, one.name)
    del paths["backbone.family"]  # is what the candidate's target names
    return paths


def apply_set(sweep: SweepSpec, texts: Iterable[str]) -> SweepSpec:
    """``sweep`` with every ``path=value`` applied. Raises ``UserError`` with all mistakes."""
    return apply_sets([sweep], texts)[0]


def apply_sets(sweeps: Sequence[SweepSpec], texts: Iterable[str]) -> tuple[SweepSpec, ...]:
    """As :func:`apply_set` for the candidates of one run; ``LABEL.path`` reaches one of them, and
    holds there over what is set for all."""
    for_all: dict[str, object] = {}
    own: dict[str, dict[str, object]] = {sweep.candidate: {} for sweep in sweeps}
    mistakes: list[str] = []
    for text in texts:
        path, equals, value = text.partition("=")
        with collected(mistakes):
            label, path = _addressed(path.strip(), list(own))
            changes = for_all if label is None else own[label]
            changes[path] = parse(path, value.strip() if equals else None)
    raise_if_any(mistakes)
    changed = [with_changes(sweep, {**for_all, **own[sweep.candidate]}) for sweep in sweeps]
    return aligned(changed, {*for_all, *(path for changes in own.values() for path in changes)})


def _addressed(path: str, labels: Sequence[str]) -> tuple[str | None, str]:
    """The candidate that ``path`` is for, ``None`` for all, and the rest of it. A label may have
    dots, and be another one's beginning. Raises ``UserError`` where no candidate is called so."""
    paths = leaves()
    fitting = [label for label in labels if path.startswith(f"{label}.")]
    if fitting:
        rests = {label: path.removeprefix(f"{label}.") for label in fitting}
        return max(rests.items(), key=lambda found: (found[1] in paths, len(found[0])))
    leaf = next((leaf for leaf in paths if "." in leaf and path.endswith(f".{leaf}")), None)
    if leaf is None:
        return None, path
    label = path.removesuffix(f".{leaf}")
    raise UserError(
        f"--set LABEL.PATH=VALUE needs the label of a candidate; got {label!r}; valid: "
        f"{', '.join(labels)}. Fix: --set {nearest(label, list(labels))[0]}.{leaf}=VALUE"
    )


def parse(path: str, text: str | None) -> Any:
    """A value, or a ``Domain`` where ``text`` is a range. Raises ``UserError``, one line."""
    kinds_by_path = leaves()
    if path not in kinds_by_path:
        near = _near(path, list(kinds_by_path))
        raise UserError(f"--set has no path {path!r}. Fix: did you mean {' or '.join(near)}?")
    if text is None:
        raise UserError(f"--set needs PATH=VALUE; got {path!r}. Fix: --set {path}=VALUE")
    kinds = kinds_by_path[path]
    match = re.fullmatch(r"(log|uniform)\((.*)\)", text, re.DOTALL)
    listed = text.startswith("[") and text.endswith("]")
    if (match or listed) and not searchable(path):
        raise UserError(f"{path} takes one value, not a range; got {text}. Fix: --set {path}=VALUE")
    if match:
        parts = [part.strip() for part in match[2].split(",")]
        if float not in kinds or len(parts) != 2:
            rule = "takes LOW,HIGH" if len(parts) != 2 else "needs an axis of real numbers"
            raise UserError(f"{path}: {match[1]}() {rule}; got {text}. Fix: --set {path}=[A,B]")
        return RANGES[match[1]](*(_typed(path, (float,), part) for part in parts))
    if listed:
        values = [part.strip() for part in text[1:-1].split(",") if part.strip()]
        parsed = tuple(dict.fromkeys(_typed(path, kinds, value) for value in values))
        return parsed[0] if len(parsed) == 1 else Choice(parsed)
    return _typed(path, kinds, text)


def _near(path: str, paths: list[str]) -> list[str]:
    """Paths with the same leaf, or whose initials it is (lr, wd), before those that look alike."""
    leaf, own = path.rpartition(".")[2], {name: name.rpartition(".")[2] for name in paths}
    same = [name for name in paths if own[name] == leaf]
    short = [name for name in paths if "".join(w[0] for w in own[name].split("_")) == leaf]
    return list(dict.fromkeys([*same, *short, *nearest(path, paths)]))[:3]


def _typed(path: str, kinds: Kinds, text: str) -> Any:
    optional = NoneType in kinds
    if optional and text.lower() in ("none", "null"):
        return None
    kind = kinds[0]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (KeyError, ValueError):
        noun = NOUNS[kind] + (" or none" if optional else "")
        raise UserError(f"{path} must be {noun}; got {text!r}. Fix: --set {path}=VALUE") from None
    if not text:
        raise UserError(f"{path} needs a value; got nothing. Fix: --set {path}=VALUE")
    return text
