"""Claims: declarations that bind, designs that pair, verdicts from the ledger and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from orchestrator.claims import claim, design, effects
from orchestrator.claims.design import facts_of, price, price_lines, run_spec
from orchestrator.claims.experiments import (
    CLAIMS,
    conv_stem_converges_faster,
    lr_lower_for_vit,
)
from orchestrator.claims.verdict import conclude, shown, state_of, verdict_lines, verdict_of
from orchestrator.cli.main import main
from orchestrator.engine.runner import write_results
from orchestrator.launch.forecast import COLD_START_S
from orchestrator.ledger.events import FILE_NAME, Ledger, read
from orchestrator.ledger.state import replay
from orchestrator.spec import named_sweeps
from orchestrator.spec.run import RunSpec, diff
from orchestrator.tracking import view
from tests.unit.claims.claim_worlds import OPTIONS, World, spec_of
from trainables.config import DatasetFacts, Recipe
from trainables.errors import UserError

NAMES = sorted(CLAIMS)
PRESETS = ("smoke", "standard", "full")
PATCHES = "small-patches-help"


def written(folder: Path, name: str, *, effect: float = 0.05, **options: Any) -> Path:
    """A run folder whose ledger holds a world in which the claim is true."""
    world = World.of(name, **options)
    ledger = Ledger(folder / FILE_NAME)
    for record in world.records(np.random.default_rng(0), effect=effect, noise=0.004):
        ledger.append(**{key: value for key, value in record.items() if key != "time"})
    ledger.close()
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_declaration_is_whole_and_survives_json(name: str) -> None:
    one = CLAIMS[name]
    declared = one.declaration()
    assert json.loads(json.dumps(declared)) == declared
    words = ("statement", "source", "statistic", "supported", "refuted", "undetermined")
    assert all(len(declared[word]) > 30 for word in words)
    assert declared["literature_for"]
    assert declared["literature_against"]
    assert declared["smallest_effect"] > 0
    assert tuple(declared["presets"]) == PRESETS


def test_the_declared_factors_name_the_levels_that_the_rules_lay_out() -> None:
    grid = CLAIMS["lr-lower-for-vit"].factors["learning rate"]
    for rates in lr_lower_for_vit.GRID.values():
        assert ", ".join(f"{rate:g}" for rate in rates) in grid
    factors = CLAIMS["conv-stem-converges-faster"].factors
    times = ", ".join(f"{times:g}" for times in conv_stem_converges_faster.TIMES_RATE)
    assert factors["learning rate"].startswith(f"{times} times the usual one")
    shares = ", ".join(f"{100 * share:.0f} %" for share in conv_stem_converges_faster.SHARES)
    assert factors["accuracy to reach"].startswith(f"{shares} of the way")


def test_one_threshold_or_another_version_of_the_rule_is_another_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = CLAIMS[PATCHES]
    before = one.declaration()["hash"]
    assert replace(one, smallest_effect=0.011).declaration()["hash"] != before
    assert replace(one, rule_version=2).declaration()["hash"] != before
    monkeypatch.setattr(claim, "RULE_VERSION", claim.RULE_VERSION + 1)
    assert one.declaration()["hash"] != before


def without_correction(p_values: Sequence[float]) -> list[float]:
    return list(p_values)


@pytest.mark.parametrize(
    ("room", "name", "value"),
    [
        (effects, "holm", without_correction),
        (effects, "POWER", None),  # of no consequence to a verdict
        (claim, "LEARNED", 0.2),
        (claim, "SEEDED", ("seed",)),
        (claim, "LARGEST_VAL_SHARE", 0.1),
        (lr_lower_for_vit, "GRID", {"adamw": (1e-3, 1e-2), "sgd": (0.1, 1.0)}),
        (named_sweeps, "Recipe", None),
    ],
)
def test_the_hash_covers_tests_design_and_defaults(
    room: ModuleType, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed in the code or in the defaults of the product, the claim's own words untouched."""
    before = CLAIMS["lr-lower-for-vit"].declaration()
    if name == "Recipe":
        plain = named_sweeps.family_sweep
        monkeypatch.setattr(
            named_sweeps,
            "family_sweep",
            lambda *family, **options: replace(
                plain(*family, **options), recipe=Recipe(warmup_epochs=2.0)
            ),
        )
    elif name == "POWER":
        monkeypatch.setattr(effects, "POWER", 0.9)
    else:
        monkeypatch.setattr(room, name, value)
    after = replace(CLAIMS["lr-lower-for-vit"]).declaration()
    assert (after["hash"] == before["hash"]) == (name == "POWER")
    words = [key for key in before if key not in ("hash", "design")]
    assert [after[key] for key in words] == [before[key] for key in words]


