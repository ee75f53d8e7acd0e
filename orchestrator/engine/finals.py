"""The finals: each search's winner, frozen, trained again over fresh seeds, then tested once.

Selection sees validation only. The winners and their recipes are on record before the first
final starts; the test split is opened after that, once, and the opening is on record too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from orchestrator.compare.winners import winners
from orchestrator.ledger.state import Record, Stage, State, TrialState, names
from orchestrator.spec.run import RunSpec
from orchestrator.spec.spaces import Axes
from trainables.config import Assignment, stable_hash
from trainables.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Final:
    """A trial to submit: the recipe of ``winner``, drawn as ``axes``, under a fresh seed."""

    assignment: Assignment
    axes: Axes | None
    winner: TrialState

    def record(self) -> Record:
        """As the ledger has it."""
        return {
            "event": "submitted",
            "trial": self.assignment.trial_id,
            **names(self.winner.candidate, self.assignment.backbone.family),
            "search": self.winner.search if self.winner.search > 1 else None,
            "stage": Stage.FINAL.value,
            "detail": {
                "assignment": self.assignment.as_dict(),
                "axes": self.axes,
                "winner": self.winner.trial,
            },
        }


@dataclass(frozen=True, kw_only=True)
class FinalsRound:
    """``frozen`` is the ledger's record of the winners and of how many seeds each gets; ``None``
    where it is there already. ``finals`` are those that are not on record yet."""

    frozen: Record | None
    finals: tuple[Final, ...]

    def records(self) -> list[Record]:
        """As the ledger has them: the winners are frozen before the first final is submitted."""
        frozen = [] if self.frozen is None else [{"event": "frozen", "detail": self.frozen}]
        return [*frozen, *(final.record() for final in self.finals)]


def recipe_hash(trial: TrialState) -> str:
    """Identity of what a winner is: backbone, recipe, data and length; no seed, no place."""
    chosen = trial.assignment
    data = {key: value for key, value in chosen.data.as_dict().items() if key != "folder"}
    return stable_hash([chosen.backbone.as_dict(), chosen.recipe.as_dict(), data, chosen.epochs])


def due(spec: RunSpec, state: State, *, reopen: bool) -> FinalsRound | None:
    """The round of finals that is still to be submitted, or what a crash has left out of it;
    ``None`` when there is none.

    Raises :class:`UserError` when that would open the test split again without ``reopen``.
    """
    chosen = winners(state)
    if not chosen or not spec.final_seeds:
        return None
    # By their trials: another version's hash of the same recipe may be another one.
    names, frozen = {search: trial.trial for search, trial in chosen.items()}, state.frozen
    if frozen and (frozen.trials, frozen.final_seeds) == (names, spec.final_seeds):
        number = state.test_openings + (not state.test_opened)
        missing = [
            final
            for final in _finals(spec, chosen, number)
            if final.assignment.trial_id not in state.trials
        ]
        return FinalsRound(frozen=None, finals=tuple(missing)) if missing else None
    if state.test_openings and not reopen:
        raise UserError(reopening_refused(spec.name))
    by_search = {
        search: {
            "trial": trial.trial,
            "recipe_hash": recipe_hash(trial),
            trial.metric.val_key: trial.best()[0],
        }
        for search, trial in chosen.items()
    }
    return FinalsRound(
        frozen={"winners": by_search, "final_seeds": spec.final_seeds},
        finals=tuple(_finals(spec, chosen, state.test_openings + 1)),
    )


def _finals(spec: RunSpec, chosen: Mapping[str, TrialState], number: int) -> Iterator[Final]:
    """All finals of round ``number``, from 1."""
    round_name = "final" if number == 1 else f"final{number}"
    for index in range(spec.final_seeds):
        for search, winner in chosen.items():
            # The same seed for every candidate, so that the seeds pair their finals; it draws the
            # order of images, augmentation, the head, and which images validate.
            search_seed = spec.sweeps[0].search_seed(winner.search)
            seed = int(stable_hash([search_seed, "final", index])[:7], 16)
            assignment = replace(
                winner.assignment,
                trial_id=f"{search}-{round_name}-{index:02d}",
                seed=seed,
                data=replace(winner.assignment.data, val_seed=seed),
                checkpoint=None,
                checkpoint_folder=None,
            )
            yield Final(assignment=assignment, axes=winner.axes, winner=winner)


def reopening_refused(name: str) -> str:
    """Why a run whose test split is open cannot go back to searching."""
    return (
        "a test split is opened once, after which nothing may be chosen for it; that of "
        f"{name!r} is open, for runs of other names too. "
        "Fix: --reopen-test, which marks the report, or fresh test data"
    )
