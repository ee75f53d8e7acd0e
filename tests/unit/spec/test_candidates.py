"""Candidates as they are typed, and the labels that a run may have beside each other."""

from __future__ import annotations

import re

import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.launch.options import RunOptions, default_name, spec_of
from orchestrator.spec.candidates import (
    LONGEST_LABEL,
    Candidate,
    alias_of,
    default_label,
    label_mistakes,
)
from orchestrator.spec.named_sweeps import family_sweep, resolve
from orchestrator.spec.run import RunSpec, SweepSpec, with_axes
from trainables.backbones.families import FAMILIES
from trainables.config import BackboneSpec
from trainables.errors import UserError

KNOWN = [family for family in FAMILIES if family != "timm"]
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,20}(\.[a-z0-9_]{1,10})?", fullmatch=True)
LABELS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(
    lambda label: label not in FAMILIES and ".py" not in label
)
FILES = st.from_regex(r"(\./)?[a-z]{1,8}/[a-z]{1,8}\.py:[a-z]{1,8}", fullmatch=True)
# A path may have anything in it, '=' too, but what begins a target.
WEIGHTS = st.one_of(
    st.sampled_from(["hub", "in1k", "none"]),
    st.from_regex(r"(/[a-z =:.0-9]{1,12}){1,3}\.safetensors", fullmatch=True),
)
CANDIDATES = st.one_of(
    st.builds(
        Candidate,
        target=st.one_of(NAMES.map("timm:{}".format), st.sampled_from(KNOWN)),
        weights=st.none() | WEIGHTS,
        label=st.none() | LABELS,
    ),
    st.builds(Candidate, target=FILES, label=st.none() | LABELS),
)


@given(CANDIDATES)
def test_what_is_typed_is_what_it_says(candidate: Candidate) -> None:
    assert Candidate.parse(str(candidate)) == candidate


@given(st.text(max_size=40) | st.text("timv:=.py/-_", max_size=20))
def test_any_text_is_read_or_refused_and_stays_what_it_is(text: str) -> None:
    try:
        candidate = Candidate.parse(text)
    except UserError as error:
        (line,) = error.mistakes
        assert "Fix:" in line
        return
    assert str(candidate) == text


@pytest.mark.parametrize(
    ("text", "target", "weights", "label"),
    [
        ("vit", "vit", None, None),
        ("vit=in21k", "vit", "in21k", None),
        ("wide=vit", "vit", None, "wide"),
        ("wide=vit=none", "vit", "none", "wide"),
        ("vit=timm:resnet18", "timm:resnet18", None, "vit"),  # refused for its label
        ("timm:resnet18=a/b=1.safetensors", "timm:resnet18", "a/b=1.safetensors", None),
        ("small=timm:resnet18.a1_in1k=hub", "timm:resnet18.a1_in1k", "hub", "small"),
        ("runs/lr=1/my.py:sweep", "runs/lr=1/my.py:sweep", None, None),
        ("mine=my.py:sweep", "my.py:sweep", None, "mine"),
        ("my net=timm:resnet18", "timm:resnet18", None, "my net"),  # refused for its label
    ],
)
def test_the_parts_of_a_candidate(
    text: str, target: str, weights: str | None, label: str | None
) -> None:
    assert Candidate.parse(text) == Candidate(target=target, weights=weights, label=label)


def test_every_name_of_timm_is_a_label_of_its_own() -> None:
    names = {*timm.list_models(), *timm.list_pretrained()}
    specs = [BackboneSpec(family="timm", model=name) for name in sorted(names)]
    assert len(specs) > 1000
    labelled = [(default_label(str(spec.model)), spec) for spec in specs]
    assert [label for label, _ in labelled] == sorted(names)
    assert label_mistakes(labelled) == []


def test_a_plain_family_has_no_label_and_the_spec_that_it_had() -> None:
    plain = resolve("vit")
    assert (plain.label, plain.candidate, plain.trial_name(3)) == (None, "vit", "vit-0003")
    assert "label" not in plain.as_dict()
    assert resolve("vit=vit") == plain
    assert SweepSpec.from_dict(plain.as_dict()) == plain


def test_a_label_names_trials_and_draws_recipes_of_its_own() -> None:
    first, second = resolve("timm:resnet18"), resolve("other=timm:resnet18")
    assert [first.trial_name(0), second.trial_name(1, 2)] == ["resnet18-0000", "other-s2-0001"]
    assert (first.family, first.backbone, first.space) == (
        second.family,
        second.backbone,
        second.space,
    )
    assert first.axes(0) != second.axes(0)
    assert SweepSpec.from_dict(second.as_dict()) == second


def names_of(*candidates: str, **options: object) -> RunSpec:
    return spec_of(candidates, RunOptions(**options))  # type: ignore[arg-type]


def mistakes_of(*candidates: str, **options: object) -> list[str]:
    try:
        return names_of(*candidates, **options).mistakes()
    except UserError as error:
        return list(error.mistakes)


