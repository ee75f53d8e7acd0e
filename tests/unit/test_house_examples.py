"""The examples do what their first line says."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

from orchestrator.spec import named_sweeps
from trainables.backbones.families import check_backbone
from trainables.config import DataSpec
from trainables.data.build import prepare

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_starts_with_a_command_that_names_it(path: Path) -> None:
    command = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
    assert command.startswith("python ")
    assert f"examples/{path.name}" in command


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_sweep_of_an_example_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = re.findall(rf"sweep (examples/{path.name}:\w+)", path.read_text())
    assert bool(targets) == (path.name not in ("own_dataset.py", "own_world.py"))
    monkeypatch.chdir(ROOT)
    for target in targets:
        sweep = named_sweeps.resolve(target)
        assert sweep.mistakes() == []
        assert check_backbone(sweep.backbone) == []
        assert set(sweep.axes(0)) == set(sweep.space)


def test_the_dataset_example_makes_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(ROOT / "examples" / "own_dataset.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path / "stripes")])
    runpy.run_path(script, run_name="__main__")
    assert f"--dataset {tmp_path / 'stripes'}" in capsys.readouterr().out

    spec = DataSpec(source=str(tmp_path / "stripes"), folder=str(tmp_path / "stores"))
    info = prepare(spec).info
    assert info.class_names == ("left", "right")
    assert sum(info.counts.values()) == 400

    with pytest.raises(SystemExit, match="usage"):  # never writes over what is there
        runpy.run_path(script, run_name="__main__")


def test_the_world_example_answers_ten_tournaments(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "own_world.py"), run_name="__main__")
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 10
    assert all("vit" in answer and "resnet" in answer for answer in answers)
