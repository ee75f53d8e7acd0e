"""A claim's verdict, from a run's ledger and from nothing else, as JSON and in words."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from orchestrator.claims.claim import Claim
from orchestrator.claims.effects import UNDETERMINED, Json, Measured, NoVerdict, judge
from orchestrator.claims.experiments import CLAIMS
from orchestrator.claims.results import (
    FEWEST_SEEDS,
    TrialResult,
    complete,
    require_ended,
    results_of,
)
from orchestrator.ledger import session
from orchestrator.ledger.cost import device_seconds
from orchestrator.ledger.events import FILE_NAME, Ledger
from orchestrator.ledger.state import State, TrialStatus
from orchestrator.spec.run import leaves
from orchestrator.wording import span
from trainables.config import DatasetFacts
from trainables.errors import UserError

NO_VERDICT = "no verdict"
MOST_DIGITS = 9  # more than are printed otherwise: effects.ROUNDING is seen then
EARLIER_RULE = (
    "its hash covered neither the design nor Holm's correction nor the defaults, all seeds trained "
    "on nearly the same images, and gradients were clipped without a word"
)


def effect_text(value: float, unit: str, digits: int = 0) -> str:
    """``+3.1 points``, ``×4.2`` or ``0.8 decades``; ``digits`` more than these."""
    if unit == "ratio":
        return f"×{10**value:.{3 + digits}g}"
    if unit == "decades":
        return f"{value:.{2 + digits}f} decades"
    return f"{100 * value:+.{1 + digits}f} points".replace("-", "−")


def interval_text(effect: Json) -> str:
    """``+3.1 points (90 % interval +1.2 to +5.0, n = 5)``, to as many digits as tell its ends
    apart."""
    mean = effect_text(effect["mean"], effect["unit"])
    bound = "" if effect["bound"] == "exact" else f", {effect['bound']} these values"
    if effect["low"] is None:
        why = "" if effect["n"] < FEWEST_SEEDS else ": all seeds gave the same"
        return f"{mean} (n = {effect['n']}, no interval{why}{bound})"
    for digits in range(MOST_DIGITS):
        ends = [effect_text(effect[end], effect["unit"], digits) for end in ("low", "high")]
        if ends[0] != ends[1]:
            break
    low, high = ends
    level = f"{100 * effect['level']:.0f} %"
    low = low.removesuffix(" points").removesuffix(" decades")
    return f"{mean} ({level} interval {low} to {high}, n = {effect['n']}{bound})"


def sentence(verdict: Json) -> str:
    """The verdict with its scope and its numbers, in a sentence or two."""
    outcome = verdict["verdict"] or NO_VERDICT
    head = f"{outcome[0].upper()}{outcome[1:]} for {verdict['scope']}"
    if not verdict["effects"]:
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
    if recorded and recorded["agrees"] is None:
        lines.append(f"EARLIER    on record by the rule of hash {verdict['hash']}, not recomputed")
    elif recorded and not recorded["agrees"]:
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
    """The verdict as JSON, by the rule that was declared.

    ``verdict`` is ``supported``, ``refuted``, ``undetermined``, or ``None`` where the experiment
    cannot speak, with ``reason``. ``rule_changes`` lists what the claim says otherwise now than
    in the ledger; where it is not empty, there is no verdict: the rule of that time is gone.
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
        _require_same_rule(verdict)
        require_ended(results)
        claim = _claim(state)
        counted, notes = complete(results, failed_count=claim.failed_count)
        measured = _measured(claim, counted)
    except NoVerdict as why:
        verdict["reason"] = str(why)
    else:
        alpha, smallest = words["alpha"], words["smallest_effect"]
        outcome, effects = UNDETERMINED, list[Json]()
        if measured.undetermined is None:
            outcome, effects = judge(measured.effects, smallest=smallest, alpha=alpha)
        verdict |= {
            "verdict": outcome,
            "reason": measured.undetermined or words[outcome],
            "seeds": len({result.seed for result in counted}),
            "effects": effects,
            "others": [other.summary(alpha) for other in measured.others if other.is_finite],
            "notes": [*notes, *measured.notes],
            "pictures": list(measured.pictures()) if pictures else [],
        }
    return {**verdict, "sentence": sentence(verdict)}


def _require_same_rule(verdict: Json) -> None:
    """Raise :class:`NoVerdict` where the rule that was declared is not today's."""
    if verdict["rule_changes"]:
        raise NoVerdict(
            f"it was declared by the rule of hash {verdict['hash']}, which this version does not "
            f"have: {verdict['claim']} is another claim now, to be run under another name"
        )


