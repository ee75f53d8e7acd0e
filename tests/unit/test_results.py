"""Committed results: what an example's page and JSON say is what its ledger says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import read_report
from orchestrator.compare.runs import load
from orchestrator.ledger.events import FILE_NAME

ROOT = Path(__file__).parents[2]
RUN = ROOT / "examples" / "cifar10-tournament"


@pytest.fixture
def committed() -> dict[str, Any]:
    """What ``comparison.json`` holds."""
    found: dict[str, Any] = json.loads((RUN / "comparison.json").read_text())
    return found


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """The ledger, read without any of our code."""
    return [json.loads(line) for line in (RUN / FILE_NAME).read_text().splitlines()]


def rounded(value: Any) -> Any:
    """JSON with its numbers to 12 digits: sums of the same numbers may differ in the last ones."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def test_the_comparison_follows_from_the_ledger(committed: dict[str, Any]) -> None:
    again = json.loads(json.dumps(compare([load(RUN)]).as_dict()))
    for comparison in (again, committed):
        # Not in a ledger, or not in one of then: checkpoints in the folder, what nodes did.
        for key in ("checkpoint_bytes", "preemptions", "epochs_by_workers"):
            comparison["runs"][0].pop(key, None)
    assert rounded(again) == rounded(committed)


def test_each_familys_numbers_stand_in_the_ledger(
    committed: dict[str, Any], records: list[dict[str, Any]]
) -> None:
    stage = {r["trial"]: (r["family"], r["stage"]) for r in records if r["event"] == "submitted"}
    ended = {r["trial"]: r for r in records if r["event"] in ("finished", "pruned", "failed")}
    # Audited trials were finished to measure the pruning: the search itself had pruned them.
    audited = {r["trial"] for r in records if r["event"] == "audited"}
    status = {t: "pruned" if t in audited else r["event"] for t, r in ended.items()}
    assert {family["family"] for family in committed["families"]} == {"resnet", "vit", "hybrid"}
    for family in committed["families"]:
        search = [t for t, who in stage.items() if who == (family["family"], "search")]
        finals = [t for t, who in stage.items() if who == (family["family"], "final")]
        assert family["trials"] == len(search)
        for event in ("finished", "pruned", "failed"):
            assert family[event] == sum(status[trial] == event for trial in search)
        best = max(
            r["metrics"]["val_top1"]
            for r in records
            if r["event"] == "reported"
            and r["trial"] in search
            and status[r["trial"]] == "finished"
        )
        assert family["best_val_top1"] == best
        assert len(finals) >= 3
        tested = [ended[trial]["detail"]["test"]["top1"] for trial in finals]
        assert len(set(family["final"]["seeds"])) == len(finals)
        assert family["final"]["test_top1"]["mean"] == pytest.approx(mean(tested), abs=1e-9)
    assert sum(r["event"] == "test_opened" for r in records) == 1


def test_the_page_says_it_too(committed: dict[str, Any]) -> None:
    page = (RUN / "report.html").read_text()
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    for family in committed["families"]:
        assert f"{100 * family['final']['test_top1']['mean']:.1f} %" in words
        assert f"{100 * family['best_val_top1']:.1f} %" in words
    header = json.loads((RUN / FILE_NAME).read_text().splitlines()[0])["detail"]
    assert read_report(RUN / "report.html")["spec_hash"] == header["spec_hash"]


def test_the_readme_names_hardware_versions_and_n(committed: dict[str, Any]) -> None:
    text = (RUN / "README.md").read_text()
    environment = json.loads((RUN / FILE_NAME).read_text().splitlines()[0])["detail"]["environment"]
    assert environment["processor"] in text
    for library in ("torch", "timm", "ray"):
        assert f"{library} {environment['versions'][library].partition('+')[0]}" in text
    for family in committed["families"]:
        assert f"{family['final']['test_top1']['mean']:.3f}" in text
        assert f"n = {len(family['final']['seeds'])}" in text


def test_the_table_of_published_recipes_follows_from_its_ledger() -> None:
    folder = ROOT / "examples" / "published-to-tuned"
    rows = re.findall(
        r"^\| (\w+) \|.*\| ([\d.]+) % \|.*\| ([\d.]+) % \| ([\d.]+) \|$",
        (folder / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    starts = compare([load(folder)]).as_dict()["published_recipes"]
    assert len(rows) == len(starts) == 4
    for (family, *texts), start in zip(rows, starts, strict=True):
        values = [start[name] for name in ("published_val_top1", "tuned_val_top1", "gain")]
        assert (family, start["n"]) == (start["family"], 1)
        assert [float(text) for text in texts] == pytest.approx(
            [100 * value for value in values], abs=0.051
        )


def test_what_the_docs_say_of_other_metrics_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "metric-intervals.json").read_text())
    assert measured["criterion_met"]
    judged = [
        of[m] for of in measured["results"].values() for m in ("macro_f1", "balanced_accuracy")
    ]
    assert {one["n"] for one in judged} == {500}
    least = min(one["coverage"]["share"] for one in judged)
    worst = max((one["false_better"] for one in judged), key=lambda share: share["share"])
    page = " ".join((ROOT / "docs" / "results.md").read_text().split())
    assert f"hold it in {100 * least:.0f} to 100 %" in page
    assert (
        f"in at most {100 * worst['share']:.1f} % (exact 95 % interval up to "
        f"{100 * worst['high']:.1f} %)"
    ) in page
