"""Who takes part in a run: a screen's finalists on the screen's images, a pool's candidates."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import group
from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import command
from orchestrator.compare.runs import load
from orchestrator.compare.table import table_text
from orchestrator.launch.options import RunOptions, asked, spec_of
from orchestrator.ledger import session
from orchestrator.ledger.events import Ledger
from orchestrator.ledger.session import begin
from orchestrator.spec.run import RunSpec
from orchestrator.spec.screening import ScreenSpec
from tests.unit.screen.screens import screened, write
from trainables.config import BackboneSpec, DataSpec
from trainables.errors import UserError

CANDIDATES = {
    "mine": BackboneSpec(
        family="timm", model="resnet18", weights="/w/a.safetensors", image_size=96
    ),
    "resnet26": BackboneSpec(family="timm", model="resnet26", weights="none", image_size=64),
    "convnext": BackboneSpec(family="convnext", scale="small", weights="hub", image_size=224),
    "resnet34": BackboneSpec(family="timm", model="resnet34", weights="none", image_size=64),
}
DATA = DataSpec(source="/data/photos", short_side=256, split_seed=3, train_limit=900)
FOUND = {
    "mine": screened("mine", 380),
    "resnet26": screened("resnet26", 370),
    "convnext": screened("convnext", 300),
    "resnet34": screened("resnet34", 200),
}


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """With a screen that has ended: two are chosen, one is drawn for the audit."""
    write(tmp_path / "s", screen_of(tmp_path), *FOUND.values(), closed=True)
    return str(tmp_path)


def screen_of(storage: Path, **changed: Any) -> ScreenSpec:
    asked = ScreenSpec(name="s", candidates=CANDIDATES, data=DATA, storage=str(storage))
    return replace(asked, **{"top": 2, "audit": 0.5, **changed})


def tournament(storage: str, *targets: str, **options: Any) -> RunSpec:
    return asked("tournament", targets, storage=storage, from_screen="s", **options)[0]


def backbones(spec: RunSpec) -> Mapping[str, BackboneSpec]:
    return {sweep.candidate: sweep.backbone for sweep in spec.sweeps}


def test_the_finalists_are_as_they_were_screened(storage: str) -> None:
    spec = tournament(storage)
    chosen = backbones(spec)
    audited = chosen.keys() - {"mine", "resnet26"}
    assert len(audited) == 1
    assert audited < CANDIDATES.keys()
    assert all(CANDIDATES[label] == backbone for label, backbone in chosen.items())
    assert {sweep.data for sweep in spec.sweeps} == {DATA}
    assert (spec.from_screen, spec.name) == ("s", "tournament-s")
    assert (spec.searches, spec.final_seeds) == (4, 1)
    assert spec.mistakes() == []


def test_a_latency_brings_the_front(tmp_path: Path) -> None:
    found = {**FOUND, "convnext": screened("convnext", 300, latency_ms=2.0)}
    asked_for = screen_of(tmp_path, max_latency_ms=99.0, audit=0.0, top=1)
    write(tmp_path / "s", asked_for, *found.values(), closed=True)
    assert set(backbones(tournament(str(tmp_path)))) == {"mine", "convnext"}


def test_more_candidates_see_the_same_images(storage: str) -> None:
    spec = tournament(storage, "vit", "other=timm:resnet18=/w/b.safetensors")
    assert list(backbones(spec))[-2:] == ["vit", "other"]
    assert {sweep.data for sweep in spec.sweeps} == {DATA}
    assert spec.sweeps[-2].backbone.image_size == 64  # from scratch, not all that is stored
    assert spec.name == "tournament-s-vit-other"
    pretrained = tournament(storage, "vit", scale="small")
    assert backbones(pretrained)["vit"].image_size == 224
    twice = tournament(storage, "timm:resnet26")
    assert any("resnet26 twice" in line for line in twice.mistakes())


def test_what_is_set_for_all_leaves_a_finalists_weights_and_scale(storage: str) -> None:
    texts = ("mine.recipe.mixup=0.1", "recipe.optimizer=sgd")
    spec = tournament(storage, "vit", weights="none", scale="base", set=texts)
    assert backbones(spec)["mine"] == CANDIDATES["mine"]
    assert backbones(spec)["vit"].scale == "base"
    assert {sweep.recipe.optimizer for sweep in spec.sweeps} == {"sgd"}
    assert spec.sweeps[0].recipe.mixup == 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": "digits"}, "data.source: has /data/photos, asked digits"),
        ({"set": ("data.split_seed=4",)}, "data.split_seed: has 3, asked 4"),
        ({"set": ("mine.data.short_side=64",)}, "data.short_side: has 256, asked 64"),
        ({"set": ("data.val_fraction=0.2",)}, "data.val_fraction"),
    ],
)
def test_other_images_are_refused(storage: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        tournament(storage, **options)
    (line,) = refused.value.mistakes
    assert said in line
    assert "Fix: leave --dataset and --set data.* out" in line


def test_the_same_images_and_fewer_to_train_on_are_not(storage: str) -> None:
    spec = tournament(storage, dataset="/data/photos", set=("data.train_limit=100",))
    assert {sweep.data for sweep in spec.sweeps} == {replace(DATA, train_limit=100)}


def test_a_screen_without_a_shortlist_is_refused_in_a_line(tmp_path: Path) -> None:
    def refused(name: str = "s") -> str:
        with pytest.raises(UserError) as error:
            asked("tournament", (), storage=str(tmp_path), from_screen=name)
        (line,) = error.value.mistakes
        return line

    assert "--storage FOLDER" in refused()  # no such screen here
    write(tmp_path / "s", screen_of(tmp_path), FOUND["mine"])
    assert "'s' has not (1 of 4 candidates). Fix: the screen's own command" in refused()
    write(tmp_path / "none", screen_of(tmp_path, max_params_m=1.0), *FOUND.values(), closed=True)
    assert "'none' has none. Fix: orchestrator compare none" in refused("none")
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    ledger.append("created", detail={"run": "run", "spec": {"name": "run"}})
    ledger.close()
    assert "'run' is a run of trials" in refused("run")


def test_a_run_keeps_the_candidates_that_it_began_with(
    storage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = tournament(storage, "vit")
    begin(first, first.folder, "session", datasets={}, geometry={}, forecast=None)
    assert session.state_of(first.folder).spec.from_screen == "s"
    assert "from_screen" not in first.identity()

    ledger = Ledger(Path(storage) / "s" / "ledger.jsonl")  # now with another shortlist
    header = session.state_of(Path(storage) / "s").header
    changed = screen_of(Path(storage), top=1, audit=0.0)
    ledger.append("extended", detail=replace(header, screen=changed).as_dict())
    ledger.append("closed")
    ledger.close()
    caplog.set_level("INFO", "orchestrator")
    again = tournament(storage, "vit")
    assert again.hash() == first.hash()
    assert "keeps those that it began with" in caplog.text
    assert session.name_mistakes(again) == []
    assert set(backbones(tournament(storage, name="new"))) == {"mine"}
    comparison = compare([load(first.folder)])
    words = shlex.split(command(comparison.runs[0], comparison.screens))
    assert words[:3] == ["orchestrator", "tournament", "vit=none"]
    assert words[words.index("--from-screen") + 1] == "s"
    assert "Screen s" in table_text(comparison)
    assert "1. mine (chosen): linear probe 95.0 %" in table_text(comparison)

    (Path(storage) / "s" / "ledger.jsonl").unlink()
    assert tournament(storage, "vit").hash() == first.hash()


def test_a_spec_of_before_and_one_without_a_screen_read_and_hash_as_before() -> None:
    spec = spec_of(["vit"], RunOptions())
    assert "from_screen" not in spec.as_dict()
    assert RunSpec.from_dict(spec.as_dict()) == spec
    assert replace(spec, from_screen="s").hash() == spec.hash()


def test_the_candidates_of_a_pool_take_part(tmp_path: Path) -> None:
    pool = tmp_path / "mine.txt"
    pool.write_text("resnet # at scale small\nb=timm:resnet26=none\n")
    spec, _ = asked("tournament", ("timm:resnet18=none",), pool=(str(pool),))
    assert [sweep.candidate for sweep in spec.sweeps] == ["resnet", "b", "resnet18"]
    first, second, third = (sweep.backbone for sweep in spec.sweeps)
    assert (first.scale, first.weights, first.image_size) == ("small", "hub", 320)
    assert second == replace(third, model="resnet26")
    assert spec.name == "mine-timm-resnet18-digits"
    assert spec.from_screen is None


def test_the_plan_is_of_the_finalists_too(storage: str) -> None:
    words = ["plan", "--from-screen", "nothing", "--storage", storage]
    planned = CliRunner().invoke(group, words)
    assert isinstance(planned.exception, UserError)
    assert "Fix: did you mean s" in str(planned.exception)
    nobody = CliRunner().invoke(group, ["tournament"])
    assert isinstance(nobody.exception, UserError)
    assert "needs at least one candidate; got none. Fix: name some" in str(nobody.exception)
