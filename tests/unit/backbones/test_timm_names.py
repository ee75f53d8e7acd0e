"""timm's classifiers by name: each is built, or refused in words, by what a run itself asks.

By default a sample of the pretrained names is walked; TIMM_NAMES=all walks all of them, as
``benchmarks/timm_architectures.py`` does, whose committed table the rest of this file reads.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm

from benchmarks.timm_architectures import small_of_modules, step, walk
from trainables.backbones import build
from trainables.config import BackboneSpec
from trainables.errors import UserError

TABLE = Path(__file__).parents[3] / "benchmarks" / "results" / "timm-architectures.json"
EVERY = 1 if os.environ.get("TIMM_NAMES") == "all" else 40
WITHOUT_DROP_PATH = ("densenet121", "vgg11", "inception_v3", "ghostnet_100", "hrnet_w18_small")


def test_pretrained_names_are_built_or_refused_in_words() -> None:
    names = timm.list_pretrained()[::EVERY]
    outcomes = list(walk(names))
    assert [row.model for row in outcomes] == names
    assert [row for row in outcomes if row.outcome == "traceback"] == []
    assert sum(row.outcome == "built" for row in outcomes) >= 0.9 * len(names)


@pytest.mark.parametrize("module", ["resnet", "vision_transformer", "levit"])
def test_the_smallest_model_of_a_module_takes_a_step(module: str) -> None:
    assert module in timm.list_modules()
    models = timm.list_models(module=module)
    model = "test_resnet" if module == "resnet" else min(models, key=len)
    model = "test_vit" if module == "vision_transformer" else model
    side = 224 if module == "levit" else 64
    assert step(module, model, side).outcome == "trained"


def test_a_model_whose_modules_share_parameters_takes_its_first_step() -> None:
    assert step("coat", "coat_lite_mini", 64).outcome == "trained"


@pytest.mark.parametrize("model", WITHOUT_DROP_PATH)
def test_models_without_stochastic_depth_are_built_without_it(model: str) -> None:
    import torch

    spec = BackboneSpec(family="timm", model=model)
    with torch.device("meta"):
        build(spec, num_classes=5, height=64, width=64, usual_drop_path=0.1, load=False)
        with pytest.raises(UserError, match=r"no stochastic depth.*recipe\.drop_path=0"):
            build(spec, num_classes=5, height=64, width=64, drop_path=0.1, load=False)


def test_the_committed_table_is_of_all_modules() -> None:
    if not TABLE.exists():
        pytest.skip("benchmarks/timm_architectures.py has not been run")
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert table["tracebacks"] == 0
    if table["timm"] != timm.__version__:
        pytest.skip(f"the table is of timm {table['timm']}")
    last = {row["module"]: row for row in table["steps"]}
    assert set(last) == set(small_of_modules())
    assert all(row["outcome"] == "trained" or row["reason"] for row in table["steps"])
    assert table["modules_trained"] == sum(row["outcome"] == "trained" for row in last.values())
    assert table["modules"] == table["modules_trained"] + table["modules_refused"]
    assert table["names"] == len(timm.list_pretrained())
    assert table["names_built"] == table["names"] - len(table["not_built"])
    page = " ".join((TABLE.parents[1] / "README.md").read_text(encoding="utf-8").split())
    at_64_px, modules = table["modules_trained_at_64_px"], table["modules"]
    for words in (
        f"Of timm {timm.__version__} {table['names_built']:,} of {table['names']:,} pretrained",
        f"{table['names_refused']} are refused",
        f"each of its {modules} modules",
        f"{at_64_px} at 64 px, {modules - at_64_px} at their own side",
        f"in {table['refusals_slowest_s']:.1f} s at most",
    ):
        assert words in page