def test_weights_of_their_own_hold_over_those_for_all() -> None:
    run = names_of(
        "timm:resnet18", "timm:resnet26=hub", "named=timm:resnet26=in.safetensors", weights="none",
        set=("backbone.weights=none", "seed=4"),
    )  # fmt: skip
    assert [sweep.candidate for sweep in run.sweeps] == ["resnet18", "resnet26", "named"]
    assert [s.backbone.weights for s in run.sweeps] == ["none", "hub", "in.safetensors"]
    assert run.mistakes() == []
    assert len({name.lower() for name in run.trial_names()}) == 3 * run.sweeps[0].trials


def test_one_family_twice_under_labels_at_two_scales() -> None:
    run = names_of("vit", "larger=vit", weights="none", set=("larger.backbone.scale=base",))
    assert [s.backbone.scale for s in run.sweeps] == ["tiny", "base"]
    assert run.mistakes() == []


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        (("vit", "vit"), "got vit twice.*Fix: .*LABEL=vit"),
        (("timm:resnet18", "timm:resnet18=none"), "LABEL=timm:resnet18=PATH"),
        (("a=vit", "a=resnet", "A=hybrid"), "3 times"),
        (("b.c=vit", "b-c=resnet"), "where case, '.', '_' and '-' are as one"),
        (("vit=timm:resnet18",), "labels its own members alone; got 'vit'"),
        (("recipe=vit",), "must not begin as a path of --set"),
        (("Data.x=vit",), "must not begin as a path of --set"),
        (("latest=vit",), "registry"),
        (("v1=vit",), "registry"),
        (("a-s2=vit",), "as trials' names go on"),
        (("a-final=vit",), "as trials' names go on"),
        (("my net=timm:resnet18",), "Fix: my-net=timm:resnet18"),
        (("-a=vit",), "letters, digits"),
        ((f"{'a' * (LONGEST_LABEL + 1)}=vit",), f"1 to {LONGEST_LABEL} letters"),
        (("timm:resnet18=",), "something on each side of '='"),
        (("=vit",), "something on each side of '='"),
    ],
)
def test_what_is_wrong_with_candidates_is_a_line_with_its_fix(
    candidates: tuple[str, ...], said: str
) -> None:
    (line,) = mistakes_of(*candidates)
    assert re.search(said, line)
    assert "Fix:" in line
    assert "\n" not in line


def test_all_mistakes_are_told_at_once() -> None:
    assert len(mistakes_of("vit", "vti", "=", set=("nobody.recipe.mixup=1", "seed=x"))) == 4
    assert len(mistakes_of("vit", "vit", "recipe=resnet", "v1=vit", set=("trials=0",))) == 4


@given(LABELS)
def test_an_alias_has_the_characters_that_mlflow_allows(label: str) -> None:
    assert re.fullmatch(r"[\w-]+", alias_of(label))


def test_the_default_name_of_a_run_has_the_labels_that_were_given() -> None:
    typed = ["timm:resnet18=/data/a.safetensors", "small=timm:resnet26=/data/b.safetensors"]
    assert default_name(typed, [family_sweep("vit")]) == "timm-resnet18-small-digits"


def test_what_is_not_typed_is_checked_as_well() -> None:
    sweep = with_axes(resolve("vit"), {"trials": 2})
    bad = RunSpec(name="r", sweeps=(sweep, sweep))
    assert any("vit twice" in line for line in bad.mistakes())


@pytest.mark.parametrize(
    "text",
    [
        "timm/resnet50.a1_in1k",
        "timm:timm/resnet50.a1_in1k",
        "hf-hub:timm/resnet50.a1_in1k",
        "hf_hub:timm/resnet50.a1_in1k",
        "timm:hf-hub:timm/resnet50.a1_in1k",
        "https://huggingface.co/timm/resnet50.a1_in1k",
        "https://huggingface.co/timm/resnet50.a1_in1k/",
        "https://huggingface.co/timm/resnet50.a1_in1k/tree/main",
        "huggingface.co/timm/resnet50.a1_in1k",
    ],
)
def test_models_are_named_as_the_hub_shows_them(text: str) -> None:
    assert Candidate.parse(text) == Candidate.parse("timm:resnet50.a1_in1k")
    assert Candidate.parse(f"own={text}=none") == Candidate.parse("own=timm:resnet50.a1_in1k=none")


@pytest.mark.parametrize(
    "text", ["timm/sweep.py:mine", "path/to/sweep.py:mine", "vit=timm/weights", "vit=a/b"]
)
def test_paths_are_no_names_of_the_hub(text: str) -> None:
    assert str(Candidate.parse(text)) == text


@pytest.mark.parametrize("text", ["hf-hub:google/vit", "timm:google/vit", "https://hf.co/a/b"])
def test_repositories_of_others_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"timm's own repositories.*Fix: download"):
        Candidate.parse(text)
