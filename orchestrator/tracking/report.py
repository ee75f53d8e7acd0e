"""The finished comparison for MLflow: its figures as files, its families as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLE = "summary.json"
PLOTS = "plots"
# The UI shows artifacts that this tag names as tables, and compares them between runs.
TABLE_TAG = {"mlflow.loggedArtifacts": f'[{{"path": "{TABLE}", "type": "table"}}]'}
NOTE_TAG = "mlflow.note.content"  # the description on a run's page, Markdown
SIGNATURE = f"All numbers: {TABLE}, comparison.json and report.html among the artifacts."


def figures(run_folder: Path) -> dict[str, str]:
    """The figures that the run's report left beside it: file name -> SVG text."""
    files = sorted((run_folder / PLOTS).glob("*.svg"))
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def summary(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison's families as ``log_table`` writes a table: best first, missing is null."""
    rows = [_row(entry) for entry in comparison["families"]]
    rows.sort(key=lambda row: -(row["test_top1"] or row["best_val_top1"] or -1.0))
    columns = list(rows[0]) if rows else []
    return {"columns": columns, "data": [[row[name] for name in columns] for row in rows]}


def tags(comparison: Mapping[str, Any], present: Mapping[str, str]) -> dict[str, str]:
    """Tags of the run that was compared: its table, and a description unless a user wrote one."""
    written = present.get(NOTE_TAG, SIGNATURE)
    return TABLE_TAG | ({NOTE_TAG: _note(comparison)} if written.endswith(SIGNATURE) else {})


def _note(comparison: Mapping[str, Any]) -> str:
    from orchestrator.wording import NONE, interval, percent, seconds

    lines = ["family | test accuracy | best validation | trials | device time", "--|--|--|--|--"]
    for entry in comparison["families"]:
        final = entry["final"]
        cells = [
            entry["family"],
            interval(final["test_top1"]) if final else NONE,
            percent(entry["best_val_top1"]),
            str(entry["trials"]),
            seconds(entry["gpu_seconds"]),
        ]
        lines.append(" | ".join(cells))
    table = "\n".join(lines)
    return f"{comparison['answer']}\n\n{table}\n\n{SIGNATURE}"


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    final, speed = entry["final"] or {}, entry["convergence"] or {}
    test = final.get("test_top1") or {}
    numbers = (final.get("probes") or {}).get("numbers", {})
    counts = ("trials", "finished", "pruned", "failed")
    return {
        "family": entry["family"],
        "test_top1": test.get("mean"),
        "test_top1_low": test.get("low"),
        "test_top1_high": test.get("high"),
        "test_seeds": test.get("n"),
        "best_val_top1": entry["best_val_top1"],
        "best_trial": entry["best_trial"],
        "backbone": entry["backbone"],
        **{name: entry[name] for name in counts},
        "epochs_to_90pct_of_best": speed.get("epochs"),
        "convergence_auc": speed.get("auc"),
        "gpu_seconds": entry["gpu_seconds"],
        "flops": entry["flops"],
        "images_seen": entry["images_seen"],
        "latency_ms": numbers.get("speed.batch_1.latency_ms", {}).get("mean"),
    }
