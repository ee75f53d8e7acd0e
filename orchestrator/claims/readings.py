"""How results are read off recorded curves: at a budget, at an accuracy, at the best level."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.claims.cells import Cell
from orchestrator.claims.effects import NoVerdict

Array = np.ndarray
RATE = "recipe.learning_rate"
LEARNED = 0.1  # share of the way from chance to perfect that counts as having learned


def final(cell: Cell) -> float:
    """Validation accuracy after the last epoch."""
    return float(cell.accuracy[-1])


def at_epoch(cell: Cell, epoch: float) -> float:
    """Validation accuracy at ``epoch``, between two by a straight line."""
    return float(np.interp(epoch, cell.epochs, cell.accuracy))


def at_flops(cell: Cell, flops: float) -> float:
    """Validation accuracy at cumulative ``flops``, between epochs by a line in their logarithm."""
    return float(np.interp(np.log(flops), np.log(cell.curve("flops")), cell.accuracy))


def reached(cell: Cell, accuracy: float, spent: Array) -> float | None:
    """What of ``spent`` (E,), cumulative, it took to first reach ``accuracy``; None if never.

    Before training the accuracy is that of guessing, for nothing spent.
    """
    if accuracy <= cell.chance:
        return 0.0
    above = cell.accuracy >= accuracy
    after = int(np.argmax(above))
    if not above[after]:
        return None
    height, cost = (cell.accuracy[after - 1], spent[after - 1]) if after else (cell.chance, 0.0)
    share = (accuracy - height) / (cell.accuracy[after] - height)
    return float(cost + share * (spent[after] - cost))


def elsewhere(values: Mapping[Any, Array]) -> Array:
    """For each seed the value of the level that is best on the mean of the *other* seeds, (n,).

    ``values``: (n,) by level. To choose the best level and then report its value on the same
    seeds would flatter it; here no seed has a say in what it is read at.
    """
    table = np.stack(list(values.values()))  # (levels, seeds)
    others = table.sum(axis=1, keepdims=True) - table
    return np.asarray(table[others.argmax(axis=0), np.arange(table.shape[1])])


def by_arm(
    cells: Sequence[Cell], key: Callable[[Cell], Hashable], value: Callable[[Cell], float]
) -> dict[Any, Array]:
    """``value`` by arm and seed, (n,); an arm's learning rate is the best on the other seeds."""
    read: dict[Any, dict[Any, dict[int, float]]] = {}
    for cell in cells:
        rates = read.setdefault(key(cell), {})
        rates.setdefault(cell.axes.get(RATE), {})[cell.seed] = value(cell)
    return {
        arm: elsewhere(
            {rate: np.array([seeds[s] for s in sorted(seeds)]) for rate, seeds in rates.items()}
        )
        for arm, rates in read.items()
    }


def must_have_learned(accuracies: Mapping[str, float], chance: float) -> None:
    """Raise :class:`NoVerdict` where an arm is hardly better than guessing: it says nothing."""
    if not np.isfinite(list(accuracies.values())).all():
        raise NoVerdict(f"reports lack a number that {' or '.join(accuracies)} is read from")
    bar = chance + LEARNED * (1 - chance)
    poor = {name: value for name, value in accuracies.items() if value < bar}
    if poor:
        told = ", ".join(f"{name} {100 * value:.1f} %" for name, value in poor.items())
        raise NoVerdict(
            f"a model must have learned something to be compared, {100 * bar:.1f} % here; "
            f"got {told}. Longer training, more images or another learning rate would tell"
        )
