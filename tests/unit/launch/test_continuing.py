"""A run that earlier defaults began goes on with them; what the command sets still counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.launch.options import asked
from orchestrator.ledger import session
from orchestrator.ledger.session import state_of
from orchestrator.spec.run import DEFAULTS_VERSION, RunSpec, diff
from trainables.spec import Spec, ruled

RUN = Path(__file__).parents[3] / "examples" / "cifar10-tournament"
FAMILIES = ("resnet", "vit", "hybrid")
# Its README's, with the data where they were.
COMMAND: dict[str, Any] = {
    "name": RUN.name,
    "dataset": "/srv/data/cifar10-train.parquet",
    "trials": 6,
    "max_epochs": 6,
    "final_seeds": 3,
    "audit": 0.25,
    "seed": 1,
    "set": ("data.train_limit=4000", "data.val_fraction=0.04"),
}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Holds a run of before there was a version of the defaults."""
    (tmp_path / RUN.name).mkdir()
    shutil.copy(RUN / "ledger.jsonl", tmp_path / RUN.name)
    return tmp_path


def asked_again(storage: Path, families: Sequence[str] = FAMILIES, **options: Any) -> RunSpec:
    spec, _ = asked("tournament", families, storage=str(storage), **{**COMMAND, **options})
    return spec


def test_the_same_command_goes_on_as_the_run_began(storage: Path) -> None:
    state = state_of(storage / RUN.name)
    spec = asked_again(storage)
    assert diff(state.spec, spec) == []
    assert spec.hash() == state.header.spec_hash
    assert spec.defaults == 1
    assert spec.name == RUN.name


def test_what_the_command_sets_counts(storage: Path) -> None:
    began = state_of(storage / RUN.name).spec
    spec = asked_again(storage, set=(*COMMAND["set"], "vit.recipe.momentum=0.8"), trials=9)
    assert diff(began, spec) == ["vit.recipe.momentum: was 0.9, asked 0.8"]
    assert {sweep.trials for sweep in spec.sweeps} == {9}


def test_other_families_or_another_name_have_todays_defaults(storage: Path) -> None:
    assert asked_again(storage, ("resnet", "vit")).defaults == DEFAULTS_VERSION
    assert asked_again(storage, name="other").defaults == DEFAULTS_VERSION


@pytest.mark.parametrize("defaults", [1, DEFAULTS_VERSION])
def test_a_timm_model_keeps_the_label_that_runs_of_before_gave_it(
    tmp_path: Path, defaults: int
) -> None:
    """It was labelled timm, whatever the model: then a run had one at most."""
    command: dict[str, Any] = {"storage": str(tmp_path), "set": ("resnet18.recipe.mixup=0.3",)}
    typed, _ = asked("tournament", ("vit", "timm:resnet18"), **command)
    vit, resnet = typed.sweeps
    assert resnet.candidate == "resnet18"
    began = replace(typed, sweeps=(vit, replace(resnet, label=None)), defaults=defaults)
    typed.folder.mkdir()
    session.begin(began, typed.folder, "s", datasets={}, geometry={}, forecast=None)
    again, _ = asked("tournament", ("vit", "timm:resnet18"), **command)
    assert diff(began, again) == []
    assert again.sweeps[1].trial_name(0) == "timm-0000"
    assert state_of(typed.folder).trials.keys() == again.trial_names()
    other, _ = asked("tournament", ("vit", "timm:resnet26"), name=typed.name, **{
        **command, "set": ()
    })  # fmt: skip
    assert other.sweeps[1].candidate == "resnet26"


@dataclass(frozen=True, kw_only=True)
class Later(Spec):
    """A spec to which ``added`` came later: what was trained before it had "old" in it."""

    first: int = 1
    added: str = ruled("new", choices=("old", "new"), before="old")


def test_a_field_that_came_later_has_what_specs_had_before_it() -> None:
    before = Later.from_dict({"first": 2})
    assert before == Later(first=2, added="old")
    assert before.as_dict() == {"first": 2}
    for spec in (before, Later()):
        assert Later.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


def test_a_run_from_before_sides_followed_weights_keeps_its_side_and_its_store(
    tmp_path: Path,
) -> None:
    options = {"scale": "small", "dataset": "path/to/photos", "storage": str(tmp_path)}
    today, _ = asked("sweep", "vit", **options)
    assert today.sweeps[0].backbone.image_size == 224
    assert today.sweeps[0].data.short_side == 256
    plain = today.as_dict()
    (sweep,) = plain["sweeps"]
    sweep["backbone"]["image_size"] = sweep["data"]["short_side"] = None
    plain.pop("defaults", None)
    before = RunSpec.from_dict(json.loads(json.dumps(plain)))
    session.begin(before, before.folder, "s", datasets={}, geometry={}, forecast=None)
    again, _ = asked("sweep", "vit", **options)
    assert diff(before, again) == []
    assert again.hash() == before.hash() != today.hash()
