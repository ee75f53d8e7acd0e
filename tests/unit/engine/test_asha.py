"""ASHA decides as Tune's own does, and says why."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler

from orchestrator.engine.brackets import AshaBracket
from orchestrator.spec.limits import SchedulerSpec


@given(
    values=st.lists(st.lists(st.floats(0, 1), min_size=20, max_size=20), min_size=1, max_size=12),
    max_epochs=st.integers(3, 20),
    eta=st.integers(2, 4),
    grace=st.integers(1, 3),
    seed=st.randoms(use_true_random=False),
)
def test_it_stops_whom_tunes_own_stops(
    values: list[list[float]], max_epochs: int, eta: int, grace: int, seed: object
) -> None:
    spec = SchedulerSpec(max_epochs=max_epochs, grace_epochs=grace, reduction_factor=eta)
    bracket = AshaBracket(spec)
    theirs = AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="val_top1",
        mode="max",
        max_t=max_epochs,
        grace_period=grace,
        reduction_factor=eta,
    )
    trials = {f"t{index}": curve for index, curve in enumerate(values)}
    for name in trials:
        theirs.on_trial_add(None, SimpleNamespace(trial_id=name))
    going = dict.fromkeys(trials, 0)
    while going:
        name = seed.choice(sorted(going))  # type: ignore[attr-defined]
        going[name] += 1
        epoch, value = going[name], trials[name][going[name] - 1]
        if epoch >= max_epochs:  # the scheduler of families asks no bracket of a trial's last epoch
            del going[name]
            continue
        result = {"epoch": epoch, "val_top1": value}
        wanted = theirs.on_trial_result(None, SimpleNamespace(trial_id=name), result)
        goes_on, rung, _ = bracket.observe(name, epoch, value)
        assert goes_on == (wanted != AsyncHyperBandScheduler.STOP)
        assert (rung is not None) == (epoch in spec.rungs())
        if not goes_on:
            del going[name]


def test_a_reason_names_value_cut_off_and_how_many_were_there() -> None:
    bracket = AshaBracket(SchedulerSpec(max_epochs=9, grace_epochs=1, reduction_factor=3))
    assert bracket.observe("a", 1, 0.3) == (True, 1, "val_top1 0.3000, first at this rung")
    goes_on, rung, reason = bracket.observe("b", 1, 0.2)
    assert (goes_on, rung) == (False, 1)
    assert reason == "val_top1 0.2000 below the cut-off 0.3000 of 1 results"
    assert bracket.observe("a", 1, 0.9) == (True, None, "")
