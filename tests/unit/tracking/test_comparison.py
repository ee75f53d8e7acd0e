"""The report's pictures and the comparison's table as MLflow gets them."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import write_report
from orchestrator.compare.runs import load
from orchestrator.tracking import view
from tests.unit.compare.compare_runs import tournament_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """Folder, report written, and comparison of a small tournament."""
    folder = tournament_run(tmp_path_factory.mktemp("runs") / "t", trials=9, seeds=2)
    (folder / "plots").mkdir()
    (folder / "plots" / "figure-of-an-earlier-report.svg").write_text("<svg/>")
    runs = [load(folder)]
    comparison = compare(runs)
    files = write_report(comparison, folder)
    assert all(path.is_file() for path in files)
    assert files[-1] == folder / "report.html"
    return folder, comparison.as_dict()


def test_every_figure_of_the_report_is_a_file_that_stands_alone(
    finished: tuple[Path, dict[str, object]],
) -> None:
    folder, _ = finished
    files = {path.name: path.read_text() for path in (folder / "plots").glob("*.svg")}
    page = (folder / "report.html").read_text()
    assert len(files) == page.count("<svg")
    assert "figure-of-an-earlier-report.svg" not in files
    assert {"curve-vit.svg", "curve-resnet.svg", "cost-flops-flops.svg"} <= set(files)
    for name, text in files.items():
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg", name
        assert "var(--" not in text
        assert "currentColor" not in text


def test_the_table_is_the_comparison_in_numbers(
    finished: tuple[Path, dict[str, object]],
) -> None:
    _, comparison = finished
    table = json.loads(json.dumps(view.summary_table(comparison)))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    entries = {entry["family"]: entry for entry in comparison["families"]}  # type: ignore[attr-defined]
    assert {row["family"] for row in rows} == set(entries)
    assert [row["test_top1"] for row in rows] == sorted(
        (row["test_top1"] for row in rows), reverse=True
    )
    for row in rows:
        entry = entries[row["family"]]
        assert row["best_val_top1"] == entry["best_val_top1"]
        assert row["test_top1"] == entry["final"]["test_top1"]["mean"]
        assert row["test_seeds"] == 2
        assert row["test_top1_low"] < row["test_top1"] < row["test_top1_high"]
        assert row["device_seconds"] == entry["device_seconds"]
        assert row["latency_ms"] > 0


def test_the_description_is_ours_until_a_user_writes_one(
    finished: tuple[Path, dict[str, object]],
) -> None:
    _, comparison = finished
    ours = view.comparison_tags(comparison, {})
    note = ours[view.NOTE_TAG]
    assert note.startswith(str(comparison["answer"]))
    assert note.count("n = 2) |") == 3  # no mean without n and interval
    assert view.comparison_tags({**comparison, "answer": "B"}, ours)[view.NOTE_TAG].startswith("B")
    assert view.comparison_tags(comparison, {view.NOTE_TAG: "written by a user"}) == view.TABLE_TAG


def test_a_run_without_families_is_an_empty_table() -> None:
    assert view.summary_table({"families": []}) == {"columns": [], "data": []}


def test_a_comparison_of_before_is_shown_too(finished: tuple[Path, dict[str, object]]) -> None:
    _, comparison = finished
    before = json.loads(json.dumps(comparison))
    for entry in before["families"]:
        entry["gpu_seconds"] = entry.pop("device_seconds")
    assert view.summary_table(before) == view.summary_table(comparison)
    assert view.comparison_tags(before, {}) == view.comparison_tags(comparison, {})
