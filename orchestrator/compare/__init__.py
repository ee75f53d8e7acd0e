"""Ledger tables -> statistics -> JSON, terminal table and HTML."""

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import report_html, write_report
from orchestrator.compare.report.reproduce import read_report
from orchestrator.compare.runs import RunData, load
from orchestrator.compare.table import table_text

__all__ = ["RunData", "compare", "load", "read_report", "report_html", "table_text", "write_report"]
