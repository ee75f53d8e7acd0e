"""Why a candidate is behind: an opinion with its experiment, told after a verdict and only then."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.claims.experiments import CLAIMS
from orchestrator.cli.main import group
from orchestrator.compare.comparison import Comparison, compare
from orchestrator.compare.opinions import BELIEFS
from orchestrator.compare.report.page import report_html
from orchestrator.compare.runs import load
from orchestrator.compare.table import table_text
from tests.unit.compare.compare_runs import RunFolder


def two_finals(folder: Path, accuracies: dict[str, float]) -> Comparison:
    run, draw = RunFolder(folder, tuple(accuracies)), np.random.default_rng(0)
    for family, accuracy in accuracies.items():
        run.trial(family, [0.5, accuracy], detail={"train_images": 1000})
        for seed in range(3):
            run.final(family, draw.random(500) < accuracy, seed=seed)
    loaded = load(run.close())
    spec = loaded.header.spec
    scratch = tuple(
        replace(sweep, backbone=replace(sweep.backbone, weights="none")) for sweep in spec.sweeps
    )
    header = replace(loaded.header, spec=replace(spec, sweeps=scratch))
    return compare([replace(loaded, state=replace(loaded.state, header=header))])


def test_a_vit_behind_a_resnet_is_told_with_the_claim_that_tests_it(tmp_path: Path) -> None:
    made = two_finals(tmp_path / "run", {"resnet": 0.9, "vit": 0.6})
    (opinion,) = made.opinions
    assert (opinion.behind, opinion.ahead) == ("vit", "resnet")
    assert "after 9 epochs of 1,000 images from scratch" in opinion.text
    assert "this run does not say" in opinion.text
    assert "--weights in1k" in opinion.text
    _, *arguments = shlex.split(opinion.command)
    inside = group.commands[arguments[0]]
    context = inside.commands[arguments[1]].make_context(arguments[1], arguments[2:])  # type: ignore[attr-defined]
    assert context.params["claim"] == (opinion.claim,)
    assert opinion.text in report_html(made).replace("\u00a0", " ")
    assert "Why, as people believe; this run has not tested it" in table_text(made)
    assert made.as_dict()["opinions"][0]["command"] == opinion.command


@pytest.mark.parametrize(
    "accuracies",
    [{"resnet": 0.6, "vit": 0.9}, {"resnet": 0.7, "vit": 0.7}, {"resnet": 0.9, "hybrid": 0.6}],
    ids=["ahead", "not told apart", "no belief"],
)
def test_without_such_a_verdict_nothing_is_said(
    tmp_path: Path, accuracies: dict[str, float]
) -> None:
    made = two_finals(tmp_path / "run", accuracies)
    assert made.opinions == ()
    assert "people believe" not in report_html(made) + table_text(made)


def test_beliefs_are_the_claims_in_their_own_words() -> None:
    for belief in BELIEFS:
        claim = CLAIMS[belief.claim]
        assert belief.statement == claim.statement
        assert claim.source.startswith(belief.source)
