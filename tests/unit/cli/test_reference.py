"""docs/reference.md is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pandas as pd
import pytest

from orchestrator.cli.main import group, main
from orchestrator.cli.reference import ONLY, PANDAS, commands, reference_text, takers
from orchestrator.compare.runs import load
from orchestrator.compare.table_files import write_table
from orchestrator.spec.overrides import leaves
from tests.unit.compare.predicted_runs import predicted_run

FILE = Path(__file__).parents[3] / "docs" / "reference.md"
TEXT = reference_text()
RENEW = "python -m orchestrator.cli.reference > docs/reference.md"


def test_the_committed_file_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == TEXT, f"Fix: {RENEW}"


def test_every_command_option_and_path_is_in_it() -> None:
    names = dict(commands())
    assert len(names) > 15
    assert set(re.findall(r"^### orchestrator (.*)$", TEXT, re.MULTILINE)) == set(names)
    for name, command in names.items():
        section = TEXT.split(f"### orchestrator {name}\n", 1)[1].split("\n### ", 1)[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert f"- `{parameter.opts[0]}" in section, (name, parameter.opts)
    paths = TEXT.split("\n## Paths of --set\n", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^\| `(\S+)` \|", paths, re.MULTILINE) == list(leaves())


def test_help_says_the_same_exit_codes() -> None:
    assert group.help
    codes = re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)
    assert len(codes) == 6
    assert [code for code in codes if not re.search(rf"\b{code}\b", group.help)] == []


@pytest.mark.parametrize("name", ["screen", "data prepare", "data info"])
def test_a_command_that_is_said_to_refuse_a_section_does(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert name not in takers("recipe")
    assert name in takers(ONLY[name])
    target = "timm:resnet18=none" if name == "screen" else "digits"
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), target, "--set", "recipe.mixup=0.1"])
    assert ended.value.code == 2
    assert f"only {ONLY[name]}.*" in capsys.readouterr().err


def test_the_pandas_lines_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [load(FILE.parents[1] / "examples" / "cifar10-tournament")]
    for name in ("trials.parquet", "epochs.csv"):
        write_table(runs, Path(name))
    write_table([load(predicted_run(tmp_path / "made"))], Path("predictions.parquet"))
    missed = eval(PANDAS["predictions"], {"pd": pd})
    assert missed.iloc[0] == 6, "an image that all finals get wrong"
    tested = eval(PANDAS["trials"], {"pd": pd})
    assert tested.round(3).to_dict() == {"hybrid": 0.351, "resnet": 0.517, "vit": 0.325}
    curves = eval(PANDAS["epochs"], {"pd": pd})
    assert len(curves) == 3 * 6
    assert curves.between(0.1, 0.6).all()
