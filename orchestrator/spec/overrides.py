"""``--set path=value``: reach any leaf of a sweep, typed by its dataclass field.

    recipe.learning_rate=0.001           one value: the axis is no longer searched
    recipe.learning_rate=log(1e-4,1e-2)  a range; also uniform(LOW,HIGH) and [A,B,C]
    vit.backbone.patch=8                 in a run of several families, for one of them only

What the user does not set follows what he does: learning-rate ranges follow optimizer and
weights, warm-up the number of epochs, mirroring and batch size the dataset, weights the scale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from types import NoneType
from typing import Any

from orchestrator.spec import named_sweeps
from orchestrator.spec.limits import ResourceSpec, SchedulerSpec
from orchestrator.spec.run import SweepSpec, searchable, with_axes
from orchestrator.spec.spaces import Axes, Choice, Domain, LogUniform, Uniform
from trainables.config import NOUNS, BackboneSpec, DataSpec, Recipe, kinds_of
from trainables.errors import UserError

SECTIONS: tuple[Any, ...] = (Recipe, BackboneSpec, DataSpec, SchedulerSpec, ResourceSpec)
# The family is what the TARGET names.
FIXED = ("backbone.family",)
_RANGE = re.compile(r"(log|uniform)\((.*)\)", re.DOTALL)


Kinds = tuple[Any, ...]  # types that a field may have, NoneType last


class _Wrong(ValueError):
    """A value that does not fit its field; the message is the rule."""


def leaves() -> dict[str, Kinds]:
    """Every path that ``--set`` reaches, with the types of its field."""
    paths: dict[str, Kinds] = {"trials": (int,), "seed": (int,)}
    for owner in SECTIONS:
        for one in fields(owner):
            paths[f"{owner.section}.{one.name}"] = kinds_of(owner, one.name)
    return {path: kinds for path, kinds in paths.items() if path not in FIXED}


def apply_set(sweep: SweepSpec, texts: Iterable[str]) -> SweepSpec:
    """``sweep`` with every ``path=value`` applied. Raises ``UserError`` with all mistakes."""
    return apply_sets([sweep], texts)[0]


def apply_sets(sweeps: Sequence[SweepSpec], texts: Iterable[str]) -> tuple[SweepSpec, ...]:
    """As :func:`apply_set` for the families of one run; ``FAMILY.path`` reaches one of them."""
    families = [sweep.family for sweep in sweeps]
    wanted: list[dict[str, object]] = [{} for _ in sweeps]
    wrong: list[str] = []
    for text in texts:
        path, equals, value = text.partition("=")
        path = path.strip()
        family, _, rest = path.partition(".")
        chosen = family if family in families else None
        path = rest if chosen else path
        try:
            parsed = parse(path, value.strip(), given=bool(equals))
        except _Wrong as error:
            wrong.append(str(error))
            continue
        for one, values in zip(families, wanted, strict=True):
            if chosen in (None, one):
                values[path] = parsed
    if wrong:
        raise UserError(*wrong)
    return tuple(_changed(one, values) for one, values in zip(sweeps, wanted, strict=True))


def parse(path: str, text: str, *, given: bool = True) -> Any:
    """A value, or a ``Domain`` where ``text`` is a range. The error's message is the rule."""
    kinds_by_path = leaves()
    if path not in kinds_by_path:
        near = _near(path, list(kinds_by_path))
        raise _Wrong(f"--set has no path {path!r}. Fix: did you mean {' or '.join(near)}?")
    if not given:
        raise _Wrong(f"--set needs PATH=VALUE; got {path!r}. Fix: --set {path}=VALUE")
    kinds = kinds_by_path[path]
    match = _RANGE.fullmatch(text)
    listed = text.startswith("[") and text.endswith("]")
    if (match or listed) and not searchable(path):
        raise _Wrong(f"{path} takes one value, not a range; got {text}. Fix: --set {path}=VALUE")
    if match:
        return _range(path, kinds, match)
    if listed:
        values = [part.strip() for part in text[1:-1].split(",") if part.strip()]
        parsed = tuple(dict.fromkeys(_typed(path, kinds, value) for value in values))
        return parsed[0] if len(parsed) == 1 else Choice(parsed)
    return _typed(path, kinds, text)


