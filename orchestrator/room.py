"""What a cluster can ever hold: resources, and how they are cut into nodes. No ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Resources = Mapping[str, float]

HEAD = "node:__internal_head__"  # a resource that the head node alone has


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """``most`` nodes of equal ``resources``. ``scaled``: an autoscaler starts and stops them."""

    name: str
    resources: Resources
    most: int = 1
    scaled: bool = False

    def __str__(self) -> str:
        held = [f"{self.resources[n]:g} {n}" for n in ("CPU", "GPU") if self.resources.get(n)]
        return f"{self.most} {self.name} of {' + '.join(held) or 'no CPU or GPU'}"


def _amount_of(name: str) -> Callable[[NodeKind], float]:
    return lambda kind: kind.resources.get(name, 0.0)


class Room(Mapping[str, float]):
    """The most of each resource there can be at once, and the ``kinds`` of nodes that hold it.

    Of those that are scaled no more than ``most_scaled`` run at once; ``None``: as many as their
    kinds allow.
    """

    def __init__(self, kinds: Sequence[NodeKind], most_scaled: int | None = None) -> None:
        self.kinds, self._most_scaled = tuple(kinds), most_scaled
        names = {name for kind in self.kinds for name in kind.resources}
        self._totals = {name: self._most(_amount_of(name)) for name in sorted(names)}

    def __getitem__(self, name: str) -> float:
        return self._totals[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._totals)

    def __len__(self) -> int:
        return len(self._totals)

    def workers(self, asked: Resources) -> int:
        """Workers that fit at once when each of them asks for ``asked`` on one node."""
        return int(self._most(lambda kind: _times(kind.resources, asked)))

    def _most(self, value: Callable[[NodeKind], float]) -> float:
        left = math.inf if self._most_scaled is None else self._most_scaled
        total = 0.0
        for kind in sorted(self.kinds, key=value, reverse=True):
            count = min(kind.most, left) if kind.scaled else kind.most
            left -= count if kind.scaled else 0
            total += count * value(kind)
        return total


def room_of(there: Resources) -> Room:
    """``there`` itself, or where it is not cut into nodes, one node of it."""
    return there if isinstance(there, Room) else Room([NodeKind(name="node", resources=there)])


def scaled_room(running: Sequence[Resources], head: Resources, config: Mapping[str, Any]) -> Room:
    """What an autoscaler's ``config`` allows beside the ``head``; what is ``running`` where that
    holds more, since somebody added nodes by hand. ``config`` is in the form of Ray's cluster
    files, which KubeRay's own autoscaler derives from its resource as well."""
    types = config.get("available_node_types", {})
    most = int(config.get("max_workers", sum(int(t.get("max_workers", 0)) for t in types.values())))
    kinds = [
        NodeKind(
            name=name,
            resources={key: float(value) for key, value in one.get("resources", {}).items()},
            most=min(int(one.get("max_workers", most)), most),
            scaled=True,
        )
        for name, one in types.items()
        if name != config.get("head_node_type")
    ]
    allowed = Room([NodeKind(name="head", resources=head), *kinds], most)
    today = running_room(running)
    by_hand = any(today.get(name, 0.0) > allowed.get(name, 0.0) for name in ("CPU", "GPU"))
    return today if by_hand else allowed


def running_room(running: Sequence[Resources]) -> Room:
    """The nodes that are there, and no others."""
    return Room([NodeKind(name="node", resources=one) for one in running])


def _times(there: Resources, asked: Resources) -> float:
    return min(
        math.floor(there.get(name, 0.0) / amount + 1e-9)
        for name, amount in asked.items()
        if amount > 0
    )