@pytest.mark.parametrize("name", NAMES)
def test_the_hash_covers_every_preset_and_the_clipping(name: str) -> None:
    one = CLAIMS[name]
    before = one.declaration()
    for preset in PRESETS:
        for field in ("epochs", "seeds", "batch_size"):
            longer = replace(
                one.presets[preset], **{field: getattr(one.presets[preset], field) + 1}
            )
            changed = replace(one, presets={**one.presets, preset: longer}).declaration()
            assert changed["hash"] != before["hash"]
    assert replace(one, clip_grad_norm=0.5).declaration()["hash"] != before["hash"]
    clipping = one.factors["gradient clipping"]
    norm = one.clip_grad_norm
    assert clipping.startswith("off" if norm is None else f"at norm {norm:g} in all arms")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_a_design_is_valid_paired_and_the_same_again(name: str, preset: str) -> None:
    spec = spec_of(name, preset=preset)
    assert spec.mistakes() == []
    again = RunSpec.from_dict(json.loads(json.dumps(spec.as_dict())))
    assert again.hash() == spec.hash()
    assert diff(again, spec) == []
    seeds = CLAIMS[name].presets[preset].seeds
    treatments: dict[int, list[Any]] = {}
    for sweep in spec.sweeps:
        for index in range(sweep.trials):
            one = sweep.assignment(index)
            assert one.recipe.mistakes() == []
            assert one.data.val_seed == one.data.train_seed == one.seed
            assert one.recipe.clip_grad_norm == CLAIMS[name].clip_grad_norm
            assert one.epochs == sweep.grid[index]["epochs"]
            assert all(sweep.axes(index)[path] == sweep.grid[index][path] for path in sweep.space)
            own = (one.backbone, one.recipe, one.data.fraction, one.epochs, one.shift_offsets_px,
                   one.data.train_limit)  # fmt: skip
            treatments.setdefault(one.seed, []).append(own)
    assert len(treatments) == seeds
    # Every seed sees the same treatments, and each of them once.
    assert all(own == treatments[min(treatments)] for own in treatments.values())
    assert all(own.count(one) == 1 for own in treatments.values() for one in own)


def test_a_changed_rule_under_the_same_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old, declared = spec_of(PATCHES), CLAIMS[PATCHES]
    monkeypatch.setitem(CLAIMS, PATCHES, replace(declared, smallest_effect=0.02))
    lines = diff(old, spec_of(PATCHES))
    assert "claim.smallest_effect: was 0.01, asked 0.02" in lines
    assert any(line.startswith("claim.hash: was ") for line in lines)
    assert diff(old, spec_of("lr-lower-for-vit")) != []
    # How it is carried out may change when it is resumed.
    monkeypatch.setitem(CLAIMS, PATCHES, declared)
    assert diff(old, spec_of(PATCHES, set=("resources.max_slots=1",), cpus_per_worker=0.5)) == []


