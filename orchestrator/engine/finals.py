"""The finals: each family's winner, frozen, trained again over fresh seeds, then tested once.

Selection sees validation only. The winners and their recipes are on record before the first
final starts; the test split is opened after that, once, and the opening is on record too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.compare.winners import winners
from orchestrator.ledger.state import State, TrialState
from orchestrator.spec.run import RunSpec
from trainables.config import DataSpec, stable_hash
from trainables.errors import UserError


def recipe_hash(trial: TrialState) -> str:
    """Identity of what a winner is: backbone, recipe, data and length; no seed, no place."""
    chosen = trial.assignment
    data = {key: value for key, value in chosen.data.as_dict().items() if key != "folder"}
    return stable_hash([chosen.backbone.as_dict(), chosen.recipe.as_dict(), data, chosen.epochs])


def due(spec: RunSpec, state: State, *, reopen: bool) -> list[dict[str, Any]]:
    """Ledger records that freeze the winners and submit their finals; empty when all are there.

    Raises :class:`UserError` when that would open the test split again without ``reopen``.
    """
    chosen = winners(state)
    frozen = {
        family: {
            "trial": trial.trial,
            "recipe_hash": recipe_hash(trial),
            "val_top1": trial.best()[0],
        }
        for family, trial in chosen.items()
    }
    detail = {"winners": frozen, "final_seeds": spec.final_seeds}
    if not frozen or not spec.final_seeds or _same_winners(detail, state.frozen):
        return []
    if state.test_openings and not reopen:
        raise UserError(reopening_refused(spec.name))
    round_name = "final" if not state.test_openings else f"final{state.test_openings + 1}"
    records: list[dict[str, Any]] = [{"event": "frozen", "detail": detail}]
    for index in range(spec.final_seeds):
        for family, winner in chosen.items():
            name = f"{family}-{round_name}-{index:02d}"
            records.append(
                {
                    "event": "submitted",
                    "trial": name,
                    "family": family,
                    "stage": "final",
                    "detail": {
                        "assignment": _assignment(spec, winner, name, index),
                        "axes": winner.axes,
                        "winner": winner.trial,
                    },
                }
            )
    return records


def _same_winners(detail: Mapping[str, Any], frozen: Mapping[str, Any]) -> bool:
    """By their trials: another version's hash of the same recipe may be another one."""

    def named(part: Mapping[str, Any]) -> dict[str, str]:
        return {family: won["trial"] for family, won in part["winners"].items()}

    return bool(frozen) and (named(detail), detail["final_seeds"]) == (
        named(frozen),
        frozen["final_seeds"],
    )


def data_of(records: list[dict[str, Any]]) -> list[DataSpec]:
    """The images that the submitted ones of ``records`` are trained on."""
    submitted = [record for record in records if record["event"] == "submitted"]
    return [DataSpec.from_dict(record["detail"]["assignment"]["data"]) for record in submitted]


def _assignment(spec: RunSpec, winner: TrialState, name: str, index: int) -> dict[str, Any]:
    """The winner's assignment under a fresh seed: order, augmentation, head, val carve."""
    # The same seed for every family, so that the seeds pair their finals.
    seed = int(stable_hash([spec.sweeps[0].seed, "final", index])[:7], 16)
    final = replace(
        winner.assignment,
        trial_id=name,
        seed=seed,
        data=replace(winner.assignment.data, val_seed=seed),
        checkpoint=None,
        checkpoint_folder=None,
    )
    return final.as_dict()


def reopening_refused(name: str) -> str:
    """Why a run whose test split is open cannot go back to searching."""
    return (
        f"the test split is opened once a run, after which nothing may be chosen; that of "
        f"{name!r} is open. Fix: --name OTHER, or --reopen-test, which marks the report"
    )
