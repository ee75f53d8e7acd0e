"""``import orchestrator``: a run as tables, cheap to import."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator as bt
from orchestrator.cli.main import main
from orchestrator.ledger.events import FILE_NAME
from orchestrator.ledger.replication import Segments
from tests.unit.compare.compare_runs import RunFolder, search_run

ROOT = Path(__file__).parents[3]
TOURNAMENT = ROOT / "examples" / "cifar10-tournament"


def test_importing_loads_nothing_and_reading_a_run_no_torch_or_ray() -> None:
    """Time follows from what is imported; a clock would fail on a busy machine."""
    script = (
        "import sys\n"
        "import orchestrator as bt\n"
        "ours = [n for n in sys.modules if n.partition('.')[0] in ('orchestrator', 'trainables')]\n"
        "assert ours == ['orchestrator'], ours\n"
        "assert 'numpy' not in sys.modules\n"
        f"bt.load({str(TOURNAMENT)!r}).trials\n"
        "heavy = {'torch', 'ray', 'mlflow', 'timm', 'matplotlib', 'sklearn', 'scipy', 'click'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_every_export_is_there_and_nothing_else() -> None:
    for name in bt.__all__:
        assert getattr(bt, name).__doc__
    assert set(bt.__all__) <= set(dir(bt))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bt.nothing  # noqa: B018


def test_a_run_is_its_ledger() -> None:
    run = bt.load(TOURNAMENT)
    assert repr(run) == "<run cifar10-tournament: done, 63 trials>"
    assert run.spec.name == "cifar10-tournament"
    assert (run.trials.num_rows, run.epochs.num_rows) == (63, 274)
    assert run.trials is run.trials


def test_its_comparison_is_what_the_command_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = bt.load(search_run(tmp_path / "run", ("vit", "resnet"), trials=4))
    with pytest.raises(SystemExit):
        main(["compare", "run", "--json", "--storage", str(tmp_path)])
    assert json.loads(capsys.readouterr().out) == run.compare().as_dict()


def test_a_run_is_found_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search_run(tmp_path / "runs" / "a", ("vit",), trials=2)
    monkeypatch.chdir(tmp_path / "runs")
    assert bt.load("a").folder.samefile(tmp_path / "runs" / "a")
    assert bt.load(f"{tmp_path}/runs/a/").name == "a"
    monkeypatch.chdir("a")
    assert bt.load(".").name == "a"
    with pytest.raises(bt.UserError, match="did you mean a"):
        bt.load(tmp_path / "runs" / "b")


def test_a_run_is_found_in_object_storage(tmp_path: Path, place: str, quick_storage: None) -> None:
    folder = search_run(tmp_path / "a", ("vit",), trials=2)
    Segments(folder / FILE_NAME, f"{place}/a").push()
    run = bt.load(f"{place}/a/")
    assert (run.name, run.trials.num_rows) == ("a", 2)
    assert not run.folder.samefile(folder)


def test_runs_compare_together(tmp_path: Path) -> None:
    runs = [bt.load(search_run(tmp_path / name, (name,), trials=4)) for name in ("vit", "resnet")]
    made = runs[0].compare(runs[1])
    assert [candidate.label for candidate in made.candidates] == ["vit", "resnet"]


def test_a_run_is_a_snapshot(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", ("vit",))
    folder.trial("vit", [0.5])
    before = bt.load(tmp_path / "run")
    folder.trial("vit", [0.6])
    folder.close()
    assert before.trials.num_rows == 1
    assert bt.load(tmp_path / "run").trials.num_rows == 2


def test_the_session_in_the_docs_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    (session,) = re.findall(r"```pycon\n(.*?)```", text, re.DOTALL)
    test = doctest.DocTestParser().get_doctest(session, {}, "results.md", "results.md", 0)
    assert len(test.examples) > 4
    lines: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=lines.append)
    assert lines == []