def _measured(claim: Claim, counted: Sequence[TrialResult]) -> Measured:
    """By the claim's rule. Raises :class:`NoVerdict` where it cannot be, or where a number is
    missing in a report: that must not become a verdict."""
    measured = claim.measure(counted)
    for effect in measured.effects:
        if not effect.is_finite:
            raise NoVerdict(f"{effect.name} is not known in every seed: reports lack a number")
    return measured


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
    earlier = [] if "design" in then else [f"the rule of that time: {EARLIER_RULE}"]
    before, after = (leaves({**words, "hash": None}) for words in (then, now))
    changed = [
        f"{path}: the ledger says {before.get(path, 'nothing')}, the file {text}"
        for path, text in after.items()
        if before.get(path) != text and not (earlier and path.startswith("design."))
    ]
    return earlier + changed or ["its rule gives other verdicts: it has another version now"]


def scope(dataset: DatasetFacts, results: Sequence[TrialResult]) -> str:
    """What a verdict is about and no more: ``tiny models (test_vit), from scratch, 2,000 images
    of cifar10 at 32 px, 9 epochs, 1,000 validation images a seed, 5 seeds``."""
    details = [result.trial.detail for result in results if result.trial.detail.get("model")]
    backbones = [result.trial.assignment.backbone for result in results]
    models = ", ".join(sorted({str(detail["model"]) for detail in details}))
    starts = {"from scratch" if b.weights == "none" else "fine-tuned" for b in backbones}
    images = {int(detail["train_images"]) for detail in details}
    subsets = len({result.trial.assignment.data.train_seed for result in results})
    seeds = {result.seed for result in results}
    shared = len({detail.get("dataset_hash") for detail in details}) == 1 < len(seeds)
    return ", ".join(
        [
            f"{backbones[0].scale} models" + (f" ({models})" if models else ""),
            " and ".join(sorted(starts, reverse=True)),
            f"{_range(images)} images of {dataset.name} at {dataset.height} px"
            + (_drawn(images, dataset.counts.get("train")) if subsets > 1 else ""),
            f"{_range({result.trial.assignment.epochs for result in results})} epochs",
            f"{dataset.counts.get('val'):,} validation images"
            + (" (the same for all seeds)" if shared else " a seed"),
            f"{len(seeds)} seeds",
        ]
    )


def _drawn(images: Collection[int], available: int | None) -> str:
    """Whether seeds differ in the images that they are trained on."""
    if available not in images:
        return " (others in each seed)"
    everything = "all there are, the same in all seeds"
    return f" ({everything})" if len(images) == 1 else f" (others in each seed, or {everything})"


def _range(numbers: Collection[int]) -> str:
    """``2,000`` or ``400 to 4,000``."""
    if not numbers:
        return "an unknown number of"
    return span(f"{min(numbers):,}", f"{max(numbers):,}")


def shown(state: State) -> Json:
    """The verdict recomputed, beside the one on record: ``recorded`` has its ``verdict``, when it
    was reached (``at``, unix seconds) and whether the two agree; ``None`` where there is none.

    Where the rule has changed since, it is the one on record, by the rule of its time; ``agrees``
    is ``None`` then, and ``rule_changes`` says what has changed.
    """
    changes, before = rule_changes(state), state.verdict
    if not before:
        return {**verdict_of(state), "recorded": None}
    detail = before["detail"]
    verdict = {**detail, "rule_changes": changes} if changes else verdict_of(state)
    agrees = None if changes else _same(verdict, detail)
    recorded = {"verdict": detail["verdict"], "at": before["time"], "agrees": agrees}
    return {**verdict, "recorded": recorded}


def _same(verdict: Json, recorded: Json) -> bool:
    """But for the cost: earlier versions charged training and evaluation alone."""
    plain = json.loads(json.dumps(verdict))
    return bool({**plain, "device_seconds": recorded.get("device_seconds")} == recorded)


def conclude(run_folder: Path) -> str | None:
    """Write the verdict of a claim's run into its ledger, unless the last one there is the same or
    by the rule of its time; the verdict for a terminal, ``None`` for a run that tests no claim.

    Only for the process that holds the run, after its dispatcher has gone.
    """
    state = session.state_of(run_folder)
    if not declared(state):
        return None
    if state.verdict and rule_changes(state):
        return "\n".join(verdict_lines(shown(state))) + "\n"
    verdict = verdict_of(state)
    if not _same(verdict, state.verdict.get("detail", {})):
        ledger = Ledger(run_folder / FILE_NAME)
        ledger.append("verdict", detail=verdict, reason=verdict["sentence"])
        ledger.close()
    return "\n".join(verdict_lines(verdict)) + "\n"
