"""From options to a run's spec, and from a validated spec to a run with its images."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.launch import prepare as preparing
from orchestrator.launch.options import RunOptions, default_name, spec_of
from orchestrator.launch.prepare import PreparedRun, prepare
from orchestrator.launch.validation import validate
from orchestrator.spec import spaces
from orchestrator.spec.named_sweeps import family_sweep
from trainables.errors import UserError


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunOptions:
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return RunOptions(storage=str(tmp_path / "runs"), trials=2)


def test_options_are_short_for_set_and_set_wins() -> None:
    given = RunOptions(
        dataset="cifar10", max_epochs=3, workers="2", set=("scheduler.max_epochs=5",)
    )
    (sweep,) = spec_of(["vit"], given).sweeps
    assert (sweep.data.source, sweep.scheduler.max_epochs) == ("cifar10", 5)
    assert (sweep.resources.min_workers, sweep.resources.num_workers) == (None, 2)
    assert sweep.recipe.flip is True


def test_a_range_of_workers_is_the_least_and_the_most() -> None:
    made = spec_of(["vit"], RunOptions(workers="2..4"))
    (sweep,) = made.sweeps
    assert (sweep.resources.min_workers, sweep.resources.num_workers) == (2, 4)
    assert made.mistakes() == []
    # how a run is carried out: a resumed one may have fewer at least
    assert made.hash() == spec_of(["vit"], RunOptions(workers="4")).hash()
    assert made.hash() != spec_of(["vit"], RunOptions(workers="2..5")).hash()
    (line,) = spec_of(["vit"], RunOptions(workers="4..2")).mistakes()
    assert "--workers 2..4" in line
    with pytest.raises(UserError, match="whole number"):
        spec_of(["vit"], RunOptions(workers="2.."))


def test_the_default_name_is_target_and_dataset() -> None:
    vit = family_sweep("vit")
    assert default_name(["vit"], [vit]) == "vit-digits"
    assert default_name(["timm:resnet18"], [vit]) == "timm-resnet18-digits"
    assert default_name(["a/b.py:mine"], [vit]) == "mine-digits"
    photos = family_sweep("vit", dataset="my photos/train.parquet")
    assert default_name(["resnet", "vit"], [photos]) == "resnet-vit-train"


def test_the_environment_names_the_tracking_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://one")
    assert spec_of(["vit"], RunOptions()).tracking_uri == "http://one"
    assert spec_of(["vit"], RunOptions(tracking_uri="http://two")).tracking_uri == "http://two"


def test_families_that_differ_beyond_their_recipes_are_no_tournament() -> None:
    (line,) = spec_of(["vit", "resnet"], RunOptions(set=("vit.data.fraction=0.5",))).mistakes()
    assert "equal data.fraction; got vit 0.5, resnet 1.0" in line
    spec = spec_of(["vit", "resnet"], RunOptions(set=("vit.backbone.patch=8",)))
    assert spec.mistakes() == []
    assert [sweep.backbone.patch for sweep in spec.sweeps] == [8, None]


def test_the_images_of_a_prepared_run_are_there_with_geometry_and_costs_by_family(
    options: RunOptions, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(["vit", "resnet"], options)
    with caplog.at_level(logging.INFO, "orchestrator"):
        images = prepare(spec, validate(spec), options).prepare_images().result(60)
    assert images.datasets["vit"] == images.datasets["resnet"]
    assert sum(images.datasets["vit"].counts.values()) == 1797
    assert (images.geometry["vit"].tokens, images.geometry["resnet"].tokens) == (64, None)
    assert all(cost is not None for cost in images.costs.values())
    assert any(line.startswith("vit: ") and "64 tokens" in line for line in caplog.messages)


def test_a_mistake_in_the_images_shows_within_the_head_start_and_later_ones_as_a_result(
    options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def fails(spec: object) -> None:
        go_on.wait(60)
        raise UserError("no images")

    monkeypatch.setattr(preparing, "read_datasets", fails)
    run = PreparedRun(spec=spec_of(["vit"], options))
    later = run.prepare_images(head_start_s=0.01)
    assert not later.done()
    go_on.set()
    with pytest.raises(UserError, match="no images"):
        later.result(60)
    with pytest.raises(UserError, match="no images"):
        run.prepare_images(head_start_s=60)


@pytest.mark.parametrize(("sampler", "draws"), [("random", 1), ("sobol", 1), ("tpe", 0)])
def test_a_recipe_is_drawn_once_when_its_trial_is_submitted_or_when_it_starts(
    options: RunOptions, monkeypatch: pytest.MonkeyPatch, sampler: str, draws: int
) -> None:
    (sweep,) = spec_of(["vit"], replace(options, set=(f"scheduler.sampler={sampler}",))).sweeps
    counted: list[int] = []
    suggest = spaces.suggest

    def counting(*arguments: object, **named: object) -> object:
        counted.append(1)
        return suggest(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(spaces, "suggest", counting)
    record = sweep.submission(1)  # the first has the published recipe, known at once
    assert len(counted) == draws
    assert ("axes" in record) == (draws == 1)
