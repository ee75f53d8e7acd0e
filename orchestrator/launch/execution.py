"""How a candidate's training steps are carried out: precision, memory layout, compilation, and why.

The defaults follow the devices (``spec/defaults.py``). Whether a model is compiled on a GPU is
decided by a measured step, once, as the run begins; the spec in its ledger holds the decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.launch.forecast import Costs
from orchestrator.ledger import session
from orchestrator.ledger.header import CandidateForecast
from orchestrator.spec.defaults import default_axes
from orchestrator.spec.run import RunSpec, SweepSpec
from orchestrator.wording import duration
from trainables.spec import Spec

ASKED = "asked for"
PRECISIONS = {
    "fp32": "fp32",
    "bf16": "bf16 autocast, TF32 for what stays in fp32 (fp32 throughout on a GPU without bf16)",
}


@dataclass(frozen=True, kw_only=True)
class Execution(Spec):
    """What was chosen; ``why`` by the names of the others, ``text`` in one line."""

    precision: str
    channels_last: bool
    compile: bool
    why: Mapping[str, str]
    text: str


def execution_of(sweep: SweepSpec, cost: CandidateForecast | None) -> Execution:
    """How a sweep's steps are carried out; ``cost`` is what its forecast rests on, if known."""
    recipe, gpus = sweep.recipe, sweep.resources.gpus_per_worker
    usual = default_axes(sweep.family, sweep.backbone.scale, sweep.data.source, gpus)
    compiled = recipe.compile if recipe.compile is not None else bool(sweep.compile_pays)
    device = "a GPU's default" if gpus else "a CPU's default"
    reasons = {
        "precision": device,
        "channels_last": device if recipe.channels_last or not gpus else "few convolutions",
        "compile": _why_compiled(sweep, cost) if gpus else device,
    }
    why = {
        name: reason if getattr(recipe, name) == usual[f"recipe.{name}"] else ASKED
        for name, reason in reasons.items()
    }
    words = {
        "precision": PRECISIONS[recipe.precision],
        "channels_last": "channels last" if recipe.channels_last else "channels first",
        "compile": "compiled" if compiled else "not compiled",
    }
    if len(set(why.values())) == 1:
        text = f"{', '.join(words.values())}: {why['compile']}"
    else:
        text = "; ".join(f"{words[name]}: {why[name]}" for name in words)
    return Execution(
        precision=recipe.precision,
        channels_last=recipe.channels_last,
        compile=compiled,
        why=why,
        text=text,
    )


def _why_compiled(sweep: SweepSpec, cost: CandidateForecast | None) -> str:
    if cost is not None and cost.compile_seconds is not None and cost.compile_saves_seconds:
        takes, saves = duration(cost.compile_seconds), cost.compile_saves_seconds
        less = f"{duration(saves)} less" if saves > 0 else f"{duration(-saves)} more"
        return f"it takes {takes}, and a full trial's steps take {less} then (measured here)"
    if sweep.compile_pays is not None:
        return "decided by a measured step as the run began"
    return "no step was measured that says it pays within a trial"


def decided(spec: RunSpec, costs: Costs) -> RunSpec:
    """``spec`` with the decision, for each sweep that leaves it open, whether models are compiled:
    that of its run where it has begun, else by the measured ``costs``."""
    began = {sweep.candidate: sweep for sweep in session.state_of(spec.folder).spec.sweeps}
    sweeps = []
    for sweep in spec.sweeps:
        if sweep.recipe.compile is None:
            cost, before = costs.get(sweep.candidate), began.get(sweep.candidate)
            pays = cost.compile_pays if cost else None
            sweep = replace(sweep, compile_pays=before.compile_pays if before else pays)
        sweeps.append(sweep)
    return replace(spec, sweeps=tuple(sweeps))
