"""A claim's verdict, from a run's ledger and from nothing else, as JSON and in words."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.claims.claim import Claim
from orchestrator.claims.effects import Json, Measured, NoVerdict, judge
from orchestrator.claims.experiments import CLAIMS
from orchestrator.claims.results import TrialResult, complete, require_ended, results_of
from orchestrator.ledger import session
from orchestrator.ledger.cost import device_seconds
from orchestrator.ledger.events import FILE_NAME, Ledger
from orchestrator.ledger.state import State, TrialStatus
from orchestrator.wording import signed, span
from trainables.config import DatasetFacts
from trainables.errors import UserError

NO_VERDICT = "no verdict"


def effect_text(value: float, unit: str) -> str:
    """``+3.1 points``, ``×4.2`` or ``0.8 decades``."""
    if unit == "ratio":
        return f"×{10**value:.3g}"
    if unit == "decades":
        return f"{value:.2f} decades"
    return f"{'+' if value >= 0 else ''}{signed(value)} points"


def interval_text(effect: Json) -> str:
    """``+3.1 points (90 % interval +1.2 to +5.0, n = 5)``."""
    mean = effect_text(effect["mean"], effect["unit"])
    bound = "" if effect["bound"] == "exact" else f", {effect['bound']} these values"
    if effect["low"] is None:
        return f"{mean} (n = {effect['n']}, no interval{bound})"
    low, high = (effect_text(effect[end], effect["unit"]) for end in ("low", "high"))
    level = f"{100 * effect['level']:.0f} %"
    low = low.removesuffix(" points").removesuffix(" decades")
    return f"{mean} ({level} interval {low} to {high}, n = {effect['n']}{bound})"


def sentence(verdict: Json) -> str:
    """The verdict with its scope and its numbers, in a sentence or two."""
    outcome = verdict["verdict"] or NO_VERDICT
    head = f"{outcome[0].upper()}{outcome[1:]} for {verdict['scope']}"
    if verdict["verdict"] is None:
        return f"{head}: {verdict['reason'].removesuffix('.')}."
    effects = (f"{effect['name']}: {interval_text(effect)}" for effect in verdict["effects"])
    return f"{head}: {'; '.join(effects)}."


def verdict_lines(verdict: Json) -> list[str]:
    """The verdict for a terminal."""
    lines = [
        f"claim      {verdict['claim']}: {verdict['statement']}",
        f"verdict    {verdict['verdict'] or NO_VERDICT}",
        f"why        {verdict['reason']}",
        f"scope      {verdict['scope']}",
        f"rule       effect against {verdict['smallest_effect']['text']}, wrong with probability "
        f"{verdict['alpha']:g} at most, hash {verdict['hash']}",
    ]
    for effect in verdict["effects"]:
        lines.append(f"effect     {effect['name']}: {interval_text(effect)}")
        lines.append(f"           {effect['verdict']}, p = {effect['p_value_holm']:.3g} (Holm)")
    lines += [f"besides    {other['name']}: {interval_text(other)}" for other in verdict["others"]]
    lines += [f"note       {note}" for note in verdict["notes"]]
    lines += [f"departs    {departure}" for departure in verdict["departures"]]
    hardware = verdict["hardware"]
    lines.append(
        f"on         {hardware['processor']}, {hardware['cpus']} CPUs, "
        f"{verdict['device_seconds'] / 60:.1f} device minutes, "
        f"{verdict['trials']['finished']} of {verdict['trials']['asked']} trials finished"
    )
    recorded = verdict.get("recorded")
    if recorded and not recorded["agrees"]:
        was = recorded["verdict"] or NO_VERDICT
        lines.append(f"RECORDED   {was}, and not in all the same as what is recomputed here")
    lines += [f"CHANGED    {change}" for change in verdict["rule_changes"]]
    return lines


SCHEMA = 1


def state_of(run_folder: Path) -> State:
    """The ledger of a claim's run. Raises ``UserError`` where there is none."""
    state = session.state_of(run_folder)
    if not declared(state):
        raise UserError(
            f"a verdict is on the run of a claim; {run_folder} is none. "
            "Fix: orchestrator claims run CLAIM"
        )
    return state


def declared(state: State) -> Json:
    """What was declared before the run began; empty for a run that tests no claim."""
    return dict(state.spec.claim or {})


def verdict_of(state: State, *, pictures: bool = True) -> Json:
    """The verdict as JSON, by the thresholds that the ledger holds and the claim's rule as it is.

    ``verdict`` is ``supported``, ``refuted``, ``undetermined``, or ``None`` where the experiment
    cannot speak, with ``reason``. ``rule_changes`` lists what the claim says otherwise now than
    in the ledger; where it is not empty, this is not the declared claim's verdict.
    """
    words, results, environment = declared(state), results_of(state), state.header.environment
    dataset = next(iter(state.header.datasets.values()))  # all families of a claim see the same
    statuses = [result.trial.status for result in results]
    devices = (result.trial.detail.get("device") for result in results)
    hardware = ("processor", "cpus", "memory_gb", "platform")
    verdict: Json = {
        "schema": SCHEMA,
        "claim": words["name"],
        "statement": words["statement"],
        "run": state.header.run,
        "hash": words["hash"],
        "rule_changes": rule_changes(state),
        "preset": words.get("preset"),
        "departures": list(words.get("departures", ())),
        "alpha": words["alpha"],
        "level": 1 - 2 * words["alpha"],
        "smallest_effect": {"value": words["smallest_effect"], "unit": words["unit"],
                            "text": effect_text(words["smallest_effect"], words["unit"])},
        "scope": scope(dataset, results),
        "trials": {"asked": len(results)}
        | {one: statuses.count(one) for one in (TrialStatus.FINISHED, TrialStatus.FAILED)},
        "device_seconds": round(device_seconds(state), 1),
        "dataset": dataset.name,
        "scale": state.spec.sweeps[0].backbone.scale,
        "hardware": {key: getattr(environment, key) for key in hardware}
        | {"device": next(filter(None, devices), None)},
        "versions": {"python": environment.python, **environment.versions},
        "code_version": state.header.code_version,
        "verdict": None, "reason": None, "seeds": None, "effects": [], "others": [], "notes": [],
        "pictures": [],
    }  # fmt: skip
    try:
        measured = _measured(state, results)
    except NoVerdict as why:
        verdict["reason"] = str(why)
    else:
        alpha, smallest = words["alpha"], words["smallest_effect"]
        outcome, effects = judge(measured.effects, smallest=smallest, alpha=alpha)
        verdict |= {
            "verdict": outcome,
            "reason": words[outcome],
            "seeds": effects[0]["n"],
            "effects": effects,
            "others": [other.summary(alpha) for other in measured.others if other.is_finite],
            "notes": list(measured.notes),
            "pictures": list(measured.pictures()) if pictures else [],
        }
    return {**verdict, "sentence": sentence(verdict)}


