"""The report people open: one offline HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from orchestrator.compare.runs import RunData
from orchestrator.compare.table import table_text


def report_html(runs: Sequence[RunData], comparison: Mapping[str, Any]) -> str:
    """One self-contained offline page."""
    title = escape(" and ".join(run.name for run in runs))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<pre>{escape(table_text(comparison))}</pre></html>"
    )
