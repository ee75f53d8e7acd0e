"""How every spec of the project states its rules, is checked and becomes JSON: a field's rule is in
its metadata (:func:`ruled`), and :class:`Spec` reads it.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cache, partial
from types import NoneType, UnionType
from typing import Any, ClassVar, Self

NOUNS = {bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Rule:
    """What a field's value must be; ``None`` bounds nothing. ``unit`` is of the bounds, ``fix`` a
    value that is valid and ``option`` the CLI's name of the field where it has one."""

    low: float | None = None
    high: float | None = None
    _: KW_ONLY
    open_low: bool = False
    choices: tuple[str, ...] = ()
    unit: str = ""
    fix: Any = None
    option: str | None = None

    def mistake(self, path: str, value: object, kind: type, default: Any) -> str | None:
        """Rule, value and fix in one line; ``None`` for a value that fits."""
        if self._fits(value, kind):
            return None
        noun = NOUNS.get(kind, "") + (f" of {self.unit}" if self.unit else "")
        if self.choices:
            what, fix = f"one of {', '.join(self.choices)}", self.choices[0]
        elif self.low is None:
            what, fix = noun, default
        elif self.high is None:
            what, fix = f"{noun} of at least {self.low:g}", f"{self.low:g}"
        else:
            bounds = f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}]"
            what = bounds if kind is float else f"{noun} {bounds}"
            fix = self.fix or "VALUE with a VALUE in that range"
        option = f"{self.option} " if self.option else f"--set {path}="
        return f"{path} must be {what}; got {value!r}. Fix: {option}{fix}"

    def _fits(self, value: object, kind: type) -> bool:
        if self.choices:
            return value in self.choices
        if kind is bool or isinstance(value, bool):
            return kind is bool and isinstance(value, bool)
        if not isinstance(value, int if kind is int else int | float):
            return False
        low, high = (bound if bound is not None else value for bound in (self.low, self.high))
        return low <= value <= high and not (self.open_low and value == low)


NEVER_WRITTEN = object()  # no value equals it


def ruled(
    default: Any,
    *bounds: float,
    operational: bool = False,
    before: Any = NEVER_WRITTEN,
    **rule: Any,
) -> Any:
    """A dataclass field with a default and a :class:`Rule`; ``bounds`` are its low and high.
    ``before`` is for a field that came later: what specs had in it that do not name it."""
    metadata = {"rule": Rule(*bounds, **rule), "operational": operational, "before": before}
    return field(default=default, metadata=metadata)


OPERATIONAL = {"operational": True}  # metadata of a field that needs no rule


class Spec:
    """Checked and serialised by its fields: a base for frozen dataclasses.

    The class keyword ``section`` is the path before its fields in messages and ``--set``. A
    field's metadata may hold its ``rule``, ``operational`` where it says how a run is carried out
    and not what it trains, ``read`` where the general way does not read its JSON form, and
    ``before`` where specs of before the field had a value that is not today's default: it is read
    where nothing is written and not written where it is the value, so that a spec of that time
    has the JSON form, and the hash, that it had.
    """

    __slots__ = ()
    section: ClassVar[str]

    def __init_subclass__(cls, section: str = "") -> None:
        cls.section = section

    def mistakes(self) -> list[str]:
        """Every rule broken, one line each; empty when it is valid."""
        owner: Any = type(self)
        mistakes = []
        for one in fields(owner):
            rule: Rule | None = one.metadata.get("rule")
            kinds, value = kinds_of(owner, one.name), getattr(self, one.name)
            if rule is None or (value is None and NoneType in kinds):
                continue
            path = f"{self.section}.{one.name}" if self.section else one.name
            mistakes.append(rule.mistake(path, value, kinds[0], one.default))
        return [line for line in mistakes if line]

    def as_dict(self, *, operational: bool = True) -> dict[str, Any]:
        """Nested, JSON-ready mapping, with its ``operational`` fields or without."""
        return {
            one.name: _written(getattr(self, one.name), operational)
            for one in fields(self)  # type: ignore[arg-type]
            if (operational or not one.metadata.get("operational"))
            and getattr(self, one.name) != one.metadata.get("before", NEVER_WRITTEN)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`as_dict`. Keys that are not fields are ignored, those that are missing
        take what they had before they were written, or else their defaults: ledgers of other
        versions are read. Raises ``TypeError`` where a field without a default is missing."""
        owner: Any = cls
        readers = _readers(owner)
        read = {name: readers[name](v) for name, v in values.items() if name in readers}
        return cls(**{**values_before(owner), **read})


@cache
def values_before(owner: Any) -> Mapping[str, Any]:
    """By name, what fields that came later to a :class:`Spec` had in specs without them."""
    given = {one.name: one.metadata.get("before", NEVER_WRITTEN) for one in fields(owner)}
    return {name: value for name, value in given.items() if value is not NEVER_WRITTEN}


@cache
def kinds_of(owner: Any, name: str) -> tuple[Any, ...]:
    """The types that a field of a :class:`Spec` may have, ``NoneType`` last."""
    return _kinds(typing.get_type_hints(owner)[name])


def _kinds(hint: Any) -> tuple[Any, ...]:
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(sorted(kinds, key=lambda kind: kind is NoneType))


@cache
def _readers(owner: Any) -> dict[str, Callable[[Any], Any]]:
    hints = typing.get_type_hints(owner)
    return {one.name: one.metadata.get("read") or _reader(hints[one.name]) for one in fields(owner)}


def _reader(hint: Any) -> Callable[[Any], Any]:
    kinds = _kinds(hint)
    kind = kinds[0]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind in JSON_TYPES:
        return partial(_checked, JSON_TYPES[kind] + kinds[1:])
    if isinstance(kind, type) and issubclass(kind, Spec):
        return lambda value: None if value is None else kind.from_dict(value)
    if origin in (tuple, Sequence):
        each = _reader(args[0])
        return lambda value: None if value is None else tuple(map(each, value))
    if origin is Mapping and (of := _reader(args[1])) is not _as_it_is:

        def read(value: Any) -> Any:
            if value is None:
                return None if NoneType in kinds else {}
            return {key: of(entry) for key, entry in value.items()}

        return read
    return _as_it_is


# What a field of a type may be in a JSON file, by ``type``: true and false are no numbers.
JSON_TYPES = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}


def _checked(kinds: tuple[type, ...], value: Any) -> Any:
    """A file that others wrote must not smuggle a list in where a number is computed with."""
    if type(value) not in kinds:
        raise TypeError(f"{value!r:.80} is no {kinds[0].__name__}")
    return value


def _as_it_is(value: Any) -> Any:
    return value


def _written(value: Any, operational: bool) -> Any:
    if isinstance(value, Spec):
        return value.as_dict(operational=operational)
    if isinstance(value, Mapping):
        return {key: _written(entry, operational) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_written(entry, operational) for entry in value]
    return value.as_dict() if hasattr(value, "as_dict") else value