def _near(path: str, paths: list[str]) -> list[str]:
    """Paths with the same leaf, or whose initials it is (lr, wd), before those that look alike."""
    leaf = path.rpartition(".")[2]
    leafs = {name: name.rpartition(".")[2] for name in paths}
    same = [name for name in paths if leafs[name] == leaf]
    initials = {name: "".join(word[0] for word in leafs[name].split("_")) for name in paths}
    short = [name for name in paths if initials[name] == leaf]
    return list(dict.fromkeys([*same, *short, *named_sweeps.nearest(path, paths)]))[:3]


def _range(path: str, kinds: Kinds, match: re.Match[str]) -> Domain:
    kind, text = match.groups()
    parts = [part.strip() for part in text.split(",")]
    if float not in kinds or len(parts) != 2:
        rule = "takes LOW,HIGH" if len(parts) != 2 else "needs an axis of real numbers"
        raise _Wrong(f"{path}: {kind}() {rule}; got {match[0]}. Fix: --set {path}=[A,B]")
    low, high = (_typed(path, (float,), part) for part in parts)
    return LogUniform(low, high) if kind == "log" else Uniform(low, high)


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
        raise _Wrong(f"{path} must be {noun}; got {text!r}. Fix: --set {path}=VALUE") from None
    if not text:
        raise _Wrong(f"{path} needs a value; got nothing. Fix: --set {path}=VALUE")
    return text


def _changed(sweep: SweepSpec, wanted: Axes) -> SweepSpec:
    """Fixed values first, then the defaults that follow them, then the ranges."""
    domains = {
        path: v for path, v in wanted.items() if isinstance(v, Choice | LogUniform | Uniform)
    }
    fixed = {path: value for path, value in wanted.items() if path not in domains}
    top = {path: fixed.pop(path) for path in ("trials", "seed") if path in fixed}
    changed = replace(with_axes(sweep, fixed), **top)
    changed = _follow(sweep, changed, wanted)
    if "recipe.optimizer" in domains and "recipe.learning_rate" not in wanted:
        raise UserError(
            "a searched recipe.optimizer needs a recipe.learning_rate range that fits each of "
            f"them; got only the default {sweep.space.get('recipe.learning_rate')}. "
            "Fix: --set 'recipe.learning_rate=log(1e-4,1e-1)'"
        )
    space = {path: domain for path, domain in changed.space.items() if path not in fixed}
    return replace(changed, space={**space, **domains})


def _follow(old: SweepSpec, new: SweepSpec, wanted: Axes) -> SweepSpec:
    """Move each value that is still its old default to its new default."""
    moves: dict[str, tuple[Any, Any]] = {
        "backbone.weights": (
            named_sweeps.default_weights(old.family, old.backbone.scale),
            named_sweeps.default_weights(new.family, new.backbone.scale),
        ),
        "recipe.flip": (
            named_sweeps.default_flip(old.data.source),
            named_sweeps.default_flip(new.data.source),
        ),
        "recipe.batch_size_per_worker": (
            named_sweeps.default_batch_size(old.data.source),
            named_sweeps.default_batch_size(new.data.source),
        ),
    }
    for path, (before, after) in moves.items():
        section, _, name = path.partition(".")
        if path not in wanted and getattr(getattr(new, section), name) == before:
            new = with_axes(new, {path: after})
    before_space, after_space = named_sweeps.default_space(old), named_sweeps.default_space(new)
    space = {
        path: after_space[path] if domain == before_space.get(path) else domain
        for path, domain in new.space.items()
    }
    return replace(new, space=space)
