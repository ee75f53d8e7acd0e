"""How steps are carried out: defaults by device, compilation by a measured step, and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.launch import forecast
from orchestrator.launch.execution import decided, execution_of
from orchestrator.launch.forecast import images_per_epoch, measure_steps, measured
from orchestrator.launch.options import asked
from orchestrator.ledger.header import CandidateForecast
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import WORLDS, tournament
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.overrides import apply_set
from orchestrator.spec.run import RunSpec, SweepSpec
from trainables.config import DatasetFacts
from trainables.train.requests import CompiledCosts, Measurement, MeasurementRequest, StepCosts

CPU = {"precision": "fp32", "channels_last": False, "compile": False}
CONVOLUTIONS = {"precision": "bf16", "channels_last": True, "compile": None}
ATTENTION = {**CONVOLUTIONS, "channels_last": False}
COUNTS = {"train": 1000, "val": 100}
STEP = StepCosts(
    train_seconds_per_image=0.1,
    eval_seconds_per_image=0.0,
    n=3,
    first_setup_seconds=1.0,
    setup_seconds=1.0,
    checkpoint_seconds=0.0,
    checkpoint_bytes=8,
    params_m=1.0,
    gflops_per_image=1.0,
    memory={"parameters": 8},
)


def gpu(family: str = "resnet", *texts: str) -> SweepSpec:
    return apply_set(family_sweep(family), ("resources.gpus_per_worker=1", *texts))


def ways(sweep: SweepSpec) -> dict[str, Any]:
    return {name: getattr(sweep.recipe, name) for name in CPU}


@pytest.mark.parametrize(
    ("family", "on_gpu"),
    [
        ("resnet", CONVOLUTIONS),
        ("convnext", CONVOLUTIONS),
        ("vit", ATTENTION),
        ("hybrid", ATTENTION),
    ],
)
def test_defaults_follow_the_device(family: str, on_gpu: dict[str, Any]) -> None:
    assert ways(family_sweep(family)) == CPU
    assert ways(gpu(family)) == on_gpu
    assert ways(apply_set(gpu(family), ["resources.gpus_per_worker=0"])) == CPU
    assert gpu(family).mistakes() == []


def test_what_is_asked_for_stays() -> None:
    fixed = gpu("resnet", "recipe.precision=fp32", "recipe.compile=true")
    assert ways(fixed) == {"precision": "fp32", "channels_last": True, "compile": True}
    chosen = execution_of(fixed, None)
    assert chosen.compile
    assert chosen.why["precision"] == chosen.why["compile"] == "asked for"
    assert chosen.why["channels_last"] != "asked for"
    assert "TF32" not in chosen.text


def test_a_trial_is_told_whether_to_compile() -> None:
    for pays, expected in ((None, False), (False, False), (True, True)):
        sweep = replace(gpu(), compile_pays=pays)
        assert sweep.assignment(0).recipe.compile is expected
        assert SweepSpec.from_dict(json.loads(json.dumps(sweep.as_dict()))) == sweep
    assert gpu("resnet", "recipe.compile=true").assignment(0).recipe.compile is True


def test_the_decision_is_no_part_of_what_a_run_is() -> None:
    specs = [RunSpec(name="r", sweeps=(replace(gpu(), compile_pays=p),)) for p in (None, True)]
    assert specs[0].hash() == specs[1].hash()


@pytest.mark.parametrize(
    ("compiled", "seconds", "pays"),
    [(0.05, 30.0, True), (0.099, 30.0, False), (0.2, 0.0, False)],
)
def test_compiling_pays_by_a_full_trials_steps(compiled: float, seconds: float, pays: bool) -> None:
    """Nine epochs of about 1,000 images, 0.1 s each: about 900 s of steps without."""
    sweep = gpu()
    images = sweep.scheduler.max_epochs * images_per_epoch(sweep, COUNTS)[0]
    row = Measurement(label="resnet-0", costs=STEP)
    plain = measured(sweep, COUNTS, [row])
    steps = CompiledCosts(compile_seconds=seconds, train_seconds_per_image=compiled)
    cost = measured(sweep, COUNTS, [replace(row, compiled=steps)])
    assert cost is not None
    assert plain is not None
    assert cost.compile_saves_seconds == pytest.approx(images * (0.1 - compiled))
    assert cost.compile_pays is pays
    assert plain.compile_pays is None
    expected = plain.epoch_seconds * compiled / 0.1 if pays else plain.epoch_seconds
    assert cost.epoch_seconds == pytest.approx(expected)
    assert cost.setup_seconds == pytest.approx(1 + (seconds if pays else 0))
    spec = decided(RunSpec(name="r", sweeps=(sweep,), storage="none"), {"resnet": cost})
    assert spec.sweeps[0].compile_pays is pays
    chosen = execution_of(spec.sweeps[0], cost)
    assert chosen.compile is pays
    assert "measured here" in chosen.why["compile"]
    assert ("more then" in chosen.text) == (compiled > 0.1)


def test_without_a_measured_step_nothing_is_compiled_and_the_plan_says_so() -> None:
    spec = decided(RunSpec(name="r", sweeps=(gpu("vit"),), storage="none"), {})
    chosen = execution_of(spec.sweeps[0], None)
    assert not chosen.compile
    assert "no step was measured" in chosen.text
    assert "bf16 autocast, TF32" in chosen.text
    assert "CPU" in execution_of(family_sweep("vit"), None).text


def test_a_run_that_began_keeps_its_decision(tmp_path: Path) -> None:
    usual = {"searches": 1, "trials": 2, "final_seeds": 0}
    full = SchedulerSpec(kind="none", max_epochs=2)
    plain = tournament(**usual, scheduler=full)  # type: ignore[arg-type]
    sweeps = tuple(
        replace(sweep, recipe=replace(sweep.recipe, compile=None)) for sweep in plain.sweeps
    )
    spec = replace(plain, name="r", storage=str(tmp_path), sweeps=sweeps)
    begun = replace(spec, sweeps=tuple(replace(sweep, compile_pays=True) for sweep in sweeps))
    simulate(begun, WORLDS["null"], begun.folder, slots=2)
    slow = CandidateForecast(
        basis="", epoch_seconds=1.0, checkpoint_bytes=8, params_m=1.0, gflops_per_image=1.0,
        compile_seconds=9.0, compile_saves_seconds=1.0,
    )  # fmt: skip
    again = decided(spec, dict.fromkeys((sweep.family for sweep in sweeps), slow))
    assert all(sweep.compile_pays for sweep in again.sweeps)


def test_a_second_line_tells_of_the_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[MeasurementRequest, float]] = []

    def run(request: MeasurementRequest, timeout_s: float) -> list[Measurement]:
        requests.append((request, timeout_s))
        compiled = CompiledCosts(compile_seconds=20.0, train_seconds_per_image=0.05)
        row = Measurement(label="resnet-0", costs=STEP)
        return [row, replace(row, compiled=compiled)]

    monkeypatch.setattr(forecast, "_run", run)
    facts = DatasetFacts(height=32, width=32, class_names=("a", "b"), counts=COUNTS)
    sweep = gpu()
    rows = measure_steps(RunSpec(name="r", sweeps=(sweep,)), {"resnet": facts})["resnet"]
    assert len(rows) == sweep.trials
    assert rows[0].compiled is not None
    assert rows[0].compiled.compile_seconds == 20.0
    assert rows[0].costs == STEP
    (request, timeout_s), backbone = requests[0], requests[0][0].backbones["resnet-0"]
    assert request.device == "cuda"
    assert timeout_s > forecast.MEASURE_TIMEOUT_S
    assert backbone.assignment.recipe.compile is None
    images = sweep.scheduler.max_epochs * images_per_epoch(sweep, COUNTS)[0]
    assert backbone.trial_images == images


def test_the_commands_option_reaches_the_recipe(tmp_path: Path) -> None:
    spec, _ = asked("sweep", "resnet", storage=str(tmp_path), gpus_per_worker=1.0)
    assert ways(spec.sweeps[0]) == CONVOLUTIONS