def test_smaller_patches_train_fewer_epochs_by_their_tokens() -> None:
    (sweep,) = spec_of(PATCHES).sweeps
    rows = sweep.grid[: len(sweep.grid) // 5]
    found = {(r["backbone.patch"], r["backbone.image_size"]): r["epochs"] for r in rows}
    assert found == {(16, None): 78, (8, None): 23, (4, None): 6, (16, 128): 6}
    # With weights the same arms once more, from these.
    (both,) = spec_of(PATCHES, weights="hub").sweeps
    assert {row["backbone.weights"] for row in both.grid} == {"none", "hub"}
    assert both.trials == 2 * sweep.trials
    measured = verdict_of(World.of(PATCHES, weights="hub", max_epochs=2).state(
        np.random.default_rng(0), effect=0.05, noise=0.004), pictures=False)  # fmt: skip
    names = [one["name"] for one in measured["effects"]]
    assert names == [f"patch 8 or 4 over 16, {start}, at equal {budget}"
                     for start in ("from scratch", "fine-tuned")
                     for budget in ("epochs", "FLOPs")]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": 1}, "--seeds must be at least 2"),
        ({"max_epochs": 0}, "--max-epochs must be at least 1"),
        ({"set": ("backbone.patch=8",)}, "lays out backbone.patch itself"),
        ({"set": ("vit.recipe.learning_rate=0.1",)}, "lays out recipe.learning_rate itself"),
        ({"set": ("scheduler.max_epochs=3",)}, "lays out scheduler.max_epochs itself"),
        ({"set": ("data.train_seed=3",)}, "lays out data.train_seed itself"),
        ({"set": ("recipe.weight_decay=[0.1,0.2]",)}, "takes one value"),
        ({"set": ("recipe.wd=1",)}, "recipe.weight_decay"),
        ({"set": ("data.train_limit=90",)}, "10 images of each of 10 classes"),
    ],
)
def test_what_would_spoil_the_design_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        spec_of(PATCHES, **options)
    (line,) = refused.value.mistakes
    assert said in line
    assert "Fix:" in line


def test_too_few_images_for_the_smallest_level_give_no_verdict() -> None:
    counts = {"train": 900, "val": 100, "test": 0}
    facts = DatasetFacts(height=32, width=32, class_names=tuple("0123456789"), counts=counts)
    run_spec(CLAIMS[PATCHES], OPTIONS, facts)  # 90 a class
    with pytest.raises(UserError, match=r"10 % of 900 training images are 90: .* no verdict"):
        run_spec(CLAIMS["vit-needs-more-data"], OPTIONS, facts)


