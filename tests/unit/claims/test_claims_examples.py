"""The claims that were run and committed: what they say is what their ledgers say, today."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.claims.experiments import CLAIMS as EXPERIMENTS
from orchestrator.claims.verdict import declared, shown, state_of

ROOT = Path(__file__).parents[3]
CLAIMS = ROOT / "examples" / "claims"
EARLIER = ROOT / "tests" / "ledgers" / "claim-by-an-earlier-rule-2026-11-22"
RUNS = sorted(path.parent for path in CLAIMS.glob("*/ledger.jsonl"))


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_a_committed_verdict_is_that_of_its_ledger(folder: Path) -> None:
    verdict = shown(state_of(folder))
    readme = (CLAIMS / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in readme.splitlines() if f"`{verdict['run']}`" in line]
    assert verdict["recorded"] is not None
    assert ("earlier rule" in row) == bool(verdict["rule_changes"])
    if verdict["rule_changes"]:
        assert verdict["recorded"]["agrees"] is None
    else:
        # Today's declaration is the one of that time, so that an unfinished run would go on.
        words = declared(state_of(folder))
        now = EXPERIMENTS[words["name"]].declaration()
        assert {key: words[key] for key in now} == now
        assert verdict["recorded"]["agrees"], "its ledger gives another verdict than it holds"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<section id="claim">' in page
    assert verdict["hash"] in page
    # The table of results says the same, with n and hardware.
    assert f"| {verdict['verdict'] or 'no verdict'}" in row
    assert str(verdict["hardware"]["processor"]) in readme


def test_a_verdict_by_an_earlier_rule_stays_as_it_was_and_says_so() -> None:
    verdict = shown(state_of(EARLIER))
    assert verdict["verdict"] == "refuted"
    assert verdict["rule_changes"]
    assert verdict["recorded"]["agrees"] is None
