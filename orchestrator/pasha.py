"""PASHA: ASHA whose longest rung grows only while the ranking of trials still changes.

Bohdal, Balles, Wistuba, Ermis, Archambeau, Zappella, "PASHA: Efficient HPO and NAS with
Progressive Resource Allocation", ICLR 2023. Trials pause at every rung and are promoted when
they are among the best 1/eta of it (section 3). The cap starts at the second rung; it rises by
one when the trials of the two top rungs are not in the same soft order (section 4.2), trials
closer than epsilon counting as equal, epsilon taken from curves that cross twice (section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

NOISE_PERCENTILE = 90

Curve = Mapping[int, float]  # epoch -> value, higher is better


class PashaRace:
    """The rungs of one family. Names are trials, values are accuracies, higher is better."""

    def __init__(self, rungs: Sequence[int], reduction_factor: int) -> None:
        self.rungs = list(rungs)
        self._eta = reduction_factor
        self._top = min(1, len(self.rungs) - 1)
        self._values: list[dict[str, float]] = [{} for _ in self.rungs]
        self._promoted: list[set[str]] = [set() for _ in self.rungs]
        self._curves: dict[str, dict[int, float]] = {}

    @property
    def cap(self) -> int | None:
        """Epochs at the highest rung that trials may reach now; ``None`` without rungs."""
        return self.rungs[self._top] if self.rungs else None

    def observe(self, name: str, epoch: int, value: float) -> None:
        """One report; at a rung it counts for the ranking, and may raise the cap."""
        self._curves.setdefault(name, {})[epoch] = value
        if epoch not in self.rungs:
            return
        rung = self.rungs.index(epoch)
        fresh = name not in self._values[rung]
        self._values[rung].setdefault(name, value)
        if fresh and rung == self._top and self._top < len(self.rungs) - 1 and not self.stable():
            self._top += 1

    def may_pass(self, name: str, epoch: int) -> bool:
        """Promote ``name`` beyond the rung at ``epoch`` if its value there earns it."""
        rung = self.rungs.index(epoch)
        if rung == self._top and rung < len(self.rungs) - 1:
            return False
        if name not in self._promoted[rung] and name not in self._best(rung):
            return False
        self._promoted[rung].add(name)
        return True

    def promote(self, paused: Sequence[str]) -> str | None:
        """The paused trial to go on with, from the highest rung; ``None`` when nobody earned it."""
        for rung in reversed(range(len(self.rungs))):
            if rung == self._top and rung < len(self.rungs) - 1:
                continue
            for name in self._best(rung):
                here = name in paused and name not in self._promoted[rung]
                if here and max(self._curves[name]) == self.rungs[rung]:
                    self._promoted[rung].add(name)
                    return name
        return None

    def at_cap(self, name: str) -> bool:
        """The trial waits at the highest rung of the race: nothing longer was needed."""
        return name in self._values[self._top]

    def _best(self, rung: int) -> list[str]:
        values = self._values[rung]
        ranked = sorted(values, key=lambda name: -values[name])
        return ranked[: len(ranked) // self._eta]

    def stable(self) -> bool:
        """The trials of the top rung stood in the same soft order one rung below."""
        upper, lower = self._values[self._top], self._values[self._top - 1]
        epsilon = self.epsilon()
        order_below = sorted(upper, key=lambda name: -lower[name])
        order_above = sorted(upper, key=lambda name: -upper[name])
        return all(
            abs(upper[order_above[place]] - upper[name]) <= epsilon
            for place, name in enumerate(order_below)
        )

    def epsilon(self) -> float:
        """Distance at the longest common epoch of pairs whose curves cross twice: the
        ``NOISE_PERCENTILE``-th percentile (nearest rank), 0 while no pair does."""
        distances = []
        top = list(self._values[self._top])
        for one, other in combinations(top, 2):
            common = sorted(set(self._curves[one]) & set(self._curves[other]))
            gaps = [self._curves[one][epoch] - self._curves[other][epoch] for epoch in common]
            signs = [math.copysign(1, gap) for gap in gaps if gap]
            if sum(a != b for a, b in pairwise(signs)) >= 2:
                distances.append(abs(gaps[-1]))
        if not distances:
            return 0.0
        return sorted(distances)[math.ceil(NOISE_PERCENTILE / 100 * len(distances)) - 1]