def test_departures_from_the_preset_are_on_record() -> None:
    spec = spec_of(PATCHES, seeds=3, set=("recipe.augment=none", "resources.max_slots=1"))
    assert spec.claim is not None
    assert spec.claim["departures"] == ["seeds 3 instead of 5", "recipe.augment=none"]
    assert spec.claim["options"] == [["--seeds", "3"], ["--set", "recipe.augment=none"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_verdict_names_its_scope_and_draws_its_pictures(name: str) -> None:
    world = World.of(name, max_epochs=3)
    effect = 5 * CLAIMS[name].smallest_effect if name != "lr-lower-for-vit" else 0.8
    state = world.state(np.random.default_rng(0), effect=effect, noise=0.003)
    verdict = verdict_of(state)
    assert verdict["verdict"] == "supported"
    assert "tiny models" in verdict["scope"]
    assert "images of cifar10 at 32 px" in verdict["scope"]
    assert verdict["scope"] in verdict["sentence"]
    assert verdict["pictures"]
    assert verdict["rule_changes"] == []
    assert json.loads(json.dumps(verdict)) == verdict
    for one in verdict["effects"]:
        assert one["n"] == verdict["seeds"] == len(one["values"])
        assert one["low"] < one["mean"] < one["high"]


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_whose_trials_all_fail_says_so(name: str) -> None:
    world = World.of(name, max_epochs=1)
    state = world.state(np.random.default_rng(0), effect=0.1, noise=0.01, fails=lambda _: True)
    verdict = verdict_of(state)
    assert verdict["verdict"] is None
    assert "trials failed" in verdict["reason"]
    assert "diverged: nan" in verdict["reason"]
    assert verdict["sentence"].startswith("No verdict for tiny models")


def test_a_broken_seed_is_left_out_and_one_seed_is_none() -> None:
    world = World.of(PATCHES, max_epochs=2, seeds=3)
    rng = np.random.default_rng(0)
    verdict = verdict_of(world.state(rng, effect=0.05, noise=0.004, fails="vit-0001".__eq__))
    assert verdict["seeds"] == 2
    assert any("Seed 1 is left out, because vit-0001 failed" in note for note in verdict["notes"])
    verdict = verdict_of(world.state(rng, effect=0.05, noise=0.004,
                                     fails={"vit-0001", "vit-0005"}.__contains__))  # fmt: skip
    assert verdict["verdict"] is None
    assert "only 1 complete seed, an interval needs 2" in verdict["reason"]


def test_unfinished_untrained_and_unmeasured_give_no_verdict() -> None:
    world = World.of(PATCHES, max_epochs=2, seeds=2)
    records = list(world.records(np.random.default_rng(0), effect=0.05, noise=0.004))
    unfinished = [r for r in records if r["event"] != "finished" or r["trial"] != "vit-0003"]
    assert "1 of 8 trials have not ended" in verdict_of(replay(unfinished))["reason"]

    untrained = json.loads(json.dumps(records))
    unmeasured = json.loads(json.dumps(records))
    for one, other in zip(untrained, unmeasured, strict=True):
        if one["event"] == "reported":
            one["metrics"]["val_top1"] /= 4
            other["metrics"].pop("flops")
    assert "must have learned something" in verdict_of(replay(untrained))["reason"]
    verdict = verdict_of(replay(unmeasured))
    assert verdict["verdict"] is None
    assert "reports lack a number" in verdict["reason"]


def test_a_diverged_rate_is_at_chance_and_a_run_that_never_arrives_is_censored() -> None:
    rng = np.random.default_rng(0)
    state = World.of("lr-lower-for-vit", max_epochs=1).state(
        rng, effect=0.8, noise=0.01, fails={"vit-0004", "resnet-0004"}.__contains__
    )
    verdict = verdict_of(state)
    assert verdict["verdict"] == "supported"
    assert "2 trials failed and count at chance." in verdict["notes"]
    state = World.of("conv-stem-converges-faster", max_epochs=3).state(
        rng, effect=0.3, noise=0.01, fails="vit-0002".__eq__
    )
    verdict = verdict_of(state)
    assert verdict["verdict"] == "supported"
    assert any("of 12 runs came 20 % of the way" in note for note in verdict["notes"])


class Page(HTMLParser):
    """Tags that do not nest fail; the sections' ids and all text are kept."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str | None] = []
        self.words: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self.sections.append(dict(attrs).get("id"))
        if tag not in {"meta", "link", "br", "hr"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_verdict_is_on_record_once_and_leads_the_report(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", PATCHES, max_epochs=2)
    told = write_results(folder)
    assert "verdict    supported" in told
    records = list(read(folder / FILE_NAME))
    assert records[-1]["event"] == "verdict"
    assert conclude(folder) == told
    assert len(list(read(folder / FILE_NAME))) == len(records)  # the same again is not written

    page = Page((folder / "report.html").read_text())
    assert page.sections[0] == "claim"
    assert "finals" not in page.sections
    text = " ".join(" ".join(page.words).split())
    assert CLAIMS[PATCHES].statement.split(";")[0] in text
    for said in ("Supported: Smaller patches are shown", "Refuted: At one of the two budgets",
                 "patch 8 or 4 over 16, from scratch, at equal FLOPs", "FlexiViT",
                 "orchestrator claims run small-patches-help"):  # fmt: skip
        assert said in text, said

    assert shown(state_of(folder))["recorded"]["agrees"] is True
    state = state_of(folder)
    tags, rows = view.run_tags(state, False), view.claim_metrics(state)
    assert (tags["claim"], tags["verdict"]) == (PATCHES, "supported")
    values = {name: value for name, value, _, _ in rows}
    effect = records[-1]["detail"]["effects"][1]
    key = "effect/patch_8_or_4_over_16_from_scratch_at_equal_flops"
    assert [values[key + end] for end in ("", "_low", "_high")] == [
        effect[end] for end in ("mean", "low", "high")
    ]


def test_claims_show_recomputes_and_tells_of_a_changed_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conclude(written(tmp_path / "p", PATCHES, max_epochs=2))

    def show(*arguments: str) -> tuple[dict[str, Any], str]:
        with pytest.raises(SystemExit) as ended:
            main(["claims", "show", *arguments, "--storage", str(tmp_path), "--json"])
        assert not ended.value.code
        out, err = capsys.readouterr()
        found = json.loads(out)
        assert found["schema"] == 1
        (only,) = found["claims"]
        return only, err

    before, err = show()
    assert before["verdict"] == "supported"
    assert before["recorded"]["agrees"] is True
    assert err == ""
    changed = replace(CLAIMS[PATCHES], smallest_effect=0.3)
    monkeypatch.setitem(CLAIMS, PATCHES, changed)
    after, err = show("p")
    assert after["rule_changes"] == ["smallest_effect: the ledger says 0.01, the file 0.3"]
    assert "a changed rule is a new claim" in err
    # The verdict on record is that of the rule that was declared, and is labelled with it.
    assert after["verdict"] == "supported"
    assert after["hash"] == before["hash"] != changed.declaration()["hash"]
    assert after["recorded"]["agrees"] is None
    lines = verdict_lines(after)
    assert f"EARLIER    on record by the rule of hash {before['hash']}, not recomputed" in lines
    records = list(read(tmp_path / "p" / FILE_NAME))
    conclude(tmp_path / "p")
    assert list(read(tmp_path / "p" / FILE_NAME)) == records  # nothing is written over it


def test_a_run_of_an_earlier_rule_without_a_verdict_gets_none(tmp_path: Path) -> None:
    """The earliest rules' hashes covered no design: what they were is said in words."""
    written(tmp_path / "p", PATCHES, max_epochs=2)
    records = list(read(tmp_path / "p" / FILE_NAME))
    declared = records[0]["detail"]["spec"]["claim"]
    del declared["design"], declared["clip_grad_norm"]
    declared["hash"] = "202e33bc87d5992f"
    verdict = shown(replay(records))
    assert verdict["verdict"] is None
    assert "by the rule of hash 202e33bc87d5992f" in verdict["reason"]
    assert "nearly the same images" in verdict["rule_changes"][0]
    assert "clip_grad_norm: the ledger says nothing, the file 1.0" in verdict["rule_changes"]
    assert not any("design." in change for change in verdict["rule_changes"])


def test_a_plan_prices_each_arm_by_its_own_backbone_and_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, options = spec_of(PATCHES), replace(OPTIONS, measure=False)
    made = price(spec, options, totals={"CPU": 2.0, "GPU": 0.0})
    assert json.loads(json.dumps(made.as_dict())) == made.as_dict()
    assert len(made.arms) == 4
    assert made.trials == 20
    assert made.epochs == 5 * (78 + 23 + 6 + 6)
    assert sum(arm.trials for arm in made.arms) == 20
    seconds = sum(arm.slot_seconds or 0.0 for arm in made.arms)
    assert made.device_hours == pytest.approx(seconds / 3600)
    assert made.wall_hours == pytest.approx((seconds / 2 + COLD_START_S) / 3600)
    assert any("78 epochs" in line for line in price_lines(made))
    assert "data      2,000 of 49,000 training images, drawn for each seed, shared by its arms" in (
        price_lines(made)
    )
    assert "clipping  gradients at norm 1, in all arms alike" in price_lines(made)
    monkeypatch.setattr(design.forecast, "costs_of", lambda *_, **options: {"vit": None})
    unknown = price(spec, options, totals=None)
    assert unknown.device_hours is None
    assert any("unknown" in line for line in price_lines(unknown))


@pytest.mark.parametrize(
    ("name", "preset", "said"),
    [
        ("vit-needs-more-data", "smoke", "400, 1,200, 4,000 of 49,000 training images, drawn"),
        ("vit-needs-more-data", "full", "there is nothing to draw; the 4,500, 13,500 of smaller"),
        (PATCHES, "full", "nothing to draw, so no verdict covers which images were collected"),
        ("lr-lower-for-vit", "smoke", "clipping  gradients off, in all arms alike"),
    ],
)
def test_a_plan_says_what_each_seed_draws(name: str, preset: str, said: str) -> None:
    options = replace(OPTIONS, measure=False, preset=preset)
    plan = price(spec_of(name, preset=preset), options, totals=None)
    assert said in "\n".join(price_lines(plan))


def test_facts_of_cifar_are_those_of_its_store() -> None:
    counts = facts_of(OPTIONS).counts
    assert counts["train"] + counts["val"] == 50_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "small-patch-help"], "did you mean small-patches-help"),
        (["run", PATCHES, "lr-lower-for-vit", "--name", "x"], "--name is for one claim"),
        (["run", PATCHES, "--dataset", "no/such/place"], "no/such/place"),
        (["run", PATCHES, "--preset", "huge"], "smoke"),
        (["show", "nothing"], "there is no run"),
    ],
)
def test_mistakes_are_one_line_and_start_nothing(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["claims", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_the_list_tells_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["claims", "list", "--json"])
    listed = json.loads(capsys.readouterr().out)["claims"]
    assert {one["name"] for one in listed} == set(CLAIMS)
    assert all(one["hash"] for one in listed)