def _measured(state: State, results: Sequence[TrialResult]) -> Measured:
    """By the claim's rule, of the seeds that count. Raises :class:`NoVerdict` where it cannot be,
    or where a number is missing in a report: that must not become a verdict."""
    claim = _claim(state)
    require_ended(results)
    counted, notes = complete(results, failed_count=claim.failed_count)
    measured = claim.measure(counted)
    for effect in measured.effects:
        if not effect.is_finite:
            raise NoVerdict(f"{effect.name} is not known in every seed: reports lack a number")
    return replace(measured, notes=[*notes, *measured.notes])


def _claim(state: State) -> Claim:
    name = str(declared(state)["name"])
    if name not in CLAIMS:
        raise UserError(
            f"the run {state.header.run} tests the claim {name!r}, which this version does "
            f"not have; valid: {', '.join(CLAIMS)}. Fix: use the version that ran it"
        )
    return CLAIMS[name]


def rule_changes(state: State) -> list[str]:
    """What the claim says now otherwise than in the ledger: a changed rule is a new claim."""
    then, now = declared(state), _claim(state).declaration()
    if then["hash"] == now["hash"]:
        return []
    changed = [
        f"{key}: the ledger says {then.get(key)!r}, the file {value!r}"
        for key, value in now.items()
        if key != "hash" and then.get(key) != value
    ]
    return changed or ["its rule gives other verdicts: it has another version now"]


def scope(dataset: DatasetFacts, results: Sequence[TrialResult]) -> str:
    """What a verdict is about and no more: ``tiny models (test_vit), from scratch, 2,000 images
    of cifar10 at 32 px, 9 epochs, 1,000 validation images a seed, 5 seeds``."""
    details = [result.trial.detail for result in results if result.trial.detail.get("model")]
    backbones = [result.trial.assignment.backbone for result in results]
    models = ", ".join(sorted({str(detail["model"]) for detail in details}))
    starts = {"from scratch" if b.weights == "none" else "fine-tuned" for b in backbones}
    images = {int(detail["train_images"]) for detail in details}
    seeds = {result.seed for result in results}
    shared = len({detail.get("dataset_hash") for detail in details}) == 1 < len(seeds)
    return ", ".join(
        [
            f"{backbones[0].scale} models" + (f" ({models})" if models else ""),
            " and ".join(sorted(starts, reverse=True)),
            f"{_range(images)} images of {dataset.name} at {dataset.height} px",
            f"{_range({result.trial.assignment.epochs for result in results})} epochs",
            f"{dataset.counts.get('val'):,} validation images"
            + (" (the same for all seeds)" if shared else " a seed"),
            f"{len(seeds)} seeds",
        ]
    )


def _range(numbers: Collection[int]) -> str:
    """``2,000`` or ``400 to 4,000``."""
    if not numbers:
        return "an unknown number of"
    return span(f"{min(numbers):,}", f"{max(numbers):,}")


def shown(state: State) -> Json:
    """The verdict recomputed, beside the one on record: ``recorded`` has its ``verdict``, when it
    was reached (``at``, unix seconds) and whether the two agree; ``None`` where there is none."""
    verdict, before = verdict_of(state), state.verdict
    if not before:
        return {**verdict, "recorded": None}
    agrees = _same(verdict, before["detail"])
    recorded = {"verdict": before["detail"]["verdict"], "at": before["time"], "agrees": agrees}
    return {**verdict, "recorded": recorded}


def _same(verdict: Json, recorded: Json) -> bool:
    """But for the cost: earlier versions charged training and evaluation alone."""
    plain = json.loads(json.dumps(verdict))
    return bool({**plain, "device_seconds": recorded.get("device_seconds")} == recorded)


def conclude(run_folder: Path) -> str | None:
    """Write the verdict of a claim's run into its ledger, unless the last one there is the same;
    the verdict for a terminal, ``None`` for a run that tests no claim.

    Only for the process that holds the run, after its dispatcher has gone.
    """
    state = session.state_of(run_folder)
    if not declared(state):
        return None
    verdict = verdict_of(state)
    if not _same(verdict, state.verdict.get("detail", {})):
        ledger = Ledger(run_folder / FILE_NAME)
        ledger.append("verdict", detail=verdict, reason=verdict["sentence"])
        ledger.close()
    return "\n".join(verdict_lines(verdict)) + "\n"
