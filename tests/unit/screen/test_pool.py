"""Pools: lines become candidates, mistakes come all at once, and the package's keep their word."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from orchestrator.cli.main import group
from orchestrator.screen.pool import (
    FOLDER,
    described,
    parse_line,
    pool_names,
    read_pools,
)
from orchestrator.spec.candidates import default_label, label_mistakes
from orchestrator.spec.named_sweeps import resolve
from trainables.backbones import catalogue
from trainables.backbones.catalogue import facts_of, models_matching
from trainables.backbones.pretraining import Corpus
from trainables.config import BackboneSpec
from trainables.errors import UserError


def test_lines_of_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    pool = tmp_path / "mine.txt"
    pool.write_text(
        "# a comment\n\n"
        "resnet   # 2026-11-01: a family\n"
        "timm:resnet18.a1_in1k\n"
        f"mine=timm:test_vit={file}\n"
        "timm:resnet10t=none # no date\n"
    )
    entries = read_pools([str(pool), "timm:resnet18.a1_in1k"])
    assert [entry.label for entry in entries] == ["resnet", "resnet18.a1_in1k", "mine", "resnet10t"]
    assert entries[0].why == "a family"
    assert str(entries[0].day) == "2026-11-01"
    assert (entries[3].why, entries[3].day) == ("no date", None)
    assert [entry.backbone.weights for entry in entries] == ["hub", "hub", str(file), "none"]
    # resnet18.a1_in1k is tested at 288 px, test_vit is made for 160; from scratch as a sweep's
    assert [entry.backbone.image_size for entry in entries] == [320, 288, 160, 64]


def test_a_candidate_of_a_pool_is_read_as_one_of_a_run() -> None:
    for text in ("timm:resnet18=none", "mine=timm:resnet18=hub", "vit=in21k", "wide=vit"):
        (entry,) = parse_line(text)
        sweep = resolve(text)
        assert entry.label == sweep.candidate
        assert (entry.backbone.family, entry.backbone.model) == (
            sweep.backbone.family,
            sweep.backbone.model,
        )


def test_every_name_of_timm_may_be_a_label() -> None:
    models = [BackboneSpec(family="timm", model=name) for name in timm.list_pretrained()]
    assert label_mistakes([(default_label(str(one.model)), one) for one in models]) == []


def test_a_pattern_is_each_model_that_fits() -> None:
    plain = [entry.backbone.model for entry in parse_line("timm:*efficientnet_lite*")]
    assert "tf_efficientnet_lite0" in plain
    assert "efficientnet_lite0" in plain
    assert "efficientnet_lite1" not in plain  # nobody has published its weights
    scratch = [entry.backbone.model for entry in parse_line("timm:*efficientnet_lite*=none")]
    assert set(plain) < set(scratch) >= {"efficientnet_lite1"}
    tagged = [entry.label for entry in parse_line("timm:vit_*_224.augreg_in21k")]
    assert tagged == timm.list_pretrained("vit_*_224.augreg_in21k")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("timm:resnet81", "near names: resnet"),
        ("timm:resnet18.a1_in2k", "known: "),
        ("timm:*efficentnet*", "near names: "),
        ("resnett", "a pool is one of"),
        ("timm", "unknown target 'timm'"),
        ("timm:", "unknown target 'timm:'"),
        ("two words=timm:resnet18", "letters, digits"),
        ("vit=timm:resnet18", "labels its own members alone"),
        ("best-s2=timm:resnet18", "as trials' names go on"),
        ("mine=", "something on each side of '='"),
        ("mine=smoke", "unknown target 'smoke'"),
        ("mine=timm:vit_*", "share no label"),
        ("timm:vit_*=weights.pt", "share no label"),
    ],
)
def test_a_mistake_names_the_way_out(line: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        read_pools([line])
    assert "Fix: " in raised.value.mistakes[0]


def test_all_mistakes_come_at_once_with_their_lines(tmp_path: Path) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("timm:resnet81\nresnet\nnothing\na=timm:resnet18=none\na=timm:resnet26=none\n")
    with pytest.raises(UserError) as raised:
        read_pools([str(pool)])
    first, second, third = raised.value.mistakes
    assert first.startswith("pool.txt, line 1: timm has no model 'resnet81'; near names: resnet")
    assert second.startswith("pool.txt, line 3: unknown target 'nothing'; valid: resnet, vit")
    assert "got a twice" in third


def test_what_is_named_twice_is_one_candidate_and_what_has_two_labels_is_two() -> None:
    pool = ["timm:test_vit=none", "timm:test_vit=none", "again=timm:test_vit=none"]
    assert [entry.label for entry in read_pools(pool)] == ["test_vit", "again"]


def test_two_hundred_names_are_validated_in_time_and_none_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = timm.list_pretrained()[::6][:200]
    assert len(names) == 200
    pool = tmp_path / "large.txt"
    pool.write_text("\n".join(f"timm:{name}" for name in names))
    monkeypatch.setattr(timm, "create_model", None)
    began = time.process_time()
    assert len(read_pools([str(pool)])) == 200
    assert time.process_time() - began < 15


def test_facts_are_those_of_the_model_with_values() -> None:
    facts = facts_of(BackboneSpec(family="timm", model="resnet18.a1_in1k", weights="hub"))
    plain = timm.create_model("resnet18", num_classes=0)
    assert facts.params_m == sum(p.numel() for p in plain.parameters()) / 1e6
    # He et al. 2016, table 1: 1.8e9 multiply-adds at 224 px; here two each, at the tested side.
    assert facts.gflops_per_image == pytest.approx(2 * 1.81 * (288 / 224) ** 2, rel=0.02)
    assert facts.license == timm.get_pretrained_cfg("resnet18.a1_in1k").license


def test_no_model_is_built_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(
        catalogue,
        "build",
        lambda *a, _build=catalogue.build, **k: built.append(a) or _build(*a, **k),
    )
    entries = read_pools(["timm:test_byobnet=none"])
    assert described(entries) == described(entries)
    assert len(built) == 1


def test_a_model_that_takes_no_such_images_is_described_as_that() -> None:
    (entry,) = parse_line("timm:vgg11=none")
    small = BackboneSpec(family="timm", model="vgg11", image_size=8)
    (row,) = described([type(entry)(label="vgg", backbone=small)])
    assert row.facts is None
    assert "8 px" in str(row.reason)


@pytest.mark.parametrize("name", pool_names())
def test_entries_of_the_package_say_when_and_why(name: str) -> None:
    entries = read_pools([name])
    lines = [line for line in (FOLDER / f"{name}.txt").read_text().splitlines() if line[0] != "#"]
    assert len(entries) == len(lines) >= 4
    assert all(entry.day and entry.why for entry in entries)
    for entry in entries:
        if entry.backbone.model is None:
            continue
        config = timm.get_pretrained_cfg(entry.backbone.model)
        assert config is not None
        assert config.has_weights
        tested = config.test_input_size or config.input_size
        assert entry.backbone.image_size == tested[-1]
        assert facts_license(entry.backbone) == config.license
        assert config.license


def facts_license(backbone: BackboneSpec) -> str | None:
    return catalogue.license_of(backbone)


def test_small_ones_are_small_and_strong_ones_have_seen_much() -> None:
    for entry in read_pools(["small"]):
        with torch.device("meta"):
            module = timm.create_model(str(entry.backbone.model), num_classes=0)
        assert sum(parameter.numel() for parameter in module.parameters()) <= 12e6, entry.label
    self_supervised = ("dino", "mae", "clip", "pe_core")
    for entry in read_pools(["strong"]):
        name = str(entry.backbone.model)
        facts = catalogue.member_of(entry.backbone).pretraining
        corpora = facts.corpora if facts else ()
        more = set(corpora) - {Corpus.IN1K}
        assert more or any(word in name for word in self_supervised), name


def test_pool_show_prints_and_answers_in_json() -> None:
    shown = CliRunner().invoke(group, ["pool", "show", "timm:test_resnet=none", "--json"])
    assert shown.exit_code == 0, shown.output
    (row,) = json.loads(shown.stdout)["candidates"]
    assert (row["label"], row["image_size"], row["pretraining_data"]) == ("test_resnet", 64, "none")
    assert row["license"] is None
    text = CliRunner().invoke(group, ["pool", "show", "timm:test_resnet=none"]).stdout
    assert text.splitlines()[1].split()[:2] == ["test_resnet", "0.4"]
    assert "missing" in text


def test_pool_list_counts() -> None:
    text = CliRunner().invoke(group, ["pool", "list"]).stdout
    assert [line.split()[0] for line in text.splitlines()] == pool_names()


def test_patterns_without_a_dot_are_architectures() -> None:
    assert models_matching("resnet18", pretrained=True) == ["resnet18"]
    assert "resnet18.a1_in1k" in models_matching("resnet18.*", pretrained=True)


def test_an_encoder_of_tokens_has_no_facts_but_a_reason() -> None:
    # (1, tokens, D), as language models read it.
    [row] = described(read_pools(["timm:qwen3_vit_88m_enc=none"]))
    assert row.facts is None
    assert "one row of features an image" in str(row.reason)
    assert str(row.reason).endswith("Fix: a classifier of timm")
